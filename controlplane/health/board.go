package health

import (
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Key names one endpoint of one group.
type Key struct {
	Group    model.GroupID
	Endpoint model.EndpointID
}

// Verdict is what the cluster holds of an endpoint.
type Verdict struct {
	State  model.HealthState
	Reason string    // why it is not healthy, in a prober's words; empty when healthy
	Since  time.Time // when State came to be
}

// Report is one prober's own verdict on one endpoint.
type Report struct {
	Key
	State   model.HealthState
	Reason  string
	Since   time.Time     // when the prober's verdict came to be
	Latency time.Duration // of its last successful probe; 0: unknown
}

// ProberReport is a report with who made it.
type ProberReport struct {
	Prober string // node id, or ControllerProber
	Report
}

// ControllerProber is the prober's name when the controller itself probes.
const ControllerProber = "controller"

// Transition is a change of a published verdict.
type Transition struct {
	Key
	From, To Verdict
}

// Config of a Board. The zero value is right.
type Config struct{}

// Board keeps the reports and the published verdicts of all endpoints. It is not safe for concurrent
// use: one goroutine owns it.
type Board struct{}

// New returns an empty Board.
func New(cfg Config) *Board { return &Board{} }

// SetGroups tells the Board which endpoints exist and the share of a group (percent) that verdicts may
// take out at once. Endpoints that it did not know begin as HealthInitial; what is not in groups any more
// is forgotten.
func (b *Board) SetGroups(now time.Time, groups []model.EndpointGroup, maxEjectionPercent int) {}

// Restore makes verdicts that an earlier Board published the published ones here, so that a new leader
// continues where the old one ended. Keys that SetGroups did not name are ignored.
func (b *Board) Restore(now time.Time, verdicts map[Key]Verdict) {}

// Report takes what a prober said at time now. With complete set, what is not in reports is no longer
// probed by it. Reports on unknown endpoints are ignored.
func (b *Board) Report(now time.Time, prober string, reports []Report, complete bool) {}

// Forget drops all that a prober said: it is gone or no longer authorised.
func (b *Board) Forget(prober string) {}

// Tick decides and returns the verdicts that changed, sorted by key. Call it after reports and at least
// once a second.
func (b *Board) Tick(now time.Time) []Transition { return nil }

// Verdicts returns a copy of every published verdict.
func (b *Board) Verdicts() map[Key]Verdict { return nil }

// Reports returns the live reports on one endpoint, sorted by prober.
func (b *Board) Reports(now time.Time, k Key) []ProberReport { return nil }
