package steer

import (
	"fmt"
	"math"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func group(weights ...int) *model.EndpointGroup {
	g := &model.EndpointGroup{ID: "g"}
	for i, w := range weights {
		g.Endpoints = append(g.Endpoints, model.Endpoint{
			ID: model.EndpointID(fmt.Sprintf("198.51.100.%d", i)), Weight: uint8(w), Health: model.HealthHealthy})
	}
	return g
}

func hashOf(i int) uint64 { return tuple(i).Hash(Seed("test")) }

// TestWeights wants every endpoint's share of a million flows within one percent of it (and of its
// own size where that is smaller, up to what chance does).
func TestWeights(t *testing.T) {
	const flows = 1_000_000
	for _, weights := range [][]int{{128, 128}, {255, 1}, {1, 2, 3, 4}, {128, 0, 64}, {10, 10, 10, 10, 10, 10, 10, 10, 10, 10}} {
		p := NewPicker(group(weights...), nil)
		got, sum := make([]int, len(weights)), 0
		for i := range flows {
			got[p.Pick(hashOf(i), false, nil)]++
		}
		for _, w := range weights {
			sum += w
		}
		for i, w := range weights {
			want := float64(w) / float64(sum)
			share := float64(got[i]) / flows
			chance := 5 * math.Sqrt(want*(1-want)/flows)
			if math.Abs(share-want) > max(0.01*want, chance) || w == 0 && got[i] != 0 {
				t.Errorf("weights %v: endpoint %d has %.4f, want %.4f", weights, i, share, want)
			}
		}
	}
}

// TestRemoval wants that no flow moves whose endpoint stays, which is better than 1/N + 1 %.
func TestRemoval(t *testing.T) {
	const flows, n = 200_000, 10
	weights := []int{128, 128, 128, 128, 128, 128, 128, 128, 128, 128}
	all := NewPicker(group(weights...), nil)
	for gone := range n {
		id := model.EndpointID(fmt.Sprintf("198.51.100.%d", gone))
		less := NewPicker(group(weights...), func(e *model.Endpoint) model.HealthState {
			if e.ID == id {
				return model.HealthUnhealthy
			}
			return model.HealthHealthy
		})
		moved := 0
		for i := range flows {
			before, after := all.Pick(hashOf(i), false, nil), less.Pick(hashOf(i), false, nil)
			if before != after {
				moved++
				if before != gone {
					t.Fatal("a flow moved whose endpoint stayed")
				}
			}
		}
		if share := float64(moved) / flows; share > 1.0/n+0.01 {
			t.Errorf("%.3f of the flows moved", share)
		}
	}
}

func TestPickOpen(t *testing.T) {
	sick := func(*model.Endpoint) model.HealthState { return model.HealthUnhealthy }
	if p := NewPicker(group(1, 1), sick); p.Servable() || p.Pick(1, false, nil) != -1 || p.Pick(1, true, nil) < 0 {
		t.Error("only failing open serves a sick group")
	}
	if p := NewPicker(group(0, 0), nil); p.Servable() || p.Pick(1, false, nil) != -1 || p.Pick(1, true, nil) < 0 {
		t.Error("weight zero serves when there is nothing else, and never otherwise")
	}
	for i := range 1000 {
		if NewPicker(group(0, 5), sick).Pick(hashOf(i), true, nil) != 1 {
			t.Fatal("weight zero was chosen beside weight five")
		}
	}
	p := NewPicker(group(1, 1, 1), nil)
	tried := map[int]bool{}
	for range 3 {
		i := p.Pick(42, false, func(i int) bool { return tried[i] })
		if i < 0 || tried[i] {
			t.Fatalf("pick %d after %v", i, tried)
		}
		tried[i] = true
	}
	if p.Pick(42, false, func(i int) bool { return tried[i] }) != -1 {
		t.Error("there is nothing left to pick")
	}
	if NewPicker(group(), nil).Pick(1, true, nil) != -1 {
		t.Error("an empty group picks")
	}
}

func TestPickNoAllocation(t *testing.T) {
	p := NewPicker(group(1, 2, 3), nil)
	var tried [4]bool
	if n := testing.AllocsPerRun(1000, func() { p.Pick(7, true, func(i int) bool { return tried[i] }) }); n != 0 {
		t.Errorf("Pick allocates %v times", n)
	}
}

// TestPickIndependentOfDial: the flows that a dial leaves to a group are spread over its endpoints
// like any others.
func TestPickIndependentOfDial(t *testing.T) {
	table := Compile(world(model.AffinityNone, "a 10 hhhh", "b 100 h"), "self",
		View{RTT: rtts("gw-a", 1, "gw-b", 9)})
	p := NewPicker(table.Listeners()[0].groups[0].group, nil)
	counts, total := make([]int, 4), 0
	for i := range 400_000 {
		r, _ := table.Route(tuple(i))
		if c, _ := r.Next(); c.Group.Region == "a" {
			counts[p.Pick(r.Hash, false, nil)]++
			total++
		}
	}
	for i, n := range counts {
		if share := float64(n) / float64(total); math.Abs(share-0.25) > 0.01 {
			t.Errorf("endpoint %d has %.3f of the dialled flows", i, share)
		}
	}
}
