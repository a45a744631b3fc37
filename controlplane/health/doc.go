// Package health answers: is this endpoint healthy, given what its probers say?
//
// Probers judge by themselves with the group's thresholds and report their own verdicts; Board weighs
// the reports of all probers of an endpoint into the cluster's one verdict. Board is pure: it has no
// clock, no goroutine and does no I/O; time comes in with every call. Check is the one probe for regions
// that have no gateway to run it.
package health
