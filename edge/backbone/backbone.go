// Package backbone answers: how do the bytes of many flows cross the distance between two nodes,
// fast, fairly, and without dying with any one connection?
//
// A Pool (at an edge) keeps a tunnel open to each gateway; a Server (at a gateway) accepts them. A
// tunnel has a few carriers (TLS connections); streams are multiplexed over them by absolute byte
// offsets, and every byte is kept until the peer's sink has taken it. So a stream can go from one
// carrier to another at any moment: what was outstanding is sent again, and duplicates are dropped
// by their offsets.
//
// The way of a byte, in the order of the files:
//
//	stream.go    Write copies into the stream's sendBuffer             (any goroutine; blocks)
//	buffers.go   and puts the stream into its carrier's scheduler
//	machines.go  the scheduler says whose turn it is
//	carrier.go   the carrier's writer collects frames of many streams  (1 goroutine a carrier)
//	conn.go      many TLS records leave in one system call
//	             ═══ TLS over kernel TCP ═══
//	conn.go      the peer's reader decodes them                        (1 goroutine a carrier)
//	frames.go    and hands them to their streams
//	receive.go   which put them in order and call Sink.Deliver, whose
//	             answer becomes an ACK with new credit
//
// tunnel.go holds what a tunnel is: streams, carriers, which of them comes next. health.go watches
// carriers (1 goroutine a tunnel) and moves streams off those that fare badly. pool.go and peer.go
// are the edge's end, server.go is the gateway's. No stream has a goroutine, and an idle one has no
// buffer.
//
// Locks: Server.mu or Pool.mu before tunnel.mu before Stream.mu before carrier.mu. Nothing is held
// while a Sink, a handler or a connection is called.
package backbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/datagram"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// ErrNoPath is returned by Pool.Open when no carrier to the peer is up.
var ErrNoPath = errors.New("no carrier to the peer is up")

// ErrClosed is returned by Write after CloseWrite or Reset of the same stream.
var ErrClosed = errors.New("stream is closed for writing")

// ResetError is returned by Write when the stream was reset by the peer, or by the backbone itself.
type ResetError struct{ Reason wire.ResetReason }

func (e *ResetError) Error() string { return "stream was reset: " + e.Reason.String() }

// A Sink takes what arrives on a stream. The backbone calls one of its methods at a time, never two
// at once, but from changing goroutines: the one that reads a carrier (then every other stream of
// the carrier waits: do not block, do not lock what somebody holds while blocking), or the one that
// calls Resume. A Sink may call any method of its Stream but Write and ReadFrom, which block.
type Sink interface {
	// Opened is called at the opener's side, once, before the first Deliver, unless Reset comes
	// first. A code other than OpenOK is a refusal: nothing follows it, the stream is over.
	Opened(wire.OpenResult)

	// Deliver hands over the next bytes in order, and returns how many it took, at once. The stream
	// keeps the rest (bounded by its credit) and delivers it again after Resume. p is valid during
	// the call only. fin says that the stream ends behind p: whoever takes all of p takes fin too.
	// p is empty only together with fin.
	Deliver(p []byte, fin bool) (n int)

	// Reset says that the stream is over before its end. It is called at most once, and nothing
	// follows. It is not called for a Reset of one's own.
	Reset(reason wire.ResetReason)
}

// PeerState is what a Pool knows about a peer at one moment. The zero value is a peer that is down.
type PeerState struct {
	Up       bool          // a carrier is up and answers
	Draining bool          // the peer wants no new streams (GOAWAY)
	RTT      time.Duration // smoothed; of the fastest carrier
	RTTMin   time.Duration // the least seen in the last minutes
	Loss     float32       // share of segments lost towards the peer, 0..1, smoothed
	UDP      bool          // datagrams go by UDP; false: they ride the carriers
	Carriers int           // that are up
	Streams  int           // open
}

// StreamStats are a stream's figures.
type StreamStats struct {
	Sent, Acked uint64 // bytes given to carriers; bytes the peer has consumed
	Received    uint64 // bytes the sink has taken
	Held        int    // bytes of memory the stream holds
	Moves       uint32 // times it went to another carrier
	Peer        model.NodeID
}

// Common is what a Pool and a Server are both configured by. Zero values are the defaults.
type Common struct {
	// Credentials prove this node to its peers and name whom it trusts. Required, unless the TLS
	// functions of PoolConfig or ServerConfig are given.
	Credentials *identity.Credentials

	// Memory bounds the bytes that streams hold. Give the Pool and the Server of a process the same.
	// Default: one of MemoryDefault bytes for each.
	Memory *Memory

	// Transport carries datagrams by UDP. Give the Pool and the Server of a process the same, and run
	// it; it must listen on the port number that carriers are accepted on, since that is where peers
	// send. nil: datagrams ride the carriers.
	Transport *datagram.Transport

	// HandleDatagrams takes the datagram messages that arrive from a peer, from the goroutines that
	// read them (several at once): it must not block. The messages are valid during the call only.
	// nil: dropped.
	HandleDatagrams func(peer model.NodeID, msgs [][]byte)

	// Window is the credit of a new stream, in bytes, default 4 MiB: it fills 100 Mbit/s × 200 ms
	// without waiting for anything. A stream that uses it all grows up to WindowMax, default 16 MiB
	// (1 Gbit/s × 100 ms is 12.5 MB). Credit is not memory: Memory bounds what is held.
	Window    int
	WindowMax int

	// PathWait is how long streams wait while no carrier is up before they are reset. Default 15 s.
	PathWait time.Duration

	// PingInterval is how often each carrier is asked, default 250 ms: three unanswered questions
	// take a carrier out of use, so that a dead path is left within a second. Shorter finds it
	// sooner and costs packets.
	PingInterval time.Duration

	// DeadAfter is how long a carrier may stay silent before it is closed. Default 5 s.
	DeadAfter time.Duration

	// Warm is how many bytes of padding each side sends on a new carrier of more than 5 ms, so that
	// its congestion window is open before it is needed. Default 1 MiB; negative: none. Larger lets
	// larger downloads start at full speed, and costs the bytes once a carrier.
	Warm int

	// LeaveHost keeps Run from setting net.ipv4.tcp_slow_start_after_idle to 0, without which the
	// kernel forgets the congestion windows of carriers that were idle for a moment.
	LeaveHost bool

	// CongestionControl of the carriers: "" chooses by measured loss (bbr with, cubic without, each
	// if this host lets us), any other value is set on every carrier.
	CongestionControl string

	Log     *slog.Logger          // nil: nothing is logged
	Metrics prometheus.Registerer // nil: not registered
}

// PoolConfig configures a Pool.
type PoolConfig struct {
	Common

	// Self is this node; a Pool opens no tunnel to it.
	Self model.NodeID

	// CarriersMin and CarriersMax bound the carriers of a tunnel. Defaults 2 and 16: one stalls
	// everything at each loss, dozens compete with each other.
	CarriersMin int
	CarriersMax int

	// Dial opens the TCP connection of a carrier. nil: a net.Dialer without Multipath TCP.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

	// ClientTLS returns the configuration that authenticates a peer. nil: from Credentials.
	ClientTLS func(peer model.NodeID) *tls.Config
}

// ServerConfig configures a Server.
type ServerConfig struct {
	Common

	// Listen is where carriers are accepted; or give a Listener, which Run closes.
	Listen   netip.AddrPort
	Listener net.Listener

	// HandleStream is called for every new stream and returns its sink; nil refuses the stream with
	// ResetRefused. It is called by the goroutine that reads a carrier: it must not block. Bytes may
	// be delivered as soon as it returns. open is valid during the call only as a pointer; its
	// fields may be kept.
	HandleStream func(s *Stream, open *wire.Open) Sink

	// ServerTLS authenticates edges. nil: from Credentials.
	ServerTLS *tls.Config

	// PeerID says which node the other end of a connection is. nil: by its certificate.
	PeerID func(tls.ConnectionState) (model.NodeID, error)
}

// Validate reports what is wrong with the configuration.
func (c *Common) Validate() error {
	switch {
	case c.Window < 0 || c.WindowMax < 0 || c.Window > windowCeiling || c.WindowMax > windowCeiling:
		return fmt.Errorf("window %d, at most %d: must be 0 to %d bytes", c.Window, c.WindowMax, windowCeiling)
	case c.WindowMax != 0 && c.Window > c.WindowMax:
		return fmt.Errorf("window %d is greater than its maximum %d", c.Window, c.WindowMax)
	case c.PathWait < 0 || c.PingInterval < 0 || c.DeadAfter < 0:
		return errors.New("durations must not be negative")
	}
	return nil
}

// Validate reports what is wrong with the configuration.
func (c *PoolConfig) Validate() error {
	if err := c.Common.Validate(); err != nil {
		return err
	}
	if c.Credentials == nil && c.ClientTLS == nil {
		return errors.New("credentials are missing")
	}
	least, most := c.CarriersMin, c.CarriersMax
	if least < 0 || most < 0 || least > carriersCeiling || most > carriersCeiling || most != 0 && least > most {
		return fmt.Errorf("carriers %d to %d: must be within 1 to %d", least, most, carriersCeiling)
	}
	return nil
}

// Validate reports what is wrong with the configuration.
func (c *ServerConfig) Validate() error {
	if err := c.Common.Validate(); err != nil {
		return err
	}
	if c.Credentials == nil && (c.ServerTLS == nil || c.PeerID == nil) {
		return errors.New("credentials are missing")
	}
	if c.Listener == nil && !c.Listen.IsValid() {
		return errors.New("an address to listen on is missing")
	}
	if c.HandleStream == nil {
		return errors.New("nobody handles streams")
	}
	return nil
}

// metrics are the figures of a Pool (side="pool") or Server (side="server").
type metrics struct {
	sent, received   prometheus.Counter
	opened           prometheus.Counter
	moves            prometheus.Counter
	reinjected       prometheus.Counter
	reneged          prometheus.Counter
	carriersBegun    prometheus.Counter
	carriersFailed   prometheus.Counter
	datagramsCarried prometheus.Counter
	datagramsDropped prometheus.Counter
	all              []prometheus.Collector
}

func newMetrics(side string, memory *Memory) *metrics {
	m := &metrics{}
	labels := prometheus.Labels{"side": side}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "nearcast", Subsystem: "backbone", Name: name, Help: help, ConstLabels: labels,
		})
		m.all = append(m.all, c)
		return c
	}
	m.sent = counter("sent_bytes_total", "Bytes written to carriers, frames and padding included.")
	m.received = counter("received_bytes_total", "Bytes read from carriers, frames and padding included.")
	m.opened = counter("streams_opened_total", "Streams begun.")
	m.moves = counter("stream_moves_total", "Times that a stream went to another carrier.")
	m.reinjected = counter("reinjected_bytes_total",
		"Bytes of short streams sent again because their carrier was repairing a loss.")
	m.reneged = counter("reneged_bytes_total",
		"Bytes that arrived, were not kept because memory was short, and have to be sent again.")
	m.carriersBegun = counter("carriers_total", "Carriers that were set up.")
	m.carriersFailed = counter("carrier_failures_total", "Carriers that could not be set up.")
	m.datagramsCarried = counter("datagrams_carried_total",
		"Datagram messages that went over a carrier because UDP does not pass.")
	m.datagramsDropped = counter("datagrams_dropped_total",
		"Datagram messages dropped because the queue of a carrier was full or no path was up.")
	m.gauge(labels, "memory_bytes", "Bytes that streams hold.", func() float64 { return float64(memory.Used()) })
	return m
}

// tunnels adds the figures that are counted where the tunnels are.
func (m *metrics) tunnels(side string, count func() (carriers, streams int)) {
	labels := prometheus.Labels{"side": side}
	m.gauge(labels, "carriers", "Carriers that are up.", func() float64 {
		carriers, _ := count()
		return float64(carriers)
	})
	m.gauge(labels, "streams", "Streams that are open.", func() float64 {
		_, streams := count()
		return float64(streams)
	})
}

// gauge adds a figure that is read when it is asked for.
func (m *metrics) gauge(labels prometheus.Labels, name, help string, f func() float64) {
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "nearcast", Subsystem: "backbone", Name: name, Help: help, ConstLabels: labels,
	}, f))
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.all {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
