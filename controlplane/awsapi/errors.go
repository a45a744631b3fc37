package awsapi

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// fault is an error as an AWS client sees it.
type fault struct {
	code    string // goes into __type; clients decide by it
	status  int    // of HTTP; clients try again by themselves from 500 on
	message string
}

func (f *fault) Error() string { return f.code + ": " + f.message }

// Exceptions of the model.
const (
	exInternal        = "InternalServiceErrorException"
	exInvalidArgument = "InvalidArgumentException"
	exInvalidPorts    = "InvalidPortRangeException"
	exInvalidToken    = "InvalidNextTokenException"
	exAccelerator     = "AcceleratorNotFoundException"
	exListener        = "ListenerNotFoundException"
	exGroup           = "EndpointGroupNotFoundException"
	exAttachment      = "AttachmentNotFoundException"
	exNotDisabled     = "AcceleratorNotDisabledException"
	exHasListeners    = "AssociatedListenerFoundException"
	exHasGroups       = "AssociatedEndpointGroupFoundException"
	exGroupExists     = "EndpointGroupAlreadyExistsException"
	exLimit           = "LimitExceededException"
	exDenied          = "AccessDeniedException"
	exConflict        = "ConflictException"
	exEndpointExists  = "EndpointAlreadyExistsException"
	exEndpoint        = "EndpointNotFoundException"
	exCidr            = "ByoipCidrNotFoundException"
	exCidrState       = "IncorrectCidrStateException"
	exInProgress      = "TransactionInProgressException"
)

func faultf(code, format string, args ...any) *fault {
	return &fault{code, http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func invalidf(format string, args ...any) *fault { return faultf(exInvalidArgument, format, args...) }

func incomplete(message string) *fault { return faultf("IncompleteSignatureException", "%s", message) }

func invalidSignature(message string) *fault {
	return faultf("InvalidSignatureException", "%s", message)
}

func internal() *fault {
	return &fault{exInternal, http.StatusInternalServerError, "There was an internal error; try again."}
}

// exceptionOf tells the exception of a reason, where there is one.
var exceptionOf = map[catalog.Reason]string{
	catalog.ReasonAcceleratorNotFound: exAccelerator,
	catalog.ReasonListenerNotFound:    exListener,
	catalog.ReasonGroupNotFound:       exGroup,
	catalog.ReasonNotDisabled:         exNotDisabled,
	catalog.ReasonHasListeners:        exHasListeners,
	catalog.ReasonHasGroups:           exHasGroups,
	catalog.ReasonGroupExists:         exGroupExists,
	catalog.ReasonInvalidPortRange:    exInvalidPorts,
	catalog.ReasonInvalidPageToken:    exInvalidToken,
	catalog.ReasonLimit:               exLimit,
	catalog.ReasonNoAddresses:         exLimit,
	catalog.ReasonNoPorts:             exLimit,
	catalog.ReasonEndpointExists:      exEndpointExists,
	catalog.ReasonEndpointNotFound:    exEndpoint,
	catalog.ReasonAttachmentNotFound:  exAttachment,
	catalog.ReasonRangeNotFound:       exCidr,
	catalog.ReasonRangeState:          exCidrState,
	catalog.ReasonNotShared:           exDenied,
	catalog.ReasonContention:          exInProgress,
	catalog.ReasonRevision:            exInProgress,
}

// translate makes a fault of any error. What the catalog says becomes one of the exceptions that the
// operation has in AWS's model: clients do not know others. The second result is false for errors that
// are ours and not the caller's.
func (o *operation) translate(err error, account string) (*fault, bool) {
	var f *fault
	if errors.As(err, &f) {
		return f, f.status < http.StatusInternalServerError
	}
	var fields model.FieldErrors
	var ce *catalog.Error
	if !errors.As(err, &ce) {
		if errors.As(err, &fields) {
			return invalidf("%s", fields.Error()), true
		}
		return internal(), false
	}
	code := exceptionOf[ce.Reason]
	switch {
	case code != "":
	case ce.Code == catalog.Internal || ce.Code == catalog.Unavailable:
		return internal(), false
	case ce.Code == catalog.LimitExceeded:
		code = exLimit
	case ce.Code == catalog.FailedPrecondition:
		code = exConflict
	case about(ce, "listener.port_ranges"), about(ce, "group.destinations"):
		code = exInvalidPorts
	case about(ce, "accelerator.addresses"):
		code = exConflict // addresses that are there cannot be exchanged
	}
	if !o.models(code) {
		if code == exInProgress {
			return internal(), false // clients try again by themselves
		}
		code = exInvalidArgument
	}
	return faultf(code, "%s", portMessage(ce, account)), true
}

// about reports whether an error is about the field path or what is below it.
func about(e *catalog.Error, path string) bool {
	return slices.ContainsFunc(e.Fields, func(f model.FieldError) bool {
		return strings.HasPrefix(f.Field, path)
	})
}

// portMessage is the error's text, in AWS's own words where clients are known to read them.
func portMessage(e *catalog.Error, account string) string {
	if c := e.Ports; c != nil {
		show := func(r model.PortRange) string {
			return fmt.Sprintf("PortRange(fromPort=%d, toPort=%d)", r.From, r.To)
		}
		return fmt.Sprintf("Invalid port range %s, which overlaps with port range %s taken by listener %s",
			show(c.Range), show(c.Taken), listenerARN(account, c.Accelerator, c.Listener))
	}
	return cmp.Or(e.Error(), string(e.Reason))
}
