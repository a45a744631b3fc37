package datagram

import (
	"math/rand/v2"
	"testing"
)

// slowWindow is the oracle: it remembers every number.
type slowWindow struct {
	next uint64
	seen map[uint64]bool
}

func (w *slowWindow) accept(number uint64) (ahead uint64, ok bool) {
	if w.seen[number] || number < w.next && w.next-number > windowBits-64 {
		return 0, false
	}
	w.seen[number] = true
	if number >= w.next {
		ahead = number + 1 - w.next
		w.next = number + 1
	}
	return ahead, true
}

func TestWindowAgreesWithTheSlowOne(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 9))
		fast, slow := &window{}, &slowWindow{seen: map[uint64]bool{}}
		for range 20000 {
			var number uint64
			switch rng.IntN(10) {
			case 0: // far behind, around the window's end
				number = slow.next - min(slow.next, windowBits-128+rng.Uint64N(200))
			case 1: // a jump ahead, sometimes of more than the window
				number = slow.next + rng.Uint64N(1<<(rng.UintN(16)))
			case 2, 3:
				number = slow.next - min(slow.next, rng.Uint64N(100))
			default:
				number = slow.next
			}
			a, ok := fast.accept(number)
			b, want := slow.accept(number)
			if a != b || ok != want {
				t.Fatalf("seed %d: number %d with next %d: %d %v, want %d %v", seed, number, slow.next, a, ok, b, want)
			}
		}
	}
}

func TestWindowReach(t *testing.T) {
	var w window
	if _, ok := w.accept(1 << 31); !ok {
		t.Fatal("a first number of 2^31 was refused")
	}
	for i := range uint64(1024) {
		if _, ok := w.accept(1<<31 - 1024 + i); !ok {
			t.Fatalf("a packet %d behind was refused", 1024-i)
		}
	}
	if _, ok := w.accept(1<<31 - windowBits); ok {
		t.Error("a packet beyond the window was taken")
	}
}

func BenchmarkWindow(b *testing.B) {
	var w window
	for i := range uint64(b.N) {
		w.accept(i)
	}
}
