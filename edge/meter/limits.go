package meter

import "time"

const (
	// cellsMax bounds the (listener, group, address, protocol) that are counted apart, at some 150 bytes
	// each. What is more is counted in its listener's row without a group, or not at all: see Meter.cell.
	cellsMax = 200_000

	// period is how much one report covers: CloudWatch's resolution.
	period = time.Minute
	// lateMax is how late a minute may be folded and still end where it should.
	lateMax = 10 * time.Second
)
