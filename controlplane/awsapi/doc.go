// Package awsapi answers: what does a client of AWS Global Accelerator ask for, and what is it told?
//
// It speaks AWS JSON 1.1 as the aws command line, the AWS SDKs, Terraform and others do, and it translates
// only: members of requests into calls of the catalog and back. No rule of the configuration lives here.
//
//	request → Signature Version 4 → operation → members checked as AWS's model says → catalog → answer
//
// What a request may be in itself (which members, how long, which values) is written beside the members in
// the struct tags of shapes.go, and a test compares that with the model that AWS publishes. docs/AWS.md
// says what is the same as at AWS and what is not.
package awsapi
