package access

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

func TestStatus(t *testing.T) {
	fields := model.FieldErrors{{Field: "listener.port_ranges[0].to", Message: "is less than from"}}
	for name, tc := range map[string]struct {
		err  error
		code codes.Code
		bad  string // first field of the BadRequest
		why  string // reason of the ErrorInfo
	}{
		"nil":       {nil, codes.OK, "", ""},
		"status":    {status.Error(codes.DataLoss, "x"), codes.DataLoss, "", ""},
		"wrapped":   {fmt.Errorf("get: %w", store.ErrNotFound), codes.NotFound, "", ""},
		"conflict":  {store.ErrConflict, codes.Aborted, "", ""},
		"no quorum": {store.ErrUnavailable, codes.Unavailable, "", ""},
		"full":      {store.ErrNoSpace, codes.ResourceExhausted, "", ""},
		"canceled":  {context.Canceled, codes.Canceled, "", ""},
		"late":      {context.DeadlineExceeded, codes.DeadlineExceeded, "", ""},
		"bug":       {errors.New("x"), codes.Internal, "", ""},
		"fields":    {fields, codes.InvalidArgument, fields[0].Field, ""},
		"quota": {&catalog.Error{Code: catalog.LimitExceeded, Reason: catalog.ReasonLimit},
			codes.ResourceExhausted, "", "LimitExceeded"},
		"aborted": {&catalog.Error{Code: catalog.Aborted}, codes.Aborted, "", ""},
		"with fields": {fmt.Errorf("x: %w", &catalog.Error{Code: catalog.InvalidArgument, Fields: fields}),
			codes.InvalidArgument, fields[0].Field, ""},
	} {
		s := status.Convert(Status(tc.err))
		var bad, why string
		for _, d := range s.Details() {
			switch d := d.(type) {
			case *errdetails.BadRequest:
				bad = d.FieldViolations[0].Field
			case *errdetails.ErrorInfo:
				why = d.Reason
			}
		}
		if s.Code() != tc.code || bad != tc.bad || why != tc.why {
			t.Errorf("%s: %v, field %q, reason %q; want %v, %q, %q", name, s.Code(), bad, why, tc.code,
				tc.bad, tc.why)
		}
	}
}

func TestEveryCatalogCodeHasAStatus(t *testing.T) {
	for c := catalog.Internal; c <= catalog.Unavailable; c++ {
		if _, ok := codeOf[c]; !ok {
			t.Errorf("%v has no gRPC code", c)
		}
	}
}
