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
