package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var addrs = func(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// TestNames goes through a name's life: asked once for all who want it, remembered, asked again, kept
// while it does not resolve, and given up at last.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, answer, fail := 0, addrs("10.0.0.2", "::ffff:10.0.0.1", "10.0.0.2"), error(nil)
		n := newNames(nil)
		n.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
			asked++
			time.Sleep(100 * time.Millisecond)
			return slices.Clone(answer), fail
		}
		expect := func(what string, want []netip.Addr, lookups int) {
			t.Helper()
			got, err := n.resolve(t.Context(), "app.example")
			if !slices.Equal(got, want) || (err == nil) != (want != nil) || asked != lookups {
				t.Fatalf("%s: %v, %v after %d look-ups; want %v after %d", what, got, err, asked, want, lookups)
			}
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if got, err := n.resolve(t.Context(), "app.example"); err != nil || len(got) != 2 {
					t.Errorf("%v, %v", got, err)
				}
			})
		}
		all.Wait()
		both := addrs("10.0.0.1", "10.0.0.2") // unmapped, sorted, once each
		expect("remembered", both, 1)
		time.Sleep(nameTTL)
		answer = addrs("10.0.0.3")
		expect("asked again", answer, 2)
		fail = errors.New("SERVFAIL")
		time.Sleep(nameTTL)
		expect("kept while it fails", answer, 3)
		expect("and not asked for each flow", answer, 3)
		time.Sleep(nameRefusedTTL)
		expect("but soon again", answer, 4)
		time.Sleep(nameStaleTTL)
		expect("given up", nil, 5)
		expect("which is remembered, too", nil, 5)
		time.Sleep(nameRefusedTTL)
		fail = nil
		expect("back", answer, 6)
	})
}

// TestNameWaitsNoLonger: who has no time left goes with an error, though the resolver is silent; others
// who have time still get the answer.
func TestNameWaitsNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNames(nil)
		n.lookup = func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(2 * time.Second):
				return addrs("10.0.0.1"), nil
			}
		}
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second+time.Duration(i))
				defer cancel()
				if _, err := n.resolve(ctx, "slow.example"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v, want the end of the time", err)
				}
			})
		}
		all.Go(func() {
			if got, err := n.resolve(t.Context(), "slow.example"); err != nil || len(got) != 1 {
				t.Errorf("%v, %v", got, err)
			}
		})
		all.Wait()
	})
}

// TestNamesAreBounded: many names push each other out, and many look-ups wait for a place.
func TestNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNames(nil)
		var mu sync.Mutex
		running, most := 0, 0
		n.lookup = func(context.Context, string, string) ([]netip.Addr, error) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
			return addrs("10.0.0.1"), nil
		}
		var all sync.WaitGroup
		for i := range 300 {
			all.Go(func() {
				if _, err := n.resolve(t.Context(), fmt.Sprint("host-", i)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for i := range namesMax {
			if _, err := n.resolve(t.Context(), fmt.Sprint("another-", i)); err != nil {
				t.Error(err)
			}
		}
		if len(n.known) > namesMax {
			t.Errorf("%d names are remembered", len(n.known))
		}
		if most != namesInParallel {
			t.Errorf("%d look-ups at once", most)
		}
	})
}
