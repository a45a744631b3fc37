package catalog

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// newStore runs a store of its own until the test ends.
func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s.Run)
	return s
}

// newCatalog runs a catalog over s until the test ends.
func newCatalog(t testing.TB, s *store.Store) *Catalog {
	t.Helper()
	c, err := New(Config{Store: s, Cluster: "test"})
	if err != nil {
		t.Fatal(err)
	}
	run(t, c.Run)
	return c
}

func run(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// world is a catalog with two anycast pools of two zones, a node pool and two sites.
func world(t testing.TB) *Catalog {
	t.Helper()
	ctx := t.Context()
	c := newCatalog(t, newStore(t))
	for _, s := range []model.Site{{Name: "ams", Region: "eu"}, {Name: "nyc", Region: "us"}} {
		ok(t)(c.CreateSite(ctx, s, Options{}))
	}
	for _, p := range []model.Pool{anycast("pool-a", "a", "198.51.100.0/28", "2001:db8:a::/48"),
		anycast("pool-b", "b", "203.0.113.0/28", "2001:db8:b::/48"),
		{Name: "nodes", Kind: model.PoolNode}} {
		ok(t)(c.CreatePool(ctx, p, Options{}))
	}
	return c
}

func anycast(name, zone string, prefixes ...string) model.Pool {
	p := model.Pool{Name: model.PoolName(name), Kind: model.PoolAnycast, Zone: zone}
	for _, s := range prefixes {
		p.Prefixes = append(p.Prefixes, netip.MustParsePrefix(s))
	}
	return p
}

// ok returns a function that passes its first argument on and fails on an error.
func ok(t testing.TB) func(v any, err error) any {
	return func(v any, err error) any {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// refused checks that err has the code and reason and that its text has every one of texts.
func refused(t testing.TB, err error, code Code, reason Reason, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("it was accepted, want %v %s %q", code, reason, texts)
		return
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%v is not an *Error", err)
	}
	if CodeOf(err) != code || ReasonOf(err) != reason {
		t.Errorf("%v: it is %v %q, want %v %q", err, CodeOf(err), ReasonOf(err), code, reason)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}

// difference is cmp.Diff for configuration.
func difference(want, got any) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

func accelerator(name string) model.Accelerator {
	return model.Accelerator{Name: name, Enabled: true}
}

func listener(of model.AcceleratorID, p model.Protocol, ports ...uint16) model.Listener {
	l := model.Listener{Accelerator: of, Protocol: p,
		TCPIdleTimeout: model.DefaultTCPIdleTimeout, UDPIdleTimeout: model.DefaultUDPIdleTimeout}
	for i := 0; i < len(ports); i += 2 {
		l.PortRanges = append(l.PortRanges, model.PortRange{From: ports[i], To: ports[i+1]})
	}
	return l
}

func group(of model.ListenerID, region model.RegionName, endpoints ...string) model.EndpointGroup {
	g, err := model.EndpointGroupFromProto(nil)
	if err != nil {
		panic(err)
	}
	g.Listener, g.Region = of, region
	for _, e := range endpoints {
		g.Endpoints = append(g.Endpoints, model.Endpoint{ID: model.EndpointID(e), Weight: model.DefaultWeight})
	}
	return g
}

// TestWalk makes one of everything, changes it and takes it down again.
func TestWalk(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("web"), Options{}))
	if len(a.Addresses) != 2 || a.Revision == 0 || a.Created.IsZero() || !a.Created.Equal(a.Modified) ||
		a.Project != model.DefaultProject {
		t.Fatalf("created %+v", a)
	}
	if !strings.HasPrefix(a.DNSName, "a") || !strings.HasSuffix(a.DNSName, ".nearcast.internal") || len(a.DNSName) != 35 {
		t.Fatalf("its name is %s", a.DNSName)
	}
	l := must[model.Listener](t)(c.CreateListener(ctx, listener(a.ID, model.TCP, 443, 443, 8000, 8010), Options{}))
	g := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l.ID, "eu", "192.0.2.1", "app.example.com"), Options{}))
	if len(l.ID) != 8 || len(g.ID) != 12 {
		t.Fatalf("ids %s, %s", l.ID, g.ID)
	}
	if g.HealthCheck.Port != 443 || g.Endpoints[0].Host != "192.0.2.1" || g.Endpoints[1].Host != "app.example.com" {
		t.Fatalf("the group is %+v", g)
	}
	after := must[model.Accelerator](t)(c.Accelerator(ctx, a.ID))
	if after.Revision != g.Revision || !after.Modified.After(a.Modified) || g.Revision <= l.Revision {
		t.Fatalf("revisions: accelerator %d, then %d; listener %d, group %d",
			a.Revision, after.Revision, l.Revision, g.Revision)
	}
	s := must[*State](t)(c.Load(ctx))
	if s.Revision != g.Revision || len(s.Accelerators) != 1 || len(s.Groups) != 1 || s.Groups[0].HealthCheck.Port != 443 ||
		len(s.Regions) != 2 || len(s.Pools) != 3 || s.Cluster != "test" {
		t.Fatalf("the state is %+v", s)
	}

	refused(t, c.DeleteAccelerator(ctx, a.ID, Options{}), FailedPrecondition, ReasonNotDisabled, "disable")
	ok(t)(c.UpdateAccelerator(ctx, a.ID, Options{}, func(a *model.Accelerator) error { a.Enabled = false; return nil }))
	refused(t, c.DeleteAccelerator(ctx, a.ID, Options{}), FailedPrecondition, ReasonHasListeners, "1 listeners")
	refused(t, c.DeleteListener(ctx, l.ID, Options{}), FailedPrecondition, ReasonHasGroups, "1 endpoint groups")
	for _, err := range []error{c.DeleteGroup(ctx, g.ID, Options{}), c.DeleteListener(ctx, l.ID, Options{}),
		c.DeleteAccelerator(ctx, a.ID, Options{})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Group(ctx, g.ID)
	refused(t, err, NotFound, ReasonGroupNotFound)
	_, err = c.Listener(ctx, l.ID)
	refused(t, err, NotFound, ReasonListenerNotFound)
	_, err = c.Accelerator(ctx, a.ID)
	refused(t, err, NotFound, ReasonAcceleratorNotFound)
}
