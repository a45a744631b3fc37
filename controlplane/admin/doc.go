// Package admin answers: what does an operator ask for, in the words of the API?
//
// It is AdminService, and it translates only: messages into values of proto/model, pages and field masks
// into calls of the catalog, and back. No rule of the configuration lives here. Who may call what is
// decided by package access before a method runs, and what an error looks like to the caller there
// too, afterwards.
//
// Audit is the log of who changed what: newest first, bounded, without secrets.
package admin
