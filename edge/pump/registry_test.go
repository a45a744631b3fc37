package pump

import (
	"math/rand/v2"
	"sync"
	"testing"
)

type item struct {
	Entry[*item]
	n int
}

// TestRegistryAgreesWithAMap adds, removes, removes twice and lists, beside a map.
func TestRegistryAgreesWithAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var r Registry[*item]
	slow := map[*item]bool{}
	all := []*item{}
	for step := range 20_000 {
		switch k := rng.IntN(10); {
		case k < 5:
			it := &item{n: step}
			r.Add(&it.Entry, it)
			slow[it] = true
			all = append(all, it)
		case len(all) > 0:
			it := all[rng.IntN(len(all))]
			r.Remove(&it.Entry) // often for the second time
			delete(slow, it)
		}
		if r.Len() != len(slow) {
			t.Fatalf("step %d: %d flows, want %d", step, r.Len(), len(slow))
		}
		if step%1000 != 0 {
			continue
		}
		seen := map[*item]bool{}
		r.Each(func(it *item) {
			if seen[it] || !slow[it] {
				t.Fatalf("step %d: item %d is there twice, or is not to be there", step, it.n)
			}
			seen[it] = true
		})
		if len(seen) != len(slow) {
			t.Fatalf("step %d: Each found %d of %d", step, len(seen), len(slow))
		}
	}
	never := &item{}
	r.Remove(&never.Entry)
}

// TestRegistryFromManySides: flows come and go while others look, and an Each may remove what it sees.
func TestRegistryFromManySides(t *testing.T) {
	var r Registry[*item]
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 2000 {
				it := &item{}
				r.Add(&it.Entry, it)
				r.Remove(&it.Entry)
			}
			for range 100 {
				it := &item{}
				r.Add(&it.Entry, it)
			}
		})
	}
	all.Go(func() {
		for range 50 {
			r.Each(func(*item) {})
		}
	})
	all.Wait()
	if r.Len() != 800 {
		t.Fatalf("%d flows, want 800", r.Len())
	}
	r.Each(func(it *item) { r.Remove(&it.Entry) })
	if r.Len() != 0 {
		t.Fatalf("%d flows are left", r.Len())
	}
}

// TestGate: nothing passes before Open, an end that came before is told to who opens, once.
func TestGate(t *testing.T) {
	type step struct {
		bytes string
		fin   bool
		want  bool
	}
	for name, c := range map[string]struct {
		before []step
		ended  bool
	}{
		"nothing":          {nil, false},
		"bytes":            {[]step{{"a", false, false}, {"a", false, false}}, false},
		"end":              {[]step{{"", true, false}}, true},
		"end, twice":       {[]step{{"", true, false}, {"", true, false}}, true},
		"bytes with end":   {[]step{{"a", true, false}}, false}, // they come again, and the end with them
		"nothing, no end":  {[]step{{"", false, false}}, false},
		"bytes before end": {[]step{{"a", false, false}, {"", true, false}}, true},
	} {
		var g Gate
		for i, s := range c.before {
			if got := g.Pass([]byte(s.bytes), s.fin); got != s.want {
				t.Errorf("%s: step %d passes: %v", name, i, got)
			}
		}
		if got := g.Open(); got != c.ended {
			t.Errorf("%s: Open says ended: %v", name, got)
		}
		if !g.Pass([]byte("b"), false) || !g.Pass(nil, true) {
			t.Errorf("%s: an open gate does not let pass", name)
		}
	}
}

// TestGateRace: however Open and the end meet, exactly one side delivers the end.
func TestGateRace(t *testing.T) {
	for range 2000 {
		var g Gate
		passed := make(chan bool)
		go func() { passed <- g.Pass(nil, true) }()
		kept := g.Open()
		if p := <-passed; p == kept {
			t.Fatalf("the end passed: %v, and was kept: %v", p, kept)
		}
	}
}
