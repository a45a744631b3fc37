package steer

import (
	"math"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// Picker chooses an endpoint of a group by weighted rendezvous: each endpoint draws a number from
// the hash of the flow and of its own id, the weight stretches it, and the greatest wins. So weights
// hold exactly on average, and when an endpoint goes, only its own flows move. It is immutable.
type Picker struct {
	choices  []choice
	servable bool
}

type choice struct {
	hash    uint64
	weight  float64
	healthy bool
}

// NewPicker makes the Picker of a group. state says what is held of an endpoint; nil is the
// snapshot's own verdict.
func NewPicker(g *model.EndpointGroup, state func(*model.Endpoint) model.HealthState) *Picker {
	p := &Picker{choices: make([]choice, len(g.Endpoints))}
	for i := range g.Endpoints {
		e := &g.Endpoints[i]
		health := e.Health
		if state != nil {
			health = state(e)
		}
		c := choice{flow.HashString(string(e.ID)), float64(e.Weight), health == model.HealthHealthy}
		p.choices[i] = c
		p.servable = p.servable || c.healthy && c.weight > 0
	}
	return p
}

// Servable reports whether a healthy endpoint of weight above zero is there.
func (p *Picker) Servable() bool { return p.servable }

// Pick returns the index of the endpoint for a flow, among the healthy ones of weight above zero.
// With open, verdicts do not count; weights do, unless all are zero. skip (may be nil) says which
// endpoints must not be chosen. -1: there is none.
func (p *Picker) Pick(hash uint64, open bool, skip func(int) bool) int {
	best := p.pick(hash, open, false, skip)
	if best < 0 && open {
		best = p.pick(hash, open, true, skip)
	}
	return best
}

func (p *Picker) pick(hash uint64, open, weightless bool, skip func(int) bool) int {
	best, most := -1, math.Inf(-1)
	for i := range p.choices {
		c := &p.choices[i]
		weight := c.weight
		if weightless {
			weight = 1
		}
		if weight <= 0 || !open && !c.healthy || skip != nil && skip(i) {
			continue
		}
		// ln(u)/w of a uniform u in (0,1) is greatest at i with probability wᵢ/Σw.
		u := (float64(flow.Mix(hash, c.hash)>>11) + 0.5) / (1 << 53)
		if score := math.Log(u) / weight; score > most {
			best, most = i, score
		}
	}
	return best
}
