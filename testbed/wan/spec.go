package wan

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Spec says what to build. Names of hosts and places share one space; "*" stands for every host.
type Spec struct {
	Hosts   []Host
	Links   []Link
	Access  []Access
	Shapers []Shaper
	Routes  []Route

	// Local are the parameters between hosts of the same place that no Link covers, and of a host to itself.
	// Zero: no delay but the machine's own.
	Local Params

	// Seed makes loss and jitter repeatable as far as packet order is. Zero is a seed as well.
	Seed uint64

	Log *slog.Logger // nil: discard
}

// Host is a namespace with one interface, eth0, on the WAN.
type Host struct {
	Name  string // of the namespace (without the Set's prefix): a–z, 0–9, '-'
	Place string // city, site or region: what Links and Access may name. Empty: the host's own name

	// Addrs are put on eth0; the first of each family is the source of connections. A family without an
	// address has no default route.
	Addrs []netip.Addr

	// Prefixes are the host's own addresses all together, without being put on an interface one by one: a
	// whole city of clients can bind to them.
	Prefixes []netip.Prefix

	// Routed are delivered to the host but are not its own: for a router, or a daemon that adds addresses.
	Routed []netip.Prefix

	// Sysctls are set after the Fabric's own (large TCP buffers), so they win.
	Sysctls map[string]string
}

// Link is one direction between two hosts, places or "*". The most specific Link that covers a pair of hosts
// is theirs (hosts before places before "*", From before To), and all pairs it covers share its bottleneck.
type Link struct {
	From, To string
	Params
	Via []string // Shapers passed before the Link itself, in order
}

// Params are what happens to packets on a stage: they queue for Rate, some are lost, the rest is delayed.
type Params struct {
	Delay  time.Duration // propagation, one way
	Jitter time.Duration // further delay between 0 and this; mean is half of it; never reorders
	Loss   float64       // mean share of packets lost, 0 to 1
	Burst  float64       // mean number lost in a row (Gilbert-Elliott); up to 1: independent
	Rate   int64         // bit/s of IP packets; 0: no bottleneck
	Queue  int           // bytes before it, then tail drop; 0: 100 ms of Rate, at least 128 KiB
	MTU    int           // larger packets vanish (a path MTU black hole); 0: no limit
}

// Access is what everything to (Down) and from (Up) a host or place passes, whatever the other end is: a
// city's access line. Traffic within a place does not pass the place's.
type Access struct {
	At       string
	Up, Down Params
}

// Shaper is a stage that several Links share by naming it in Via: a cable between continents.
type Shaper struct {
	Name string
	Params
}

// Route sends what hosts covered by From (host, place or "*") address to Prefix to one of the hosts in To,
// chosen by a hash of the flow as an ECMP router does. No To: it is dropped. The longest Prefix wins, then
// the most specific From; so the same address can be at different hosts for different places, which is
// anycast. Every host's own addresses are routed to it without being named here.
type Route struct {
	Prefix netip.Prefix
	From   string
	To     []string
}

// Both returns the two Links between a and b with the same parameters.
func Both(a, b string, p Params) []Link {
	return []Link{{From: a, To: b, Params: p}, {From: b, To: a, Params: p}}
}

// everyHost is the name that covers all hosts.
const everyHost = "*"

// Validate checks a stage's parameters.
func (p Params) Validate() error {
	switch {
	case p.Delay < 0 || p.Delay > time.Hour:
		return fmt.Errorf("delay %v is not between 0 and 1 h", p.Delay)
	case p.Jitter < 0 || p.Jitter > time.Hour:
		return fmt.Errorf("jitter %v is not between 0 and 1 h", p.Jitter)
	case !(p.Loss >= 0 && p.Loss <= 1):
		return fmt.Errorf("loss %v is not between 0 and 1", p.Loss)
	case !(p.Burst >= 0 && p.Burst <= 1e6):
		return fmt.Errorf("burst %v is not between 0 and 1,000,000", p.Burst)
	case p.Burst > 1 && p.Loss/p.Burst > 1-p.Loss: // a gap of less than one packet between bursts
		return fmt.Errorf("loss %v can't come in bursts of %v", p.Loss, p.Burst)
	case p.Rate != 0 && p.Rate < 1000:
		return fmt.Errorf("rate %d is below 1000 bit/s", p.Rate)
	case p.Queue < 0:
		return fmt.Errorf("queue %d is negative", p.Queue)
	case p.MTU < 0:
		return fmt.Errorf("mtu %d is negative", p.MTU)
	}
	return nil
}

// Validate checks that all names are known and unique and all parameters possible.
func (s *Spec) Validate() error {
	_, err := newPlan(s)
	return err
}
