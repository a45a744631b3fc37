package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// PortDNS is where nodes answer DNS in a world with a node pool.
const PortDNS = 53

// nodePool reports whether DNS answers bring the clients to edges in this world.
func (s *Spec) nodePool() bool {
	for _, p := range s.Pools {
		if p.Kind == "node" {
			return true
		}
	}
	return false
}

// CityNetwork is the network that a city's own host lies in, as its resolver tells it (ECS).
func (w *World) CityNetwork(city string) netip.Prefix {
	p, _ := w.hosts[city].V4.Prefix(24) // 24 bits of an IPv4 address are there
	return p
}

// ConfigureSteering says which networks are near which site, as an operator would.
func (w *World) ConfigureSteering(ctx context.Context) error {
	var networks []string
	for _, c := range w.Spec.Cities {
		networks = append(networks, fmt.Sprintf("%v=%s", w.CityNetwork(c.Name), c.Site))
	}
	_, err := w.CLI(ctx, "steer", "update", "--ttl", "5s", "--network", strings.Join(networks, ","))
	return err
}

// Lookup is a DNS answer and who gave it.
type Lookup struct {
	Addrs []netip.Addr
	TTL   time.Duration
	Scope int // of the client subnet; -1: the answer has none
	Rcode int
	Took  time.Duration
}

// A resolver asks again where a datagram was lost: some cities' access loses them.
const (
	resolveTries   = 5
	resolveTimeout = 3 * time.Second
)

// Resolve asks a node's DNS server from a city for the IPv4 addresses of a name, telling subnet as the
// client's if it is valid. It asks again when there is no answer, as resolvers do.
func (w *World) Resolve(ctx context.Context, city, node, name string, subnet netip.Prefix) (l Lookup, err error) {
	for range resolveTries {
		var timeout net.Error
		l, err = w.resolveOnce(ctx, city, node, name, subnet)
		if !errors.As(err, &timeout) || !timeout.Timeout() || ctx.Err() != nil {
			break
		}
	}
	return l, err
}

func (w *World) resolveOnce(ctx context.Context, city, node, name string, subnet netip.Prefix) (Lookup, error) {
	at := netip.AddrPortFrom(w.hosts[node].V4, PortDNS)
	conn, err := w.NS(city).DialContext(ctx, "udp", at.String())
	if err != nil {
		return Lookup{}, err
	}
	defer conn.Close()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeA)
	m.SetEdns0(1232, false)
	if subnet.IsValid() {
		o := m.IsEdns0()
		o.Option = append(o.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1,
			SourceNetmask: uint8(subnet.Bits()), Address: subnet.Addr().AsSlice()})
	}
	begin := time.Now()
	c := dns.Client{Timeout: resolveTimeout}
	r, _, err := c.ExchangeWithConnContext(ctx, m, &dns.Conn{Conn: conn, UDPSize: 4096})
	if err != nil {
		return Lookup{}, err
	}
	l := Lookup{Scope: -1, Rcode: r.Rcode, Took: time.Since(begin)}
	for _, rr := range r.Answer {
		if a, ok := rr.(*dns.A); ok {
			addr, _ := netip.AddrFromSlice(a.A.To4())
			l.Addrs, l.TTL = append(l.Addrs, addr), time.Duration(a.Hdr.Ttl)*time.Second
		}
	}
	if o := r.IsEdns0(); o != nil {
		for _, option := range o.Option {
			if e, ok := option.(*dns.EDNS0_SUBNET); ok {
				l.Scope = int(e.SourceScope)
			}
		}
	}
	return l, nil
}

// resolveCities asks for every city where its clients go.
func (w *World) resolveCities(ctx context.Context, app *App, say func(string, ...any)) error {
	app.ByCity = map[string]netip.Addr{}
	asked := nodeName(w.Spec.Sites[0].Name, 0)
	for _, c := range w.Spec.Cities {
		l, err := w.Resolve(ctx, c.Name, asked, app.Name, w.CityNetwork(c.Name))
		if err != nil {
			return fmt.Errorf("resolve %s from %s: %w", app.Name, c.Name, err)
		}
		if len(l.Addrs) == 0 {
			return fmt.Errorf("resolve %s from %s: no address", app.Name, c.Name)
		}
		app.ByCity[c.Name] = l.Addrs[0]
		say("%-8s  %s is %v (asked %s, %.0f ms)", c.Name, app.Name, l.Addrs[0], asked, l.Took.Seconds()*1000)
	}
	return nil
}

// Address is where a city's clients reach the application.
func (a *App) Address(city string) netip.Addr {
	if addr, ok := a.ByCity[city]; ok {
		return addr
	}
	return a.Addresses[0]
}

// create is the command that makes the pool, without its prefixes.
func (p *PoolSpec) create() []string {
	if p.Kind == "node" {
		return []string{"pool", "create", p.Name, "--kind", "node"}
	}
	return []string{"pool", "create", p.Name, "--kind", "anycast", "--zone", p.Zone}
}
