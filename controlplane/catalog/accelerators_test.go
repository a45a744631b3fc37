package catalog

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func addrs(list ...string) (all []netip.Addr) {
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestCreateAccelerator(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.CreatePool(ctx, anycast("pool-a2", "a", "192.0.2.0/28"), Options{}))
	for _, x := range []struct {
		name   string
		edit   func(*model.Accelerator)
		code   Code
		reason Reason
		text   string
	}{
		{"no name", func(a *model.Accelerator) { a.Name = "" }, InvalidArgument, "", "accelerator.name"},
		{"a bad name", func(a *model.Accelerator) { a.Name = "-x" }, InvalidArgument, "", "accelerator.name"},
		{"an unknown pool", func(a *model.Accelerator) { a.Pools = []model.PoolName{"no", "pool-a"} },
			NotFound, ReasonPoolNotFound, "accelerator.pools[0]"},
		{"one anycast pool", func(a *model.Accelerator) { a.Pools = []model.PoolName{"pool-a"} },
			InvalidArgument, "", "two pools of different zones"},
		{"two pools of a zone", func(a *model.Accelerator) { a.Pools = []model.PoolName{"pool-a", "pool-a2"} },
			InvalidArgument, "", "different zones"},
		{"mixed pools", func(a *model.Accelerator) { a.Pools = []model.PoolName{"pool-a", "nodes"} },
			InvalidArgument, "", "mixes"},
		{"an address of no pool", func(a *model.Accelerator) { a.Addresses = addrs("10.0.0.1") },
			InvalidArgument, "", "accelerator.addresses[0]"},
		{"an address of another pool", func(a *model.Accelerator) {
			a.Addresses, a.Pools = addrs("192.0.2.1"), []model.PoolName{"pool-a", "pool-b"}
		}, InvalidArgument, "", "none of the pools"},
		{"two addresses of a pool", func(a *model.Accelerator) { a.Addresses = addrs("198.51.100.1", "198.51.100.2") },
			InvalidArgument, "", "accelerator.addresses[1]"},
		{"addresses on a node pool", func(a *model.Accelerator) {
			a.Addresses, a.Pools = addrs("198.51.100.1"), []model.PoolName{"nodes"}
		}, InvalidArgument, "", "accelerator.addresses"},
		{"IPv6 without dual stack", func(a *model.Accelerator) { a.Addresses = addrs("2001:db8:a::1") },
			InvalidArgument, "", "DUAL_STACK"},
		{"IPv6 of a pool without", func(a *model.Accelerator) {
			a.IPAddressType, a.Pools = model.DualStack, []model.PoolName{"pool-a2", "pool-b"}
		}, FailedPrecondition, ReasonNoAddresses, "pool-a2 has no free IPv6"},
	} {
		a := accelerator("x")
		x.edit(&a)
		_, err := c.CreateAccelerator(ctx, a, Options{})
		refused(t, err, x.code, x.reason, x.text)
	}
	for _, x := range []struct {
		name string
		edit func(*model.Accelerator)
		want func(model.Accelerator) bool
	}{
		{"both addresses asked for", func(a *model.Accelerator) { a.Addresses = addrs("203.0.113.3", "198.51.100.3") },
			func(a model.Accelerator) bool {
				// Named addresses name the pools, and the pools their order.
				return slices.Equal(a.Addresses, addrs("203.0.113.3", "198.51.100.3"))
			}},
		{"the oldest pools", func(a *model.Accelerator) {},
			func(a model.Accelerator) bool { return a.Pools[0] == "pool-a" && a.Pools[1] == "pool-b" }},
		{"outputs are ignored", func(a *model.Accelerator) {
			a.ID, a.DNSName, a.Revision, a.Status = "mine", "my.name", 7, model.Deployed
		}, func(a model.Accelerator) bool {
			return a.ID != "mine" && a.DNSName != "my.name" && a.Revision > 7 && a.Status == model.InProgress
		}},
		{"dual stack", func(a *model.Accelerator) { a.IPAddressType = model.DualStack },
			func(a model.Accelerator) bool {
				return len(a.Addresses) == 4 && a.Addresses[1].Is4() && a.Addresses[2].Is6() &&
					netip.MustParsePrefix("2001:db8:a::/48").Contains(a.Addresses[2]) &&
					netip.MustParsePrefix("2001:db8:b::/48").Contains(a.Addresses[3])
			}},
		{"one address asked for", func(a *model.Accelerator) { a.Addresses = addrs("192.0.2.0") },
			func(a model.Accelerator) bool {
				return a.Addresses[0] == netip.MustParseAddr("192.0.2.0") && a.Pools[1] == "pool-b"
			}},
		{"an IPv6 address asked for", func(a *model.Accelerator) {
			a.IPAddressType, a.Addresses = model.DualStack, addrs("2001:db8:b::77")
		}, func(a model.Accelerator) bool {
			return len(a.Addresses) == 4 && slices.Contains(a.Addresses, netip.MustParseAddr("2001:db8:b::77"))
		}},
		{"a node pool", func(a *model.Accelerator) { a.Pools = []model.PoolName{"nodes"} },
			func(a model.Accelerator) bool { return len(a.Addresses) == 0 && a.DNSName != "" }},
	} {
		a := accelerator("x")
		x.edit(&a)
		got := must[model.Accelerator](t)(c.CreateAccelerator(ctx, a, Options{}))
		if !x.want(got) {
			t.Errorf("%s: %+v", x.name, got)
		}
	}
	a := accelerator("x")
	a.Addresses = addrs("203.0.113.3")
	_, err := c.CreateAccelerator(ctx, a, Options{})
	refused(t, err, InvalidArgument, ReasonInUse, "belongs to accelerator")
}

func TestDefaultPoolsWithoutAnycast(t *testing.T) {
	ctx := t.Context()
	c := newCatalog(t, newStore(t))
	_, err := c.CreateAccelerator(ctx, accelerator("x"), Options{})
	refused(t, err, FailedPrecondition, ReasonPoolNotFound, "create one")
	ok(t)(c.CreatePool(ctx, anycast("a", "a", "198.51.100.0/28"), Options{}))
	ok(t)(c.CreatePool(ctx, model.Pool{Name: "own", Kind: model.PoolNode}, Options{}))
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("x"), Options{}))
	if !slices.Equal(a.Pools, []model.PoolName{"own"}) {
		t.Fatalf("it is on %v", a.Pools)
	}
	ok(t)(c.CreatePool(ctx, model.Pool{Name: "own2", Kind: model.PoolNode}, Options{}))
	_, err = c.CreateAccelerator(ctx, accelerator("x"), Options{})
	refused(t, err, InvalidArgument, "", "name one")
}

// TestAllocation fills pools to the last address and checks that none is given twice.
func TestAllocation(t *testing.T) {
	ctx := t.Context()
	c := newCatalog(t, newStore(t))
	ok(t)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error { s.AcceleratorsMax = 100; return nil }))
	// 6 + 2 + 1 addresses, and two zones' worth of them.
	ok(t)(c.CreatePool(ctx, anycast("a", "a", "198.51.100.0/29", "198.51.100.100/31", "198.51.100.200/32"), Options{}))
	ok(t)(c.CreatePool(ctx, anycast("b", "b", "203.0.113.0/24"), Options{}))
	used := map[netip.Addr]bool{}
	var last model.Accelerator
	for i := range 9 {
		last = must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator(fmt.Sprint("n", i)), Options{}))
		for _, addr := range last.Addresses {
			if used[addr] {
				t.Fatalf("%v was given twice", addr)
			}
			used[addr] = true
		}
	}
	for _, never := range addrs("198.51.100.0", "198.51.100.7", "203.0.113.0", "203.0.113.255") {
		if used[never] {
			t.Errorf("%v was given out", never)
		}
	}
	_, err := c.CreateAccelerator(ctx, accelerator("x"), Options{})
	refused(t, err, FailedPrecondition, ReasonNoAddresses, "pool a has no free IPv4")
	// The network's own address can be had by name, and what was given back can be had again.
	a := accelerator("x")
	a.Addresses = addrs("198.51.100.7")
	ok(t)(c.CreateAccelerator(ctx, a, Options{}))
	ok(t)(c.UpdateAccelerator(ctx, last.ID, Options{}, func(a *model.Accelerator) error { a.Enabled = false; return nil }))
	if err := c.DeleteAccelerator(ctx, last.ID, Options{}); err != nil {
		t.Fatal(err)
	}
	again := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("y"), Options{}))
	if again.Addresses[0] != last.Addresses[0] {
		t.Fatalf("the one free address is %v, it got %v", last.Addresses[0], again.Addresses[0])
	}
	// Another pool of the zone is used once the first is full.
	ok(t)(c.CreatePool(ctx, anycast("a2", "a", "192.0.2.0/24"), Options{}))
	more := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("z"), Options{}))
	if !slices.Contains(more.Pools, "a2") {
		t.Fatalf("with pool a full it is on %v", more.Pools)
	}
}

func TestFreeAddress(t *testing.T) {
	p := anycast("p", "z", "10.0.0.0/30", "2001:db8::/32")
	none := map[netip.Addr]model.AcceleratorID{}
	one, _ := freeAddress(&p, "id", true, none)
	two, _ := freeAddress(&p, "id", true, none)
	if one != two {
		t.Errorf("the same id got %v and %v", one, two)
	}
	seen := map[netip.Addr]bool{}
	for i := range 200 {
		a, _ := freeAddress(&p, fmt.Sprint(i), false, none)
		if !p.Prefixes[1].Contains(a) {
			t.Fatalf("%v is outside", a)
		}
		seen[a] = true
	}
	if len(seen) < 199 {
		t.Errorf("200 ids begin at %d addresses of a /32", len(seen))
	}
	full := map[netip.Addr]model.AcceleratorID{}
	for _, a := range addrs("10.0.0.1", "10.0.0.2") {
		full[a] = "x"
	}
	if a, ok := freeAddress(&p, "id", true, full); ok {
		t.Errorf("a full prefix gave %v", a)
	}
	for _, c := range []struct {
		prefix, first string
		n             uint64
	}{
		{"10.0.0.0/24", "10.0.0.1", 254}, {"10.0.0.0/31", "10.0.0.0", 2}, {"10.0.0.7/32", "10.0.0.7", 1},
		{"2001:db8::/64", "2001:db8::1", 1<<32 - 1}, {"2001:db8::/127", "2001:db8::", 2},
		{"2001:db8::/120", "2001:db8::1", 255}, {"10.0.0.0/8", "10.0.0.1", 1<<24 - 2},
	} {
		r := usable(netip.MustParsePrefix(c.prefix))
		if r.first.String() != c.first || r.n != c.n {
			t.Errorf("%s: %d from %v on, want %d from %s on", c.prefix, r.n, r.first, c.n, c.first)
		}
		if last := r.at(r.n - 1); !netip.MustParsePrefix(c.prefix).Contains(last) {
			t.Errorf("%s: its last address is %v", c.prefix, last)
		}
	}
}

func TestUpdateAccelerator(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("x"), Options{}))
	update := func(o Options, edit func(*model.Accelerator)) (model.Accelerator, error) {
		return c.UpdateAccelerator(ctx, a.ID, o, func(a *model.Accelerator) error { edit(a); return nil })
	}
	same := must[model.Accelerator](t)(update(Options{}, func(a *model.Accelerator) { a.Tags = map[string]string{} }))
	if same.Revision != a.Revision {
		t.Error("changing nothing changed the revision")
	}
	for fieldName, edit := range map[string]func(*model.Accelerator){
		"id":           func(a *model.Accelerator) { a.ID = "other" },
		"pools":        func(a *model.Accelerator) { a.Pools = a.Pools[:1] },
		"addresses":    func(a *model.Accelerator) { a.Addresses = nil },
		"dns_name":     func(a *model.Accelerator) { a.DNSName = "x.y" },
		"project":      func(a *model.Accelerator) { a.Project = "other" },
		"created_time": func(a *model.Accelerator) { a.Created = a.Created.AddDate(1, 0, 0) },
	} {
		_, err := update(Options{}, edit)
		refused(t, err, InvalidArgument, "", "accelerator."+fieldName, "cannot be changed")
	}
	_, err := update(Options{ExpectedRevision: a.Revision + 1}, func(a *model.Accelerator) { a.Name = "y" })
	refused(t, err, Aborted, ReasonRevision, "somebody changed it")
	dual := must[model.Accelerator](t)(update(Options{ExpectedRevision: a.Revision}, func(a *model.Accelerator) {
		a.Name, a.IPAddressType = "y", model.DualStack
	}))
	if dual.Name != "y" || len(dual.Addresses) != 4 || !slices.Equal(dual.Addresses[:2], a.Addresses) ||
		dual.Revision <= a.Revision || !dual.Modified.After(a.Modified) || !dual.Created.Equal(a.Created) {
		t.Errorf("dual stack: %+v, before %+v", dual, a)
	}
	single := must[model.Accelerator](t)(update(Options{}, func(a *model.Accelerator) { a.IPAddressType = model.IPv4 }))
	if !slices.Equal(single.Addresses, a.Addresses) {
		t.Errorf("back at IPv4: %v, before %v", single.Addresses, a.Addresses)
	}
	_, err = update(Options{}, func(a *model.Accelerator) { a.Name = "" })
	refused(t, err, InvalidArgument, "", "accelerator.name")
	_, err = c.UpdateAccelerator(ctx, "none", Options{}, func(*model.Accelerator) error { return nil })
	refused(t, err, NotFound, ReasonAcceleratorNotFound)
	refused(t, c.DeleteAccelerator(ctx, a.ID, Options{ExpectedRevision: 1}), Aborted, ReasonRevision)
}

// TestNothingIsShared: what callers do to what they gave or got does not reach the catalog.
func TestNothingIsShared(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	in := accelerator("x")
	in.Tags = map[string]string{"k": "v"}
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, in, Options{}))
	want := must[model.Accelerator](t)(c.Accelerator(ctx, a.ID))
	in.Tags["k"], a.Tags["k"] = "changed", "changed"
	a.Addresses[0] = netip.MustParseAddr("10.9.9.9")
	list, _, err := c.ListAccelerators(ctx, PageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list[0].Pools[0] = "changed"
	l := listener(a.ID, model.TCP, 80, 80)
	l.Tags = in.Tags
	lis := must[model.Listener](t)(c.CreateListener(ctx, l, Options{}))
	lis.PortRanges[0].From = 1
	g := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(lis.ID, "eu", "192.0.2.1"), Options{}))
	g.Endpoints[0].Health = model.HealthHealthy
	var kept *model.EndpointGroup
	ok(t)(c.UpdateGroup(ctx, g.ID, Options{}, func(g *model.EndpointGroup) error { kept = g; g.TrafficDial = 5; return nil }))
	kept.Endpoints[0].Weight = 3
	got := must[model.Accelerator](t)(c.Accelerator(ctx, a.ID))
	want.Revision, want.Modified, got.Revision, got.Modified = 0, a.Modified, 0, a.Modified
	if diff := difference(want, got); diff != "" {
		t.Error(diff)
	}
	if got := must[model.Listener](t)(c.Listener(ctx, lis.ID)); got.PortRanges[0].From != 80 {
		t.Errorf("the listener is %+v", got)
	}
	if got := must[model.EndpointGroup](t)(c.Group(ctx, g.ID)); got.Endpoints[0].Weight != model.DefaultWeight ||
		got.Endpoints[0].Health != model.HealthInitial {
		t.Errorf("the group is %+v", got)
	}
}

func TestIdempotency(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	c, c2 := newCatalog(t, s), newCatalog(t, s)
	ok(t)(c.CreatePool(ctx, model.Pool{Name: "own", Kind: model.PoolNode}, Options{}))
	o := Options{IdempotencyToken: "token-1"}
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("x"), o))
	again := must[model.Accelerator](t)(c2.CreateAccelerator(ctx, accelerator("x"), o))
	if again.ID != a.ID || again.Revision != a.Revision {
		t.Fatalf("sent again it made %s at %d, not %s at %d", again.ID, again.Revision, a.ID, a.Revision)
	}
	_, err := c.CreateAccelerator(ctx, accelerator("other"), o)
	refused(t, err, InvalidArgument, ReasonTokenReused, "idempotency_token", string(a.ID))
	other := accelerator("other")
	other.Project = "p2" // tokens are a project's own
	ok(t)(c.CreateAccelerator(ctx, other, o))

	l := must[model.Listener](t)(c.CreateListener(ctx, listener(a.ID, model.TCP, 80, 80), o))
	if got := must[model.Listener](t)(c.CreateListener(ctx, listener(a.ID, model.TCP, 80, 80), o)); got.ID != l.ID {
		t.Fatal("a listener was made twice")
	}
	_, err = c.CreateListener(ctx, listener(a.ID, model.TCP, 81, 81), o)
	refused(t, err, InvalidArgument, ReasonTokenReused)
	g := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l.ID, "eu", "192.0.2.1"), o))
	// What it made may have changed since: the same request still means the same object.
	ok(t)(c.RemoveEndpoints(ctx, g.ID, []model.EndpointID{"192.0.2.1"}, Options{}))
	got := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l.ID, "eu", "192.0.2.1"), o))
	if got.ID != g.ID || len(got.Endpoints) != 0 {
		t.Fatalf("sent again it is %+v", got)
	}
	// A token lives as long as the object.
	if err := c.DeleteGroup(ctx, g.ID, Options{}); err != nil {
		t.Fatal(err)
	}
	fresh := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l.ID, "eu", "192.0.2.9"), o))
	if fresh.ID == g.ID {
		t.Fatal("a deleted group came back")
	}
	_, err = c.CreateAccelerator(ctx, accelerator("x"), Options{IdempotencyToken: strings.Repeat("x", 256)})
	refused(t, err, InvalidArgument, "", "idempotency_token")
	// A create that was refused has used up no token.
	bad := accelerator("")
	_, err = c.CreateAccelerator(ctx, bad, Options{IdempotencyToken: "t2"})
	refused(t, err, InvalidArgument, "")
	ok(t)(c.CreateAccelerator(ctx, accelerator("good"), Options{IdempotencyToken: "t2"}))
}

func TestPages(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	var want []model.RegionName
	for _, i := range rand.Perm(25) {
		r := must[model.Region](t)(c.CreateRegion(ctx, model.Region{Name: model.RegionName(fmt.Sprint("r", i))}, Options{}))
		want = append(want, r.Name)
	}
	want = append([]model.RegionName{"eu", "us"}, want...) // oldest first
	for _, size := range []int{1, 7, 26, 27, 28, 1000} {
		var got []model.RegionName
		p := PageOptions{Size: size}
		for {
			page, next, err := c.ListRegions(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range page {
				got = append(got, r.Name)
			}
			if next == "" {
				break
			}
			if len(page) != size || len(next) > 255 {
				t.Fatalf("a page of %d with token %q", len(page), next)
			}
			p.Token = next
		}
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %v, want %v", size, got, want)
		}
	}
	for _, p := range []PageOptions{{Size: -1}, {Size: 1001}} {
		_, _, err := c.ListRegions(ctx, p)
		refused(t, err, InvalidArgument, "", "page_size")
	}
	_, _, err := c.ListRegions(ctx, PageOptions{Token: "../.."})
	refused(t, err, InvalidArgument, ReasonInvalidPageToken)
	_, _, err = c.ListListeners(ctx, "none", PageOptions{})
	refused(t, err, NotFound, ReasonAcceleratorNotFound)
	_, _, err = c.ListGroups(ctx, "none", PageOptions{})
	refused(t, err, NotFound, ReasonListenerNotFound)
}
