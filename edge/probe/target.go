package probe

import (
	"github.com/nearcast/nearcast/proto/model"
)

// Target is one endpoint of one group and how it is checked.
type Target struct {
	Group    model.GroupID
	Endpoint model.EndpointID
	Host     string // IP address or DNS name
	Check    model.HealthCheck
}

// Targets returns what a gateway of region checks: every endpoint of every group there. Endpoints
// of weight 0 and of disabled accelerators are checked too, so that a verdict is at hand when they
// come into use.
func Targets(s *model.Snapshot, region model.RegionName) []Target {
	firstPort := make(map[model.ListenerID]uint16, len(s.Listeners))
	for i := range s.Listeners {
		if l := &s.Listeners[i]; len(l.PortRanges) > 0 {
			firstPort[l.ID] = l.PortRanges[0].From
		}
	}
	var targets []Target
	for i := range s.Groups {
		g := &s.Groups[i]
		if g.Region != region {
			continue
		}
		check := g.HealthCheck
		if check.Port == 0 {
			check.Port = firstPort[g.Listener]
		}
		for j := range g.Endpoints {
			e := &g.Endpoints[j]
			targets = append(targets, Target{Group: g.ID, Endpoint: e.ID, Host: e.Host, Check: check})
		}
	}
	return targets
}

// key names one check: targets whose keys are equal are probed once and share the result.
type key struct {
	host  string
	check model.HealthCheck
}

// subject names whom a verdict is about.
type subject struct {
	group    model.GroupID
	endpoint model.EndpointID
}

func (t *Target) key() key         { return key{host: t.Host, check: t.Check} }
func (t *Target) subject() subject { return subject{t.Group, t.Endpoint} }
