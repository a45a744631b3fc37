package identity

import "time"

const (
	// CALifetime is how long a certificate authority lives. Ten years outlive the rotation of any
	// sensible operator; its end is reported long before.
	CALifetime = 10 * 365 * 24 * time.Hour
	// LeafLifetime is how long a leaf lives: short enough that revocation needs no lists, long
	// enough to outlive a day without controllers.
	LeafLifetime = 24 * time.Hour
	// RenewGrace is how long after its end a node's certificate still serves to renew it, and for
	// nothing else. A fleet whose controllers were away for longer than LeafLifetime would have to
	// enrol anew, machine by machine, without it. A certificate does not stop a revoked node anyway:
	// the controller asks the catalog at every call.
	RenewGrace = 30 * 24 * time.Hour
	// clockSkewMax is how far certificates are dated back, so that a machine whose clock is an hour late, and
	// has drifted besides, accepts them: a clock that is an hour off is one of another time zone or of winter.
	clockSkewMax = time.Hour + 10*time.Minute

	clusterBytesMax = 63 // of a DNS label, so that a cluster's name fits everywhere
	nameBytesMax    = 64 // of a Subject's name
	requestBytesMax = 8 << 10
	fileBytesMax    = 64 << 10 // an identity file: one key, one leaf, a few roots
	rootsMax        = 16       // authorities trusted at once; a rotation needs two

	tokenBytesMax  = 256
	tokenIDMax     = 32
	secretBytesMin = 16 // 80 bits in base 32
	secretBytesMax = 128
)
