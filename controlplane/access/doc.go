// Package access answers: who is calling, and may they?
//
// Every method of every service has a row in one table, which says what its caller must be. A method
// without a row is refused, so a forgotten row closes a door and never opens one; a test walks the
// services' descriptors and demands a row for each method.
//
//	call → peer certificate / bearer token → Caller → row of the method → handler
//
// Callers are of three sorts: nobody (who may only enrol, and proves himself by the join token in the
// request), a node (a certificate of kind node, of a node that exists and is not revoked), and an
// operator (a certificate of kind operator, or a bearer token; in both cases the operator must
// exist, and what he may do is his role of this moment).
//
// Methods return the errors of the rooms they call; what the caller is told of them is decided here
// too, in Status.
package access
