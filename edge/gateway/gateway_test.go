package gateway

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// TestRefusedIsRetried: a flow that an endpoint refuses gets another one, whoever is tried first; the
// next flows do not try the refusing one again for a moment.
func TestRefusedIsRetried(t *testing.T) {
	w := newWorld(t)
	w.group("g", "x", 1, 2, 3)
	w.apply()
	w.serve(2) // 1 and 3 refuse
	for n := range 40 {
		if got, code := w.dial(w.open("g", n)); code != wire.OpenOK || got != "127.0.2.2" {
			t.Fatalf("flow %d: %s, %v", n, got, code)
		}
	}
	// Each of the two was tried about once in the two seconds, not by 40 flows.
	if n := w.metric("dials_failed_total", "refused"); n < 2 || n > 20 {
		t.Errorf("%v tries were refused in 40 flows", n)
	}
}

// TestNobodyTakesIt: the last refusal is told, with its endpoint.
func TestNobodyTakesIt(t *testing.T) {
	w := newWorld(t)
	w.group("g", "x", 1, 2)
	w.apply()
	if got, code := w.dial(w.open("g", 1)); code != wire.OpenRefused || !strings.HasPrefix(got, "127.0.2.") {
		t.Errorf("%q, %v; want a refusal that names the endpoint", got, code)
	}
}

// TestRefusals: what is asked wrongly, or of the wrong gateway, is refused with the code that says why.
func TestRefusals(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxFlows = 3 })
	w.group("good", "x", 1)
	w.group("far", "y", 1)    // a region that has its own gateway
	w.group("direct", "z", 1) // one that has none
	w.group("empty", "x")
	w.group("zero", "x", 1).Endpoints[0].Weight = 0
	w.group("sick", "x", 1).Endpoints[0].Health = model.HealthUnhealthy
	w.group("orphan", "x", 1).Listener = "gone"
	w.apply()
	w.serve(1)
	ask := func(group string, change func(*wire.Open)) wire.OpenCode {
		o := w.open(group, 1)
		if change != nil {
			change(o)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		conn, _, err := w.g.DialLocal(ctx, o)
		if err == nil {
			conn.Close()
			w.g.ReleaseLocal()
			return wire.OpenOK
		}
		return err.(*OpenError).Code
	}
	failOpen := func(o *wire.Open) { o.Flags |= wire.OpenFailOpen }
	cases := []struct {
		name, group string
		change      func(*wire.Open)
		want        wire.OpenCode
	}{
		{"as it should be", "good", nil, wire.OpenOK},
		{"no hops left", "good", func(o *wire.Open) { o.HopsLeft = 0 }, wire.OpenHops},
		{"no such group", "nowhere", nil, wire.OpenUnknown},
		{"another listener's group", "good", func(o *wire.Open) { o.Listener = "m" }, wire.OpenUnknown},
		{"a group without its listener", "orphan", nil, wire.OpenUnknown},
		{"another region's group", "far", nil, wire.OpenUnknown},
		{"a region without a gateway", "direct", nil, wire.OpenOK},
		{"no endpoint", "empty", nil, wire.OpenNoEndpoint},
		{"no endpoint, failing open", "empty", failOpen, wire.OpenNoEndpoint},
		{"weight zero", "zero", nil, wire.OpenNoEndpoint},
		{"weight zero, failing open", "zero", failOpen, wire.OpenOK},
		{"unhealthy", "sick", nil, wire.OpenNoEndpoint},
		{"unhealthy, failing open", "sick", failOpen, wire.OpenOK},
	}
	for _, c := range cases {
		if got := ask(c.group, c.change); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	t.Run("a region without a gateway, for an edge elsewhere", func(t *testing.T) {
		if _, _, refusal := w.g.find(w.open("direct", 1), false); refusal == nil || refusal.Code != wire.OpenUnknown {
			t.Errorf("%v", refusal)
		}
	})
	t.Run("draining", func(t *testing.T) {
		w.g.SetDraining(true)
		defer w.g.SetDraining(false)
		if _, _, refusal := w.g.find(w.open("good", 1), false); refusal == nil || refusal.Code != wire.OpenDraining {
			t.Errorf("an edge is told %v", refusal)
		}
		o := w.open("good", 1)
		failOpen(o)
		if _, _, refusal := w.g.find(o, false); refusal != nil {
			t.Errorf("a flow that has nowhere else is told %v", refusal)
		}
		if got := ask("good", nil); got != wire.OpenOK {
			t.Errorf("this node's own relay is told %v", got)
		}
	})
	t.Run("full", func(t *testing.T) {
		for range 3 {
			w.dial(w.open("good", 1))
		}
		if got := ask("good", nil); got != wire.OpenOverloaded {
			t.Errorf("%v", got)
		}
	})
}

// TestWeightsAndAffinity: flows go by weight, the same flow to the same endpoint.
func TestWeightsAndAffinity(t *testing.T) {
	w := newWorld(t)
	g := w.group("g", "x", 1, 2, 3)
	g.Endpoints[0].Weight, g.Endpoints[1].Weight, g.Endpoints[2].Weight = 255, 0, 85
	w.apply()
	p, group, refusal := w.g.find(w.open("g", 0), true)
	if refusal != nil {
		t.Fatal(refusal)
	}
	const flows = 100_000
	got := map[model.EndpointID]int{}
	for i := range flows {
		o := w.open("g", 0)
		o.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 40_000)
		e, _ := w.g.newPick(p, group, o).next()
		again, _ := w.g.newPick(p, group, o).next()
		if e != again {
			t.Fatal("the same flow got two endpoints")
		}
		got[e.ID]++
	}
	if n := got["127.0.2.2"]; n != 0 {
		t.Errorf("weight 0 got %d flows", n)
	}
	if share := float64(got["127.0.2.1"]) / flows; share < 0.74 || share > 0.76 {
		t.Errorf("weight 255 of 340 got %.1f %%", 100*share)
	}
}

// TestVerdicts: this node's own word beats the snapshot's, is told once, and can be taken back.
func TestVerdicts(t *testing.T) {
	w := newWorld(t)
	w.group("g", "x", 1, 2)
	w.group("far", "y", 1)
	w.apply()
	expect := func(want map[model.GroupID]bool) {
		t.Helper()
		select {
		case got := <-w.told:
			if !maps.Equal(got, want) {
				t.Errorf("told %v, want %v", got, want)
			}
		default:
			if want != nil {
				t.Errorf("nothing was told, want %v", want)
			}
		}
	}
	expect(map[model.GroupID]bool{"g": true}) // not of the other region
	set := func(e model.EndpointID, s model.HealthState) { w.g.SetVerdict("g", e, s) }
	set("127.0.2.1", model.HealthUnhealthy)
	expect(nil) // one is left
	set("127.0.2.2", model.HealthUnhealthy)
	expect(map[model.GroupID]bool{"g": false})
	w.apply()
	expect(nil) // the same snapshot again does not wipe the word
	set("127.0.2.2", model.HealthInitial)
	expect(map[model.GroupID]bool{"g": true}) // the snapshot's word counts again
	set("127.0.2.9", model.HealthUnhealthy)   // a late word on what was removed
	w.g.SetVerdict("gone", "127.0.2.1", model.HealthUnhealthy)
	expect(nil)
	w.snap.Groups[0].Endpoints = w.snap.Groups[0].Endpoints[:1] // only the one held unhealthy stays
	w.apply()
	expect(map[model.GroupID]bool{"g": false})
}

// lookup has names resolve as a table says.
func (w *world) lookup(table map[string][]string) {
	w.g.names.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) {
		addrs, ok := table[host]
		if !ok {
			return nil, fmt.Errorf("no such host")
		}
		var out []netip.Addr
		for _, a := range addrs {
			out = append(out, netip.MustParseAddr(a))
		}
		return out, nil
	}
}

// TestForbiddenAtDial: an endpoint's address is judged when it is dialled, since the snapshot may be
// older than the rule and a name may lead anywhere by now.
func TestForbiddenAtDial(t *testing.T) {
	w := newWorld(t)
	w.snap.Nodes[1].BackboneAddresses = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), w.port)}
	w.snap.Nodes[1].GossipAddress = netip.AddrPortFrom(netip.MustParseAddr("10.9.9.8"), w.port)
	w.lookup(map[string][]string{
		"rebound": {"169.254.169.254"}, "mapped": {"::ffff:127.0.0.1"}, "nat64": {"64:ff9b::7f00:1"},
		"mixed": {"127.0.0.1", "127.0.2.1", "::1", "169.254.169.254"}, "nothing": {},
	})
	w.serve(1)
	cases := map[string]wire.OpenCode{
		"127.0.0.1": wire.OpenForbidden, "127.0.3.1": wire.OpenForbidden, "::1": wire.OpenForbidden,
		"169.254.169.254": wire.OpenForbidden, "fe80::1": wire.OpenForbidden, "224.0.0.1": wire.OpenForbidden,
		"0.0.0.0": wire.OpenForbidden, "255.255.255.255": wire.OpenForbidden, "fd00:ec2::254": wire.OpenForbidden,
		"198.51.100.1": wire.OpenForbidden, "10.9.9.9": wire.OpenForbidden, "10.9.9.8": wire.OpenForbidden,
		"2002:7f00:1::": wire.OpenForbidden, "rebound": wire.OpenForbidden, "mapped": wire.OpenForbidden,
		"nat64": wire.OpenForbidden, "mixed": wire.OpenOK, "nothing": wire.OpenUnreachable, "unknown": wire.OpenUnreachable,
	}
	for i, host := range slices.Sorted(maps.Keys(cases)) {
		g := w.group(fmt.Sprintf("g%d", i), "x", 1)
		g.Endpoints[0].ID, g.Endpoints[0].Host = model.EndpointID(host), host
		w.apply()
		if _, code := w.dial(w.open(string(g.ID), i)); code != cases[host] {
			t.Errorf("%s: %v, want %v", host, code, cases[host])
		}
		// The same by datagrams: no socket may be opened either.
		key := uint64(1000 + i)
		o := w.open(string(g.ID), i)
		o.Proto = 17
		w.g.HandleDatagrams("gw", [][]byte{(&wire.DatagramOpen{FlowID: key, Open: *o, Payload: []byte("x")}).Append(nil)})
		if cases[host] != wire.OpenOK {
			w.eventually(host+": the flow is refused", func() bool { return w.g.sessions.get(sessionKey{"gw", key}) == nil })
		}
	}
	if n := w.metric("udp_to_endpoint_total"); n > 1 {
		t.Errorf("%v datagrams were sent, want at most the one for the good name", n)
	}
}

// TestDialTimesOut: an endpoint that does not answer costs a try, and all tries together are bounded.
func TestDialTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := idleWorld(t, func(c *Config) { c.DialTimeout, c.OpenBudget = 100*time.Millisecond, 270*time.Millisecond })
		w.g.names.lookup = func(ctx context.Context, _, host string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		g := w.group("g", "x", 1, 2, 3, 4, 5, 6, 7, 8)
		for i := range g.Endpoints {
			g.Endpoints[i].Host = fmt.Sprintf("slow-%d", i)
			g.Endpoints[i].ID = model.EndpointID(g.Endpoints[i].Host)
		}
		w.apply()
		begin := time.Now()
		if _, code := w.dial(w.open("g", 1)); code != wire.OpenTimeout {
			t.Errorf("%v, want a timeout", code)
		}
		// Each try has 50 ms while there are others, and the budget ends the sixth.
		if n, took := w.metric("dials_failed_total", "timeout"), time.Since(begin); n != 6 || took != 270*time.Millisecond {
			t.Errorf("%v tries, after %v", n, took)
		}
	})
}

// TestClientAddress: the endpoint is told the client's address as it wants, before anything else.
func TestClientAddress(t *testing.T) {
	w := newWorld(t)
	heard := w.serve(1)
	for mode, want := range map[model.ClientAddressMode]string{
		model.ClientAddressNone:    "hello",
		model.ClientAddressProxyV1: fmt.Sprintf("PROXY TCP4 192.0.2.7 198.51.100.1 1031 %d\r\nhello", w.port),
		model.ClientAddressProxyV2: "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x04\x07" +
			string([]byte{byte(w.port >> 8), byte(w.port)}) + "hello",
	} {
		w.snap.Groups = nil
		w.group("g", "x", 1).Endpoints[0].ClientAddress = mode
		w.apply()
		conn, _, err := w.g.DialLocal(t.Context(), w.open("g", 7))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		w.g.ReleaseLocal()
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("mode %v: %q, want %q", mode, got, want)
			}
		case <-time.After(patience):
			t.Fatalf("mode %v: the endpoint hears nothing", mode)
		}
	}
	// Transparency needs one family on both sides.
	w.group("t", "x", 1).Endpoints[0].ClientAddress = model.ClientAddressTransparent
	w.apply()
	o := w.open("t", 1)
	o.Src = netip.MustParseAddrPort("[2001:db8::1]:5000")
	if _, code := w.dial(o); code != wire.OpenUnreachable {
		t.Errorf("an IPv6 client at an IPv4 endpoint, transparently: %v", code)
	}
}

// TestPortOverride: the endpoint's port is the override's, where there is one.
func TestPortOverride(t *testing.T) {
	w := newWorld(t)
	w.serve(1)
	g := w.group("g", "x", 1)
	g.PortOverrides = []model.PortOverride{{ListenerPort: 443, EndpointPort: w.port}}
	w.apply()
	for port, want := range map[uint16]wire.OpenCode{443: wire.OpenOK, w.port: wire.OpenOK, 1: wire.OpenRefused} {
		o := w.open("g", 1)
		o.Dst = netip.AddrPortFrom(o.Dst.Addr(), port)
		if _, code := w.dial(o); code != want {
			t.Errorf("port %d: %v, want %v", port, code, want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for want, c := range map[string]Config{
		"own id":               {},
		"must not be negative": {Self: "x", MaxFlows: -1},
		"timeouts":             {Self: "x", OpenBudget: -time.Second},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q in it", c, err, want)
		}
	}
	if _, err := New(Config{Self: "x", Resolver: &net.Resolver{}}); err != nil {
		t.Error(err)
	}
}
