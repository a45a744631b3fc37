package catalog

import (
	"errors"
	"fmt"

	"github.com/nearcast/nearcast/proto/model"
)

// Code is the kind of an error, in the words of gRPC.
type Code int

const (
	Internal           Code = iota // a fault in this program or in the stored data
	InvalidArgument                // the request is wrong in itself
	NotFound                       // the object, or one it names, does not exist
	AlreadyExists                  // a name or an object that is unique is there already
	FailedPrecondition             // the cluster's present state forbids it
	LimitExceeded                  // a quota is used up
	Aborted                        // expected_revision is not the object's, or too many others wrote
	Unavailable                    // the store does not answer; try again
)

func (c Code) String() string {
	names := [...]string{"internal", "invalid argument", "not found", "already exists",
		"failed precondition", "limit exceeded", "aborted", "unavailable"}
	if c < 0 || int(c) >= len(names) {
		return fmt.Sprintf("code %d", int(c))
	}
	return names[c]
}

// Reason says which rule an Error is about, where a caller may want to tell one from another. The
// names are those of AWS Global Accelerator's exceptions where it has one.
type Reason string

const (
	ReasonAcceleratorNotFound Reason = "AcceleratorNotFound"
	ReasonListenerNotFound    Reason = "ListenerNotFound"
	ReasonGroupNotFound       Reason = "EndpointGroupNotFound"
	ReasonEndpointNotFound    Reason = "EndpointNotFound"
	ReasonTargetNotFound      Reason = "TargetNotFound"
	ReasonPoolNotFound        Reason = "PoolNotFound"
	ReasonSiteNotFound        Reason = "SiteNotFound"
	ReasonRegionNotFound      Reason = "RegionNotFound"
	ReasonNodeNotFound        Reason = "NodeNotFound"
	ReasonZoneNotFound        Reason = "ZoneNotFound"
	ReasonAttachmentNotFound  Reason = "AttachmentNotFound"
	ReasonRangeNotFound       Reason = "ByoipCidrNotFound"
	ReasonRangeState          Reason = "IncorrectCidrState"
	ReasonNotShared           Reason = "NotShared" // it is another project's, and no attachment allows it
	ReasonNotDisabled         Reason = "AcceleratorNotDisabled"
	ReasonHasListeners        Reason = "AssociatedListenerFound"
	ReasonHasGroups           Reason = "AssociatedEndpointGroupFound"
	ReasonGroupExists         Reason = "EndpointGroupAlreadyExists"
	ReasonEndpointExists      Reason = "EndpointAlreadyExists"
	ReasonInvalidPortRange    Reason = "InvalidPortRange"
	ReasonInvalidPageToken    Reason = "InvalidNextToken"
	ReasonTokenReused         Reason = "IdempotencyTokenReused"
	ReasonNoAddresses         Reason = "NoAddresses"
	ReasonInUse               Reason = "InUse"
	ReasonForbiddenEndpoint   Reason = "ForbiddenEndpoint"
	ReasonRevision            Reason = "Revision"
	ReasonWrongType           Reason = "WrongType"         // standard where custom routing is needed, or the other way
	ReasonNoPorts             Reason = "NoPorts"           // a listener has too few free ports for a subnet
	ReasonNoCountries         Reason = "NoCountryDatabase" // nothing says what networks a country has
	ReasonContention          Reason = "Contention"
	ReasonGuard               Reason = "Guard" // Options.Force would allow it
	ReasonLimit               Reason = "LimitExceeded"
	ReasonNone                Reason = ""
)

// Error is what every method returns when it does not do what it was asked.
type Error struct {
	Code    Code
	Reason  Reason
	Message string            // one sentence, lower case
	Fields  model.FieldErrors // what is wrong with the request, field by field; may be empty
	Ports   *PortConflict     // with ReasonInvalidPortRange, if another listener has the ports
	Err     error             // the cause below, if there is one
}

// PortConflict says which ports of a request another listener has already.
type PortConflict struct {
	Range, Taken model.PortRange
	Listener     model.ListenerID
	Accelerator  model.AcceleratorID // that listener's
}

func (e *Error) Error() string {
	if len(e.Fields) > 0 {
		return fmt.Sprintf("%s: %v", e.Message, e.Fields)
	}
	return e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of err, and Internal if it is not of this package.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// ReasonOf returns the reason of err, or ReasonNone.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ReasonNone
}

func notFound(r Reason, what, key string) *Error {
	return &Error{Code: NotFound, Reason: r, Message: fmt.Sprintf("there is no %s %q", what, key)}
}

// invalid makes an error of what a Validate method returned; nil stays nil.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Code: InvalidArgument, Message: "the request is not valid"}
	if !errors.As(err, &e.Fields) {
		e.Message = err.Error()
	}
	return e
}

// field is invalid for one field.
func field(r Reason, path, format string, args ...any) *Error {
	return &Error{Code: InvalidArgument, Reason: r, Message: "the request is not valid",
		Fields: model.FieldErrors{{Field: path, Message: fmt.Sprintf(format, args...)}}}
}

func precondition(r Reason, format string, args ...any) *Error {
	return &Error{Code: FailedPrecondition, Reason: r, Message: fmt.Sprintf(format, args...)}
}

func exists(r Reason, format string, args ...any) *Error {
	return &Error{Code: AlreadyExists, Reason: r, Message: fmt.Sprintf(format, args...)}
}

// limit is the error of a quota. setting is its name in Settings.
func limit(setting string, most int, what string) *Error {
	return &Error{Code: LimitExceeded, Reason: ReasonLimit,
		Message: fmt.Sprintf("%s: at most %d are allowed (settings %s)", what, most, setting)}
}

// guarded is the error of a guard; Options.Force lets the change through.
func guarded(format string, args ...any) *Error {
	return precondition(ReasonGuard, format+"; force it if that is meant", args...)
}

// unavailable makes an error of one of the store's or of a context that ended.
func unavailable(err error) error {
	return &Error{Code: Unavailable, Message: err.Error(), Err: err}
}
