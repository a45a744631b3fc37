package scenario

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/wan"
	"github.com/nearcast/nearcast/testbed/world"
)

// addresses is an accelerator whose only endpoint says who it thinks the client is.
type addresses struct {
	*deployment
	at       []netip.Addr // accelerated addresses
	group    string
	endpoint world.Host
}

// TestAddresses shows what endpoints see of clients, and that the families of client and endpoint need
// not be the same.
func TestAddresses(t *testing.T) {
	d := raise(t, "main", func(s *world.Spec) {
		for i := range s.Sites {
			s.Sites[i].Nodes = 1 // so that a transparent flow's answers have one way back
		}
	}, world.Options{NodePools: true})
	d.witness(t, "eu-fra-1-app-1")
	a := d.addresses(t)
	t.Run("both families", a.families)
	t.Run("PROXY protocol to the endpoint", a.proxyOut)
	t.Run("PROXY protocol from trusted networks", a.proxyIn)
	t.Run("port ranges and overrides", a.ports)
	t.Run("transparent client addresses", a.transparent)
	t.Run("node pool", d.nodePool)
}

func (d *deployment) run(t *testing.T, out any, args ...string) {
	t.Helper()
	text, err := d.CLI(d.ctx, append(args, "-o", "json")...)
	if err == nil && out != nil {
		err = json.Unmarshal([]byte(text), out)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (d *deployment) addresses(t *testing.T) *addresses {
	t.Helper()
	a := &addresses{deployment: d, endpoint: d.Host("eu-fra-1-app-1")}
	var made struct {
		ID        string       `json:"id"`
		Addresses []netip.Addr `json:"addresses"`
	}
	d.run(t, &made, "accelerator", "create", "who", "--dual-stack", "--pool", "anycast-a", "--pool", "anycast-b")
	a.at = made.Addresses
	d.run(t, &made, "listener", "create", "--accelerator", "who", "--protocol", "tcp_udp",
		"--ports", fmt.Sprintf("%d-%d", witnessPort, witnessLast), "--proxy-protocol-from", d.trusted())
	d.run(t, &made, "group", "create", "--listener", made.ID, "--region", "eu-fra-1", "--health-protocol", "http",
		"--health-port", fmt.Sprint(load.PortHTTP), "--health-path", "/health", "--health-interval", "1s",
		"--endpoint", a.endpoint.V4.String(), "--port-override", fmt.Sprintf("%d:%d", witnessOverride, witnessOther), "--wait")
	a.group = made.ID
	return a
}

// trusted is the network of those clients whose PROXY headers are believed: a few of the city's.
func (d *deployment) trusted() string {
	return netip.PrefixFrom(nthAddr(d.CityClients("jakarta"), 0xff00), 24).String()
}

// accelerated returns an accelerated address of a family, and the witness's port there.
func (a *addresses) accelerated(v6 bool) netip.AddrPort {
	for _, addr := range a.at {
		if addr.Is6() == v6 {
			return netip.AddrPortFrom(addr, witnessPort)
		}
	}
	return netip.AddrPort{}
}

// use makes the group's only endpoint this one, told of clients in this way, and waits until the fleet
// serves so.
func (a *addresses) use(t *testing.T, endpoint netip.Addr, mode string) {
	t.Helper()
	args := []string{"group", "update", a.group, "--endpoint", endpoint.String(), "--client-address", mode, "--wait"}
	a.run(t, nil, args...)
	// In transparent mode only clients of the endpoint's family are served.
	to := a.accelerated(mode == "transparent" && endpoint.Is6())
	eventually(t, 60*time.Second, "the endpoint serves", func() error {
		_, err := a.ask("tcp", netip.AddrPort{}, to, "")
		return err
	})
}

// families: clients of either family reach an endpoint of either, by TCP and UDP.
func (a *addresses) families(t *testing.T) {
	if len(a.at) != 4 {
		t.Fatalf("a dual-stack accelerator has addresses %v, want two of each family", a.at)
	}
	for _, endpoint := range []netip.Addr{a.endpoint.V4, a.endpoint.V6} {
		a.use(t, endpoint, "none")
		for _, addr := range a.at {
			for _, network := range []string{"tcp", "udp"} {
				got, err := a.ask(network, netip.AddrPort{}, netip.AddrPortFrom(addr, witnessPort), "")
				if err != nil {
					t.Errorf("%s to %v, endpoint %v: %v", network, addr, endpoint, err)
				} else if got.from.Addr().Is4() != endpoint.Is4() || got.client.Addr().Is4() != addr.Is4() {
					t.Errorf("%s to %v: client %v, seen as %v", network, addr, got.client, got.from)
				}
			}
		}
	}
	a.use(t, a.endpoint.V4, "none")
}

// proxyOut: the header names the client and the address it meant, and nothing else comes before the
// client's bytes. Version 1 is for TCP only, so it has a listener of its own.
func (a *addresses) proxyOut(t *testing.T) {
	const portV1 = 7150
	var made struct {
		ID string `json:"id"`
	}
	a.run(t, &made, "listener", "create", "--accelerator", "who", "--protocol", "tcp", "--ports", fmt.Sprint(portV1))
	a.run(t, nil, "group", "create", "--listener", made.ID, "--region", "eu-fra-1", "--health-protocol", "http",
		"--health-port", fmt.Sprint(load.PortHTTP), "--health-path", "/health", "--health-interval", "1s",
		"--endpoint", a.endpoint.V4.String(), "--client-address", "proxy_v1",
		"--port-override", fmt.Sprintf("%d:%d", portV1, witnessOther+1), "--wait")
	a.use(t, a.endpoint.V4, "proxy_v2")
	n := 0
	for _, v6 := range []bool{false, true} {
		for _, c := range []struct {
			network string
			port    uint16
		}{{"tcp", portV1}, {"tcp", witnessPort}, {"udp", witnessPort}} {
			to := netip.AddrPortFrom(a.accelerated(v6).Addr(), c.port)
			var got seen
			eventually(t, 20*time.Second, fmt.Sprintf("%s to %v", c.network, to), func() (err error) {
				got, err = a.ask(c.network, netip.AddrPort{}, to, "")
				return err
			})
			want := headerV2(c.network, got.client, to)
			if c.port == portV1 {
				want = headerV1(got.client, to)
			}
			if got.before != want {
				t.Errorf("%s to %v: %q, want %q", c.network, to, got.before, want)
			}
			n++
		}
	}
	t.Logf("%d headers of version 1 and 2, TCP and UDP, IPv4 and IPv6, as the specification has them", n)
}

// proxyIn: a header from a trusted network names the client; from anybody else it is part of the data.
func (a *addresses) proxyIn(t *testing.T) {
	a.use(t, a.endpoint.V4, "proxy_v2")
	defer a.use(t, a.endpoint.V4, "none")
	to := a.accelerated(false)
	said, meant := netip.MustParseAddrPort("203.0.113.99:4711"), netip.MustParseAddrPort("192.0.2.80:443")
	trusted := netip.AddrPortFrom(netip.MustParsePrefix(a.trusted()).Addr().Next(), 0)
	for version, header := range map[string]string{"1": headerV1(said, meant), "2": headerV2("tcp", said, meant)} {
		got, err := a.ask("tcp", trusted, to, header)
		// The endpoint hears of the client that was named, behind this accelerated address.
		if err != nil || !strings.HasPrefix(got.before, headerV2("tcp", said, meant)[:20]) {
			t.Errorf("version %s, trusted: %q, %v", version, got.before, err)
		}
		got, err = a.ask("tcp", netip.AddrPort{}, to, header)
		if err != nil || got.before != headerV2("tcp", got.client, to)+header {
			t.Errorf("version %s, from anybody: %q, %v", version, got.before, err)
		}
	}
	if got, err := a.ask("tcp", trusted, to, "no header at all, "); err == nil {
		t.Errorf("a trusted client without a header was served: %+v", got)
	}
}

// ports: each port of a range leads to the same one at the endpoint, but for overrides.
func (a *addresses) ports(t *testing.T) {
	for port, want := range map[uint16]uint16{witnessPort: witnessPort, witnessPort + 1: witnessPort + 1,
		witnessOverride: witnessOther} {
		for _, network := range []string{"tcp", "udp"} {
			got, err := a.ask(network, netip.AddrPort{}, netip.AddrPortFrom(a.at[0], port), "")
			if err != nil || got.port != want {
				t.Errorf("%s port %d came to %d, %v; want %d", network, port, got.port, err, want)
			}
		}
	}
	if got, err := a.ask("tcp", netip.AddrPort{}, netip.AddrPortFrom(a.at[0], witnessLast+1), ""); err == nil {
		t.Errorf("a port outside of the range is served: %+v", got)
	}
}

// transparent: the endpoint sees the client's own address and port. Its answers must come back through
// the gateway, which takes them for its own: that is what the network has to be told.
func (a *addresses) transparent(t *testing.T) {
	gateway := a.NS("fra-1")
	for _, v6 := range []bool{false, true} {
		client, endpoint, all := a.Host("jakarta").V4, a.endpoint.V4, netip.MustParsePrefix("0.0.0.0/0")
		if v6 {
			client, endpoint, all = a.Host("jakarta").V6, a.endpoint.V6, netip.MustParsePrefix("::/0")
		}
		// What the endpoint sends to clients goes to the gateway …
		a.do(t, a.Fabric.Change(func(c *wan.Change) error {
			return c.Attach(wan.Route{Prefix: netip.PrefixFrom(client, client.BitLen()), From: "eu-fra-1-app-1",
				To: []string{"fra-1"}})
		}))
		// … and there to the sockets that have the clients' addresses:
		// ip rule add from ENDPOINT iif eth0 lookup 100; ip route add local default dev lo table 100
		a.do(t, gateway.AddRoute(netns.Route{Dst: all, Local: true, Table: 100}))
		a.do(t, gateway.AddRule(netns.Rule{Pref: 50, V6: v6, Iif: "eth0", From: netip.PrefixFrom(endpoint, endpoint.BitLen()),
			Table: 100}))
		// A flow that began before the change, and is not silent for long, is told anew as well.
		a.use(t, endpoint, "none")
		kept := netip.AddrPortFrom(client, 19_999)
		if got, err := a.ask("udp", kept, a.accelerated(v6), ""); err != nil || got.from.Addr() == client {
			t.Errorf("before the change the endpoint saw %v, %v", got.from, err)
		}
		a.use(t, endpoint, "transparent")
		if got, err := a.ask("udp", kept, a.accelerated(v6), ""); err != nil || got.from != kept {
			t.Errorf("a flow of before, client %v: the endpoint saw %v, %v", kept, got.from, err)
		}
		for _, network := range []string{"tcp", "udp"} {
			got, err := a.ask(network, netip.AddrPort{}, a.accelerated(v6), "")
			if err != nil || got.from != got.client {
				t.Errorf("%s, client %v: the endpoint saw %v, %v", network, got.client, got.from, err)
				continue
			}
			t.Logf("%s: client and endpoint agree on %v", network, got.from)
		}
		// The other family cannot: the flow is refused and not lied about.
		if got, err := a.ask("tcp", netip.AddrPort{}, a.accelerated(!v6), ""); err == nil {
			t.Errorf("a client of the other family was served: %+v", got)
		}
	}
}

// nodePool: an accelerator without addresses of its own is served at each node's, beside another one
// that has other ports.
func (d *deployment) nodePool(t *testing.T) {
	var made struct {
		ID        string       `json:"id"`
		Addresses []netip.Addr `json:"addresses"`
	}
	d.run(t, nil, "pool", "create", "own", "--kind", "node")
	endpoint := d.Host("eu-fra-1-app-1").V4.String()
	for i, name := range []string{"first", "second"} {
		d.run(t, &made, "accelerator", "create", name, "--pool", "own", "--dual-stack")
		d.run(t, &made, "listener", "create", "--accelerator", name, "--protocol", "tcp_udp",
			"--ports", fmt.Sprint(witnessPort+i))
		d.run(t, nil, "group", "create", "--listener", made.ID, "--region", "eu-fra-1", "--health-protocol", "http",
			"--health-port", fmt.Sprint(load.PortHTTP), "--health-path", "/health", "--health-interval", "1s",
			"--endpoint", endpoint, "--wait")
	}
	for node := range d.Nodes {
		for _, addr := range []netip.Addr{d.Host(node).V4, d.Host(node).V6} {
			for i := range 2 {
				to := netip.AddrPortFrom(addr, uint16(witnessPort+i))
				for _, network := range []string{"tcp", "udp"} {
					eventually(t, 20*time.Second, fmt.Sprintf("%s %s at %v", node, network, to), func() error {
						got, err := d.ask(network, netip.AddrPort{}, to, "")
						if err == nil && got.port != to.Port() {
							err = fmt.Errorf("it came to port %d", got.port)
						}
						return err
					})
				}
			}
		}
	}
	// Accelerators that share nodes' addresses must not share ports.
	_, err := d.CLI(d.ctx, "listener", "create", "--accelerator", "first", "--protocol", "tcp",
		"--ports", fmt.Sprint(witnessPort+1))
	if err == nil || !strings.Contains(err.Error(), "port") {
		t.Errorf("a port of the other accelerator on the same nodes: %v", err)
	}
}
