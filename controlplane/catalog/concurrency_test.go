package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// TestReadsOwnWrites: what one controller has answered, every controller shows.
func TestReadsOwnWrites(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	c, c2 := newCatalog(t, s), newCatalog(t, s)
	for i := range 50 {
		r := must[model.Region](t)(c.CreateRegion(ctx, model.Region{Name: model.RegionName(fmt.Sprint("r", i))}, Options{}))
		if got := must[model.Region](t)(c2.Region(ctx, r.Name)); got != r {
			t.Fatalf("the other controller has %+v, not %+v", got, r)
		}
		s1, s2 := must[*State](t)(c.Load(ctx)), must[*State](t)(c2.Load(ctx))
		if diff := difference(s1, s2); diff != "" || s1.Revision != r.Revision {
			t.Fatalf("at %d and %d: %s", s1.Revision, r.Revision, diff)
		}
		if err := c2.DeleteRegion(ctx, r.Name, Options{}); err != nil {
			t.Fatal(err)
		}
		_, err := c.Region(ctx, r.Name)
		refused(t, err, NotFound, ReasonRegionNotFound)
	}
}

// TestContention lets controllers fight for the last address and the last place of a quota.
func TestContention(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	var cs []*Catalog
	for range 3 {
		cs = append(cs, newCatalog(t, s))
	}
	ok(t)(cs[0].CreatePool(ctx, anycast("a", "a", "198.51.100.0/29"), Options{}))
	ok(t)(cs[0].CreatePool(ctx, anycast("b", "b", "203.0.113.0/24"), Options{}))
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := map[model.AcceleratorID]bool{}
	outcomes := map[Code]int{}
	for i := range 30 {
		wg.Go(func() {
			a, err := cs[i%3].CreateAccelerator(ctx, accelerator(fmt.Sprint("n", i)), Options{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made[a.ID] = true
				return
			}
			outcomes[CodeOf(err)]++
		})
	}
	wg.Wait()
	if len(made) != 6 || outcomes[FailedPrecondition] != 24 {
		t.Fatalf("%d were made of 6 addresses; refused: %v", len(made), outcomes)
	}
	for _, c := range cs {
		if err := invariants(must[*State](t)(c.Load(ctx))); err != nil {
			t.Error(err)
		}
	}
}

func TestWatch(t *testing.T) {
	c := world(t)
	c.cfg.Debounce = 200 * time.Millisecond // the changes below are one burst, however slow the machine is
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan *State, 100)
	ended := make(chan error, 1)
	go func() { ended <- c.Watch(ctx, func(s *State) error { told <- s; return nil }) }()
	first := <-told
	if len(first.Pools) != 3 {
		t.Fatalf("the first state has %v", first.Pools)
	}
	var last model.Region
	for i := range 30 {
		last = must[model.Region](t)(c.CreateRegion(ctx, model.Region{Name: model.RegionName(fmt.Sprint("r", i))}, Options{}))
	}
	states := 0
	for revision := first.Revision; revision < last.Revision; states++ {
		s := <-told
		if s.Revision <= revision {
			t.Fatalf("revision %d after %d", s.Revision, revision)
		}
		revision = s.Revision
	}
	if states > 29 {
		t.Errorf("30 changes at once were told as %d states", states)
	}
	// What is no configuration is not told.
	ok(t)(c.cfg.Store.Put(ctx, "verdicts/x", []byte("y")))
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if len(told) != 0 {
		t.Errorf("told of a change that was none: %+v", <-told)
	}
	enough := errors.New("enough")
	if err := c.Watch(t.Context(), func(*State) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestUnreadable: with something stored that this version cannot read, the last good State stays the
// last one told, no change is taken, and all is well again once it is gone.
func TestUnreadable(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	for key, value := range map[string]string{
		"config/listeners/00000000": "\xff\xff\xff", "config/pools/other": "",
		"config/elsewhere/x": "?", "config/tokens/x": "{", "config/gossip-keys": "[1]",
	} {
		if _, err := c.cfg.Store.Txn(ctx, nil, store.Put(key, []byte(value)), store.Put(guardKey, nil)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Load(ctx)
		refused(t, err, Internal, "", key)
		_, err = c.CreateRegion(ctx, model.Region{Name: "x"}, Options{})
		refused(t, err, Internal, "", key)
		if _, err := c.Pool(ctx, "nodes"); err != nil {
			t.Errorf("what can be read: %v", err)
		}
		if _, err := c.cfg.Store.Txn(ctx, nil, store.Delete(key), store.Put(guardKey, nil)); err != nil {
			t.Fatal(err)
		}
		if s := must[*State](t)(c.Load(ctx)); len(s.Pools) != 3 {
			t.Errorf("the state has pools %v", s.Pools)
		}
	}
}

func TestUnavailable(t *testing.T) {
	s, err := store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c := newCatalog(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = c.Load(ctx) // the store never runs
	refused(t, err, Unavailable, "")
	_, err = c.CreateRegion(ctx, model.Region{Name: "x"}, Options{})
	refused(t, err, Unavailable, "")
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "store") {
		t.Errorf("without a store: %v", err)
	}
}
