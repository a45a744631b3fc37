package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// names remembers what host names resolve to. It is bounded: when it is full, whatever comes first is
// forgotten. While a name does not resolve, its last addresses serve for some minutes.
type names struct {
	lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)
	places chan struct{} // one for each look-up that may be under way

	mu    sync.Mutex
	known map[string]*name
}

type name struct {
	addrs   []netip.Addr // sorted
	err     error        // why there are none
	fresh   time.Time    // until then
	good    time.Time    // when it last resolved
	looking chan struct{}
}

func newNames(r *net.Resolver) *names {
	if r == nil {
		r = net.DefaultResolver
	}
	return &names{lookup: r.LookupNetIP, places: make(chan struct{}, namesInParallel), known: map[string]*name{}}
}

// cached returns what is known about a host without waiting. fresh is false when somebody must resolve.
func (n *names) cached(host string) (addrs []netip.Addr, fresh bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.known[host]; e != nil {
		return e.addrs, time.Now().Before(e.fresh)
	}
	return nil, false
}

// resolve returns the addresses of a host. Of many who ask at once only one asks the resolver.
func (n *names) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	for {
		n.mu.Lock()
		e := n.entry(host)
		if time.Now().Before(e.fresh) {
			addrs, err := e.addrs, e.err
			n.mu.Unlock()
			return addrs, err
		}
		looking := e.looking
		if looking == nil {
			e.looking = make(chan struct{})
			n.mu.Unlock()
			n.refresh(ctx, host, e)
		} else {
			n.mu.Unlock()
			select {
			case <-looking:
			case <-ctx.Done():
			}
		}
		// Who had no time to wait for the answer has taken no note of one: asking again would not end.
		if ctx.Err() != nil {
			return nil, fmt.Errorf("resolve %s: %w", host, ctx.Err())
		}
	}
}

// entry returns what is known about a host, or a place for it. The caller holds mu.
func (n *names) entry(host string) *name {
	e := n.known[host]
	if e == nil {
		for victim, v := range n.known {
			if len(n.known) < namesMax {
				break
			}
			if v.looking == nil {
				delete(n.known, victim)
			}
		}
		e = &name{}
		n.known[host] = e
	}
	return e
}

// refresh asks the resolver and takes note of the answer.
func (n *names) refresh(asker context.Context, host string, e *name) {
	ctx, cancel := context.WithTimeout(asker, nameTimeout)
	defer cancel()
	var addrs []netip.Addr
	var err error
	select {
	case n.places <- struct{}{}:
		addrs, err = n.lookup(ctx, "ip", host)
		<-n.places
	case <-ctx.Done():
		err = ctx.Err()
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap().WithZone("")
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	addrs = addrs[:min(len(addrs), nameAddrsMax)]
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address")
	}
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil:
		e.addrs, e.err, e.fresh, e.good = addrs, nil, now.Add(nameTTL), now
	case asker.Err() != nil: // that is no answer: the next who waits asks again
	default:
		e.fresh = now.Add(nameRefusedTTL)
		if now.Sub(e.good) > nameStaleTTL {
			e.addrs, e.err = nil, fmt.Errorf("resolve %s: %w", host, err)
		}
	}
	close(e.looking)
	e.looking = nil
}
