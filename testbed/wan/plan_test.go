package wan

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func ms(n int) Params { return Params{Delay: time.Duration(n) * time.Millisecond} }

// planSpec: clients in tokyo and paris, two nodes in osaka, one in lyon.
func planSpec() Spec {
	return Spec{
		Hosts: []Host{
			{Name: "tokyo", Addrs: []netip.Addr{addr("10.1.0.1")}, Prefixes: []netip.Prefix{prefix("10.1.0.0/16")}},
			{Name: "paris", Addrs: []netip.Addr{addr("10.2.0.1"), addr("fd00:2::1")}},
			{Name: "osaka-1", Place: "osaka", Addrs: []netip.Addr{addr("10.3.0.1")}},
			{Name: "osaka-2", Place: "osaka", Addrs: []netip.Addr{addr("10.3.0.2")}},
			{Name: "lyon-1", Place: "lyon", Addrs: []netip.Addr{addr("10.4.0.1")}},
		},
		Links: []Link{
			{From: "*", To: "*", Params: ms(200)},
			{From: "tokyo", To: "osaka", Params: ms(4)}, {From: "osaka", To: "tokyo", Params: ms(5)},
			{From: "tokyo", To: "osaka-2", Params: ms(6)},
			{From: "paris", To: "lyon", Params: ms(3), Via: []string{"tgv"}},
		},
		Shapers: []Shaper{{Name: "tgv", Params: Params{Rate: 1e9}}},
		Access: []Access{
			{At: "tokyo", Up: Params{Rate: 20e6}, Down: Params{Rate: 100e6}},
			{At: "osaka", Up: Params{Rate: 1e9}, Down: Params{Rate: 1e9}},
			{At: "osaka-2", Up: Params{Rate: 2e9}, Down: Params{Rate: 2e9}},
		},
		Routes: []Route{
			{Prefix: prefix("192.0.2.0/24"), From: "*", To: []string{"lyon-1"}},
			{Prefix: prefix("192.0.2.0/24"), From: "tokyo", To: []string{"osaka-1", "osaka-2"}},
			{Prefix: prefix("192.0.2.7/32"), From: "*", To: []string{"paris"}},
			{Prefix: prefix("192.0.2.8/32"), From: "paris"},
		},
	}
}

func names(p *plan, numbers []int) (out []string) {
	for _, n := range numbers {
		k := p.book.keys[n]
		kind := []string{"link", "up", "down", "shaper", "local"}[k.kind]
		out = append(out, kind+":"+strings.TrimRight(k.from+">"+k.to, ">"))
	}
	return out
}

func mustPlan(t *testing.T, s Spec) *plan {
	t.Helper()
	p, err := newPlan(&s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPaths(t *testing.T) {
	p := mustPlan(t, planSpec())
	table := p.compile()
	for _, c := range []struct {
		from, to string
		want     []string
	}{
		{"tokyo", "osaka-1", []string{"up:tokyo", "link:tokyo>osaka", "down:osaka"}},
		{"tokyo", "osaka-2", []string{"up:tokyo", "link:tokyo>osaka-2", "down:osaka", "down:osaka-2"}},
		{"osaka-2", "tokyo", []string{"up:osaka-2", "up:osaka", "link:osaka>tokyo", "down:tokyo"}},
		{"paris", "lyon-1", []string{"shaper:tgv", "link:paris>lyon"}},
		{"lyon-1", "paris", []string{"link:*>*"}},
		// Inside a place: not the place's access line, but "*" covers it.
		{"osaka-2", "osaka-1", []string{"up:osaka-2", "link:*>*"}},
	} {
		got := table.path(p.byName[c.from], p.byName[c.to])
		if diff := cmp.Diff(c.want, names(p, got.stages)); diff != "" || !got.exists {
			t.Errorf("%s to %s (-want +got):\n%s", c.from, c.to, diff)
		}
	}
	s := planSpec()
	s.Links = s.Links[1:]
	p = mustPlan(t, s)
	table = p.compile()
	if table.path(p.byName["tokyo"], p.byName["paris"]).exists {
		t.Error("a path without a link")
	}
	got := table.path(p.byName["osaka-1"], p.byName["osaka-2"])
	if !got.exists || names(p, got.stages)[0] != "local:osaka" {
		t.Errorf("inside a place: %v", names(p, got.stages))
	}
}

func TestRoutes(t *testing.T) {
	p := mustPlan(t, planSpec())
	table := p.compile()
	for _, c := range []struct{ from, dst, want string }{
		{"paris", "10.1.99.99", "tokyo"},
		{"paris", "10.3.0.2", "osaka-2"},
		{"lyon-1", "fd00:2::1", "paris"},
		{"lyon-1", "fd00:2::2", ""},
		{"paris", "192.0.2.1", "lyon-1"},
		{"tokyo", "192.0.2.1", "osaka-1,osaka-2"},
		{"tokyo", "192.0.2.7", "paris"}, // the longer prefix, though less specific in From
		{"tokyo", "192.0.2.8", "osaka-1,osaka-2"},
		{"paris", "192.0.2.8", "nowhere"},
		{"paris", "198.51.100.1", ""},
	} {
		got := ""
		if i := table.lookup(p.byName[c.from], addr(c.dst)); i >= 0 {
			got = "nowhere"
			for n, h := range table.routes[p.byName[c.from]][i].to {
				got = map[bool]string{true: "", false: got + ","}[n == 0] + p.hosts[h].name
			}
		}
		if got != c.want {
			t.Errorf("%v from %s goes to %q, want %q", c.dst, c.from, got, c.want)
		}
	}
}

func TestChanges(t *testing.T) {
	f := &Fabric{plan: mustPlan(t, planSpec()), engine: &engine{}}
	f.engine.tables.Store(f.plan.compile())
	path := func(from, to string) *path {
		return f.engine.tables.Load().path(f.plan.byName[from], f.plan.byName[to])
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	// A line of its own for a pair keeps the shaper and leaves the others alone.
	check(f.Update("paris", "lyon-1", func(p *Params) { p.Loss = 0.5 }))
	got := names(f.plan, path("paris", "lyon-1").stages)
	if !cmp.Equal(got, []string{"shaper:tgv", "link:paris>lyon-1"}) {
		t.Errorf("own line: %v", got)
	}
	if d, ok := f.Delay("paris", "lyon-1"); !ok || d != 3*time.Millisecond {
		t.Errorf("delay %v, %v", d, ok)
	}
	check(f.Cut("osaka", "*"))
	check(f.Block("tokyo", "osaka-1", UDP))
	if path("osaka-1", "paris").blocked != Everything || path("paris", "osaka-1").blocked != 0 ||
		path("tokyo", "osaka-1").blocked != UDP || path("tokyo", "osaka-2").blocked != 0 {
		t.Error("faults are not where they were put")
	}
	check(f.Block("tokyo", "osaka-1", TCP))
	check(f.Unblock("tokyo", "osaka-1", UDP))
	check(f.Restore("osaka", "*"))
	if path("osaka-1", "paris").blocked != 0 || path("tokyo", "osaka-1").blocked != TCP {
		t.Error("faults are not undone")
	}
	// All or nothing.
	before := f.engine.tables.Load()
	err := f.Change(func(c *Change) error {
		check(c.Cut("tokyo", "*"))
		return c.Cut("nowhere", "*")
	})
	if err == nil || f.engine.tables.Load() != before {
		t.Errorf("half a change was applied: %v", err)
	}
	check(f.Detach(prefix("192.0.2.0/24"), "tokyo"))
	if i := f.engine.tables.Load().lookup(0, addr("192.0.2.1")); f.engine.tables.Load().routes[0][i].to[0] != 4 {
		t.Error("detached route is still there")
	}
	for _, bad := range []error{
		f.Set("tokyo", "mars", ms(1)), f.Set("tokyo", "osaka", Params{Loss: 2}), f.Attach(Route{From: "*"}),
		f.Attach(Route{Prefix: prefix("10.0.0.0/8"), From: "*", To: []string{"osaka"}}),
		f.Change(func(c *Change) error { return c.SetShaper("none", Params{}) }),
		f.Change(func(c *Change) error { return c.SetAccess(Access{At: "*"}) }),
	} {
		if bad == nil {
			t.Error("a wrong change was accepted")
		}
	}
}

func TestSpecIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Spec){
		"no hosts":         func(s *Spec) { s.Hosts = nil },
		"host twice":       func(s *Spec) { s.Hosts[1].Name = "tokyo" },
		"core":             func(s *Spec) { s.Hosts[1].Name = "core" },
		"star":             func(s *Spec) { s.Hosts[1].Name = "*" },
		"address twice":    func(s *Spec) { s.Hosts[1].Addrs = s.Hosts[0].Addrs },
		"host like place":  func(s *Spec) { s.Hosts[4].Name, s.Hosts[4].Place = "osaka", "lyon" },
		"unknown link end": func(s *Spec) { s.Links[1].To = "mars" },
		"unknown shaper":   func(s *Spec) { s.Links[1].Via = []string{"x"} },
		"link twice":       func(s *Spec) { s.Links[1] = s.Links[2] },
		"access twice":     func(s *Spec) { s.Access[1] = s.Access[0] },
		"shaper twice":     func(s *Spec) { s.Shapers = append(s.Shapers, s.Shapers[0]) },
		"negative delay":   func(s *Spec) { s.Links[0].Delay = -1 },
		"slow rate":        func(s *Spec) { s.Links[0].Rate = 1 },
		"burst too long":   func(s *Spec) { s.Links[0].Params = Params{Loss: 0.9, Burst: 1.5} },
		"local":            func(s *Spec) { s.Local.Queue = -1 },
		"route to place":   func(s *Spec) { s.Routes[0].To = []string{"osaka"} },
	} {
		s := planSpec()
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&s)
		if err := s.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
