package probe

import (
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func TestJudge(t *testing.T) {
	letter := map[model.HealthState]string{
		model.HealthInitial: "i", model.HealthHealthy: "H", model.HealthUnhealthy: "U",
	}
	for _, c := range []struct {
		name               string
		healthy, unhealthy int
		results, want      string // + passed, - failed
	}{
		{"one success is enough at the start", 3, 3, "+", "H"},
		{"a starting endpoint is not condemned", 3, 3, "--+", "iiH"},
		{"a new endpoint that never answers", 3, 3, "----", "iiUU"},
		{"consecutive failures", 3, 3, "+--+---", "HHHHHHU"},
		{"consecutive successes", 3, 3, "---++-+++", "iiUUUUUUH"},
		{"thresholds of one", 1, 1, "-+-+", "UHUH"},
		{"unlike thresholds", 5, 2, "+--++++-+++++", "HHUUUUUUUUUUH"},
	} {
		var j judge
		var got strings.Builder
		for _, r := range c.results {
			before := j.state
			if changed := j.add(r == '+', c.healthy, c.unhealthy); changed != (j.state != before) {
				t.Errorf("%s: changed is %v from %v to %v", c.name, changed, before, j.state)
			}
			got.WriteString(letter[j.state])
		}
		if got.String() != c.want {
			t.Errorf("%s: %s gives %s, want %s", c.name, c.results, &got, c.want)
		}
	}
}
