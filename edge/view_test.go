package edge

import (
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

func TestIsNews(t *testing.T) {
	const ms = time.Millisecond
	base := func() steer.View {
		return steer.View{
			RTT:      map[model.NodeID]time.Duration{"a": 100 * ms, "b": 3 * ms},
			Groups:   map[model.NodeID]map[model.GroupID]bool{"a": {"g": true}},
			Draining: map[model.NodeID]bool{},
		}
	}
	for _, c := range []struct {
		name   string
		change func(*steer.View)
		want   bool
	}{
		{"nothing", func(*steer.View) {}, false},
		{"a long path's noise", func(v *steer.View) { v.RTT["a"] = 101 * ms }, false},
		{"a short path's noise", func(v *steer.View) { v.RTT["b"] = 3400 * time.Microsecond }, false},
		{"a longer path", func(v *steer.View) { v.RTT["a"] = 103 * ms }, true},
		{"a shorter path", func(v *steer.View) { v.RTT["b"] = 2 * ms }, true},
		{"a path lost", func(v *steer.View) { delete(v.RTT, "b") }, true},
		{"a path exchanged", func(v *steer.View) { delete(v.RTT, "b"); v.RTT["c"] = 3 * ms }, true},
		{"draining", func(v *steer.View) { v.Draining["a"] = true }, true},
		{"a group lost", func(v *steer.View) { v.Groups["a"] = map[model.GroupID]bool{"g": false} }, true},
		{"a gateway spoke", func(v *steer.View) { v.Groups["b"] = map[model.GroupID]bool{} }, true},
		{"a new table", func(v *steer.View) { v.Previous = new(steer.Table) }, false},
	} {
		now := base()
		c.change(&now)
		if got := isNews(base(), now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
