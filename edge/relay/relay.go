// Package relay answers: how does a client's flow get to the gateway that steer names, and back?
//
// TCP:  listen ─ Handle ─▶ admit ─▶ (PROXY header) ─▶ route ─▶ ask one gateway after the other ─▶ pump
//
//	asking:  the Open leaves at once, with the client's first bytes behind it; they are kept until an
//	         endpoint has answered, so that a refusal moves the flow to the next gateway unseen
//	pump:    this node a gateway itself, or a region without one: socket to socket in the kernel;
//	         else socket to stream (edge/pump)
//
// UDP:  listen ─ HandleUDP ─▶ session (route once, numbered) ─▶ messages ─▶ datagram channel
//
//	◀─ accelerated address ◀─ HandleDatagrams ◀─ messages ◀───────┘
//
// A flow stays where it is once it is there: no change of configuration or health moves it. It ends when
// its listener goes. Whatever is full refuses what is new, and counts it.
package relay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/clients"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/gateway"
	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// Config configures a TCP and a UDP. Zero values are the defaults, except where noted.
type Config struct {
	// Self is this node; Pool leads to the other gateways, and Gateway is this node's own, which also
	// serves regions that have none. All three are required.
	Self    model.NodeID
	Pool    *backbone.Pool
	Gateway *gateway.Gateway

	// Memory is the streams' memory, whose use decides about shedding. nil: nothing is shed.
	Memory *backbone.Memory

	// MaxFlows bounds the flows of each protocol, default 262,144. Listeners may have lower bounds, and
	// bounds for each source (an IPv6 source is its /64).
	MaxFlows int

	// OpenTimeout is how long a gateway may take to answer, default 7 s: longer than it tries.
	OpenTimeout time.Duration

	// AtMostOnce keeps a flow whose client has sent something from being opened elsewhere when its
	// gateway was lost without an answer: that gateway may have handed the bytes to an endpoint in its
	// last moment, and another endpoint would get them again. Such flows are reset instead. A gateway's
	// refusal moves flows in any case: then no endpoint has got anything.
	AtMostOnce bool

	// Meter counts the traffic of each listener and group. nil: one that nobody reads.
	Meter *meter.Meter

	// Saw is told what each TCP flow saw of its client and its way, once, at its end or when it has lasted a
	// while; not of flows whose client speaks for others (PROXY protocol). It must not block. nil: nobody.
	Saw func(clients.Sight)

	// OnOverload is told how many new connections may wait while this node is overloaded, and 0 when it
	// is not any more (see package overload). It must not block. nil: nobody.
	OnOverload func(bound int)

	// Behind reports whether more datagrams come than this node can do. New flows of datagrams are dropped
	// then, so that those that are there get through. nil: never.
	Behind func() bool

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Self == "" || c.Pool == nil || c.Gateway == nil:
		return errors.New("relay: the node's id, its pool or its gateway is missing")
	case c.MaxFlows < 0 || c.OpenTimeout < 0:
		return fmt.Errorf("relay: at most %d flows, opened within %v: must not be negative", c.MaxFlows, c.OpenTimeout)
	}
	return nil
}

// withDefaults validates the configuration and fills in what is missing.
func (c Config) withDefaults() (Config, error) {
	if err := c.Validate(); err != nil {
		return c, err
	}
	if c.MaxFlows == 0 {
		c.MaxFlows = flowsMaxDefault
	}
	if c.OpenTimeout == 0 {
		c.OpenTimeout = openTimeoutDefault
	}
	if c.Behind == nil {
		c.Behind = func() bool { return false }
	}
	if c.Meter == nil {
		c.Meter, _ = meter.New(meter.Config{}) // fails only where there are metrics
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return c, nil
}

// Bindings returns what must be listened on for a table's listeners. wide says that ports cost nothing, since
// the kernel's dispatcher brings them to one socket.
//
// Of custom routing only the ports that lead somewhere are opened, so that the kernel itself refuses
// connections to all others. With a dispatcher, UDP is opened wide: datagrams to ports that are denied are
// dropped here, and flows that were there before they were denied go on.
func Bindings(t *steer.Table, wide bool) []listen.Binding {
	var all []listen.Binding
	for _, l := range t.Listeners() {
		for _, p := range []struct {
			is model.Protocol
			as flow.Proto
		}{{model.TCP, flow.TCP}, {model.UDP, flow.UDP}} {
			if !l.Protocol.Has(p.is) {
				continue
			}
			open := l.PortRanges
			if l.Mapped() && !(wide && p.as == flow.UDP) {
				open = l.OpenPorts(p.as)
				if wide && len(open) > openRangesMax {
					open = l.PortRanges
				}
			}
			for _, addr := range l.Addresses {
				for _, ports := range open {
					all = append(all, listen.Binding{Listener: l.ID, Proto: p.as, Addr: addr, Ports: ports,
						Spare: l.Mapped()})
				}
			}
		}
	}
	return all
}

// openFor says on the wire what a flow wants of a candidate. src is the client's address, which a PROXY
// header may have given.
func openFor(t *steer.Table, tuple flow.Tuple, c *steer.Candidate) wire.Open {
	o := wire.Open{
		Listener: string(c.Group.Listener), Group: string(c.Group.ID), Proto: uint8(tuple.Proto),
		HopsLeft: wire.HopsMax, Revision: t.Revision(), Src: tuple.Src, Dst: tuple.Dst,
	}
	if c.FailOpen {
		o.Flags |= wire.OpenFailOpen
	}
	return o
}

// unmap makes an IPv4 address of one that is written as IPv6, and forgets zones.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
