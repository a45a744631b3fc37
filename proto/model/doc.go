// Package model answers: what is a Nearcast configuration, as native values?
//
// The three forms of an object are three types: the protobuf message that crosses a wire or lies in
// the store, the AWS dialect's JSON, and the value here, which all other code works with. Only this
// package converts between messages and values (FromProto…, …ToProto), and it alone knows what a
// valid object is: Validate looks at one object by itself, Snapshot.Consistent at how they refer to
// each other.
package model
