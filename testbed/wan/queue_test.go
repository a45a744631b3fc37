package wan

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestLanesAgainstSorting pushes and pops at random and compares with a sorted list of everything.
func TestLanesAgainstSorting(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		var q lanes
		all := make([]*lane, 1+rnd.IntN(20))
		for i := range all {
			all[i] = &lane{from: i}
		}
		var oracle []int64
		last := make([]int64, len(all)) // by lane: number of the packet popped last
		pushed := make([]int, len(all))
		for range 3000 {
			if rnd.IntN(5) < 3 {
				l := all[rnd.IntN(len(all))]
				pushed[l.from]++
				k := packet{due: int64(rnd.IntN(1000)), from: pushed[l.from]}
				q.push(l, k)
				oracle = append(oracle, max(k.due, l.last))
				slices.Sort(oracle)
			} else if due, ok := q.due(); ok {
				k, l := q.pop()
				if k.due != due || due != oracle[0] {
					t.Fatalf("popped %d, said %d, first is %d", k.due, due, oracle[0])
				}
				if k.from <= int(last[l.from]) {
					t.Fatal("order within a lane is broken")
				}
				last[l.from] = int64(k.from)
				oracle = oracle[1:]
			}
		}
		for len(oracle) > 0 {
			if k, _ := q.pop(); k.due != oracle[0] {
				t.Fatal("wrong packet at the end")
			}
			oracle = oracle[1:]
		}
		if _, ok := q.due(); ok {
			t.Fatal("not empty at the end")
		}
	}
}

func TestPoolReusesMemory(t *testing.T) {
	var p pool
	defer p.unmap()
	for range 10 {
		c, err := p.chunk()
		if err != nil {
			t.Fatal(err)
		}
		c.refs++ // a packet
		p.drop(c)
		if len(p.free) != 0 {
			t.Fatal("chunk is free with a packet in it")
		}
		p.release(packet{buf: c, hdr: p.header()})
	}
	if len(p.all) != 1 || len(p.headers) != 1 {
		t.Errorf("%d chunks, %d headers", len(p.all), len(p.headers))
	}
}
