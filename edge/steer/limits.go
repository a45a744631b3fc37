package steer

import "time"

const (
	// Two regions, or two gateways, are equally far if their round trips differ by less than this
	// much, or by less than this share of the nearer one. 3 ms is the jitter of a busy access link
	// that smoothing leaves; a tenth is less than what anybody notices.
	nearTime  = 3 * time.Millisecond
	nearShare = 10

	// spinSalt tells the choice of a gateway from all other choices made with the same hash.
	spinSalt = 0x5be0cd19137e2179
)

// margin is the least difference in distance from d that counts.
func margin(d time.Duration) time.Duration { return max(nearTime, d/nearShare) }
