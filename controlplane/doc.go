// Package controlplane answers: what is a controller made of?
//
// It only assembles: rooms are made, joined and run in order, and ended in reverse.
//
//	store → authority → catalog → fleet, admin, enroll behind one gRPC port → metrics
//
// On the first start of a cluster the controller makes the certificate authority, the gossip key and the
// operator "admin", whose credentials it leaves in DataDir/admin-context.yaml. Several controllers on one
// store are equal; which of them makes what at the first start is decided by the store.
package controlplane
