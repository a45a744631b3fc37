package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/proto/model"
)

// ErrNoInterfaces says that the guard has nothing to be attached to.
var ErrNoInterfaces = errors.New("no interfaces to guard are named (--guard-interfaces)")

// loadGuard loads the guard and attaches it to the interfaces, with no rules yet: it passes everything.
func (p *Programs) loadGuard() (err error) {
	if len(p.cfg.GuardInterfaces) == 0 {
		return ErrNoInterfaces
	}
	g, err := guard.Load(guard.Config{PinDir: p.cfg.PinDir, SampleEvery: guardSampleEvery,
		MaxSegment: p.cfg.ClientSegment, Log: p.log})
	if err != nil {
		return err
	}
	for _, name := range p.cfg.GuardInterfaces {
		dev, err := net.InterfaceByName(name)
		if err != nil {
			return errors.Join(fmt.Errorf("interface %s: %w", name, err), g.Close())
		}
		if p.balance != nil && slices.Contains(p.cfg.BalanceInterfaces, name) {
			continue // behind balance, below
		}
		mode, err := g.Attach(dev.Index, p.cfg.XDPMode)
		if err != nil {
			return errors.Join(fmt.Errorf("interface %s: %w", name, err), g.Close())
		}
		p.log.Info("guarding an interface", "interface", name, "xdp", mode.String())
	}
	if err := p.chainGuard(g); err != nil {
		return errors.Join(err, g.Close())
	}
	p.guard = g
	return nil
}

// GuardRules are what a node's guard has to do for a snapshot. An address is exclusive if it comes from an
// anycast pool: nothing else of the machine lives there.
func GuardRules(s *model.Snapshot, self model.NodeID) guard.Rules {
	return countryLists{}.unpack(s, self).rules(s, self)
}

// rules is GuardRules with lists that are unpacked already.
func (lists countryLists) rules(s *model.Snapshot, self model.NodeID) guard.Rules {
	r := guard.Rules{Lists: map[string][]netip.Prefix{}, Countries: map[string][]netip.Prefix{}}
	addresses := map[netip.Addr]guard.Address{}
	for i := range s.Listeners {
		l := &s.Listeners[i]
		on, exclusive := addressesOf(s, self, l)
		if len(on) == 0 {
			continue
		}
		prefixes := make([]netip.Prefix, len(on))
		for j, a := range on {
			a = a.Unmap()
			prefixes[j] = netip.PrefixFrom(a, a.BitLen())
			old, known := addresses[a]
			addresses[a] = guard.Address{
				Prefix: prefixes[j], Exclusive: exclusive,
				NoFragments: l.Guard.DropFragments && (old.NoFragments || !known),
			}
		}
		for _, g := range guardListeners(l, prefixes, r.Lists) {
			lists.enter(l, &g, r.Countries)
			r.Listeners = append(r.Listeners, g)
		}
	}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, a)
	}
	slices.SortFunc(r.Addresses, func(a, b guard.Address) int {
		return a.Prefix.Addr().Compare(b.Prefix.Addr())
	})
	return r
}

// addressesOf returns the addresses on which this node serves a listener.
func addressesOf(s *model.Snapshot, self model.NodeID, l *model.Listener) (on []netip.Addr, exclusive bool) {
	a := s.Accelerator(l.Accelerator)
	if a == nil || !a.Enabled {
		return nil, false
	}
	if !s.OnNodePool(a) {
		return a.Addresses, true
	}
	n := s.Node(self)
	if n == nil || !s.Pool(a.Pools[0]).Serves(n.Site) {
		return nil, false
	}
	return n.ServiceAddresses, false
}

// guardListeners are a listener's, one a protocol.
func guardListeners(l *model.Listener, prefixes []netip.Prefix, lists map[string][]netip.Prefix) []guard.Listener {
	var all []guard.Listener
	for _, proto := range []struct {
		is   model.Protocol
		name string
		as   guard.Proto
	}{{model.TCP, "tcp", guard.TCP}, {model.UDP, "udp", guard.UDP}} {
		if !l.Protocol.Has(proto.is) {
			continue
		}
		g := guard.Listener{
			Name: string(l.ID) + "/" + proto.name, Prefixes: prefixes, Proto: proto.as,
			Allow: listOf(l.Guard.AllowNetworks, lists), Deny: listOf(l.Guard.DenyNetworks, lists),
			Source: rateOf(l.Guard.SourceRate), Total: rateOf(l.Guard.TotalRate),
			NoFragments: l.Guard.DropFragments,
		}
		if proto.is == model.TCP {
			g.Flood = rateOf(l.Guard.SYNRate)
		}
		for _, r := range l.PortRanges {
			g.Ports = append(g.Ports, guard.Ports{First: r.From, Last: r.To})
		}
		all = append(all, g)
	}
	return all
}

func rateOf(r model.GuardRate) guard.Rate {
	return guard.Rate{PerSecond: int(r.PerSecond), Burst: int(r.Burst)}
}

// listOf enters networks among the lists, under a name that equal ones share.
func listOf(networks []netip.Prefix, lists map[string][]netip.Prefix) string {
	if len(networks) == 0 {
		return ""
	}
	masked := make([]netip.Prefix, len(networks))
	for i, n := range networks {
		masked[i] = n.Masked()
	}
	slices.SortFunc(masked, netip.Prefix.Compare)
	masked = slices.Compact(masked)
	h := sha256.New()
	for _, n := range masked {
		fmt.Fprintln(h, n)
	}
	name := hex.EncodeToString(h.Sum(nil)[:16])
	lists[name] = masked
	return name
}

// wantsGuard reports whether a listener that this node serves asks for what only the guard does.
func wantsGuard(s *model.Snapshot, self model.NodeID) bool {
	return slices.ContainsFunc(s.Listeners, func(l model.Listener) bool {
		on, _ := addressesOf(s, self, &l)
		return len(on) > 0 && l.Guard.InKernel()
	})
}

// Drop is a sampled packet that the guard dropped.
type Drop struct {
	Time        time.Time      `json:"time"`
	Reason      string         `json:"reason"`
	Protocol    string         `json:"protocol"`
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Bytes       int            `json:"bytes"`
}

// Drops are what the guard has dropped: counters since it was loaded, and its latest samples.
type Drops struct {
	Present     bool              `json:"present"`
	SampleEvery int               `json:"sample_every"` // dropped packets a sample
	Packets     map[string]uint64 `json:"packets,omitempty"`
	Samples     []Drop            `json:"samples,omitempty"` // newest last
}

// dropLog keeps the latest samples of drops.
type dropLog struct {
	mu   sync.Mutex // guards ring and next
	ring []Drop
	next int
}

func (s *dropLog) add(e guard.Event) {
	d := Drop{
		Time: time.Now(), Reason: e.Reason.String(), Protocol: e.Proto.String(), Source: e.Source,
		Destination: e.Destination, Bytes: e.Length,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ring) < dropsKept {
		s.ring = append(s.ring, d)
		return
	}
	s.ring[s.next] = d
	s.next = (s.next + 1) % dropsKept
}

func (s *dropLog) all() []Drop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.ring[s.next:], s.ring[:s.next])
}

// Drops returns what the guard has dropped.
func (p *Programs) Drops() (Drops, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.guard == nil || p.closed {
		return Drops{}, nil
	}
	d := Drops{Present: true, SampleEvery: guardSampleEvery, Packets: map[string]uint64{}, Samples: p.drops.all()}
	counts, err := p.guard.Counts()
	for reason, n := range counts {
		if reason.Dropped() {
			d.Packets[reason.String()] = n.Packets
		}
	}
	return d, err
}

// watchGuard keeps samples of what is dropped until ctx ends.
func (p *Programs) watchGuard(ctx context.Context) {
	if p.guard == nil {
		return
	}
	if err := p.guard.Events(ctx, p.drops.add); err != nil && ctx.Err() == nil {
		p.log.Error("drops are not sampled any more", "error", err)
	}
}
