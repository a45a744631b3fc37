package series

import (
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// HealthCount is how many endpoints of one group are healthy and how many are not, at one moment.
type HealthCount struct {
	Accelerator        model.AcceleratorID
	Listener           model.ListenerID
	Group              model.GroupID
	Region             model.RegionName
	Healthy, Unhealthy int
}

// healthStep is a count that held from one minute up to the next step.
type healthStep struct {
	since time.Time
	HealthCount
	gone bool // the group is no more, or its accelerator is disabled
}

// sample remembers what the counts are in a minute: only changes take room. They are known since this
// controller runs.
func (s *Series) sample(at time.Time, counts []HealthCount) {
	at = at.UTC().Truncate(time.Minute)
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[model.GroupID]bool{}
	note := func(step healthStep) {
		steps := s.health[step.Group]
		if n := len(steps); n == 0 || steps[n-1].HealthCount != step.HealthCount || steps[n-1].gone != step.gone {
			s.health[step.Group] = append(steps, step)
		}
	}
	for _, c := range counts {
		seen[c.Group] = true
		note(healthStep{at, c, false})
	}
	for group, steps := range s.health {
		last := steps[len(steps)-1]
		if !seen[group] {
			note(healthStep{at, last.HealthCount, true})
		}
		old := 0 // steps that ended before what is kept
		for old+1 < len(steps) && steps[old+1].since.Before(at.Add(-keepFor)) {
			old++
		}
		if last.gone && last.since.Before(at.Add(-keepFor)) {
			delete(s.health, group)
		} else if old > 0 {
			s.health[group] = append([]healthStep(nil), s.health[group][old:]...)
		}
	}
}

// healthMinutes adds up what groups had in each minute of [from, to).
func (s *Series) healthMinutes(m Metric, from, to time.Time, own func(model.AcceleratorID) bool) map[time.Time]float64 {
	minutes := map[time.Time]float64{}
	if now := s.cfg.Now(); to.After(now) {
		to = now
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, steps := range s.health {
		for i, step := range steps {
			row := model.TrafficRow{TrafficKey: model.TrafficKey{Accelerator: step.Accelerator, Listener: step.Listener,
				Region: step.Region}}
			if step.gone || !own(step.Accelerator) || !(Places{}).match(m.Dimensions, "", &row) {
				continue
			}
			until := to
			if i+1 < len(steps) && steps[i+1].since.Before(to) {
				until = steps[i+1].since
			}
			n := step.Healthy
			if m.Name == Unhealthy {
				n = step.Unhealthy
			}
			at := step.since
			if at.Before(from) {
				at = from.Add(time.Minute - 1).Truncate(time.Minute)
			}
			for ; at.Before(until); at = at.Add(time.Minute) {
				minutes[at] += float64(n)
			}
		}
	}
	return minutes
}
