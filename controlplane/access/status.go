package access

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// domain of the google.rpc.ErrorInfo that carries a catalog.Reason.
const domain = "nearcast"

var codeOf = map[catalog.Code]codes.Code{
	catalog.Internal:           codes.Internal,
	catalog.InvalidArgument:    codes.InvalidArgument,
	catalog.NotFound:           codes.NotFound,
	catalog.AlreadyExists:      codes.AlreadyExists,
	catalog.FailedPrecondition: codes.FailedPrecondition,
	catalog.LimitExceeded:      codes.ResourceExhausted,
	catalog.Aborted:            codes.Aborted,
	catalog.Unavailable:        codes.Unavailable,
}

// Status returns err as what a gRPC caller is told: the code, the message, a google.rpc.BadRequest with
// every field that is wrong, and a google.rpc.ErrorInfo with the reason. An error that is a status
// already, or nil, stays as it is; what nobody foresaw is INTERNAL.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	var ce *catalog.Error
	if errors.As(err, &ce) {
		code, ok := codeOf[ce.Code]
		if !ok {
			code = codes.Internal
		}
		return withDetails(code, ce.Error(), ce.Fields, string(ce.Reason))
	}
	var fields model.FieldErrors
	if errors.As(err, &fields) {
		return withDetails(codes.InvalidArgument, err.Error(), fields, "")
	}
	return status.Error(plainCode(err), err.Error())
}

// plainCode is the code of errors that carry nothing but themselves.
func plainCode(err error) codes.Code {
	switch {
	case errors.Is(err, ErrExists):
		return codes.AlreadyExists
	case errors.Is(err, ErrLastAdmin):
		return codes.FailedPrecondition
	case errors.Is(err, ErrUnknown), errors.Is(err, store.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, store.ErrConflict):
		return codes.Aborted
	case errors.Is(err, store.ErrUnavailable):
		return codes.Unavailable
	case errors.Is(err, ErrTooMany), errors.Is(err, store.ErrNoSpace), errors.Is(err, store.ErrTooLarge):
		return codes.ResourceExhausted
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

func withDetails(code codes.Code, message string, fields model.FieldErrors, reason string) error {
	s := status.New(code, message)
	var details []protoadapt.MessageV1
	if len(fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, f := range fields {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: f.Field, Description: f.Message})
		}
		details = append(details, bad)
	}
	if reason != "" {
		details = append(details, &errdetails.ErrorInfo{Reason: reason, Domain: domain})
	}
	if with, err := s.WithDetails(details...); err == nil {
		s = with // else: without details the message still says it all
	}
	return s.Err()
}

// Invalid returns INVALID_ARGUMENT about one field of a request.
func Invalid(field, message string) error {
	return Status(model.FieldErrors{{Field: field, Message: message}})
}
