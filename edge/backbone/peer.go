package backbone

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// A peer is a gateway that a Pool keeps a tunnel to. When a tunnel has to be given up, the peer
// begins another one.
type peer struct {
	pool      *Pool
	id        model.NodeID
	ctx       context.Context // ends all that belongs to the peer
	stop      context.CancelFunc
	addresses atomic.Pointer[[]netip.AddrPort]
	tunnel    atomic.Pointer[tunnel]
	next      atomic.Pointer[tunnel] // takes tunnel's place once it is up; nil: none
	state     atomic.Pointer[PeerState]

	mu         sync.Mutex
	told       PeerState // what listeners were last called for
	toldGroups *map[model.GroupID]bool
	dialing    int
	number     uint32 // carriers dialled
	backoff    time.Duration
	nextDial   time.Duration

	nextPublish time.Duration
}

// newPeer returns a peer and the function that runs it until ctx ends or stop is called.
func newPeer(ctx context.Context, p *Pool, id model.NodeID) (*peer, func()) {
	e := &peer{pool: p, id: id}
	e.ctx, e.stop = context.WithCancel(ctx)
	e.state.Store(&PeerState{})
	e.tunnel.Store(e.begin())
	return e, e.run
}

// begin makes a new tunnel.
func (e *peer) begin() *tunnel {
	var id wire.TunnelID
	rand.Read(id[:])
	t := newTunnel(e.pool.env, e.id, id)
	t.changed = e.publish
	t.watcher.sizer = sizer{least: e.pool.cfg.CarriersMin, most: e.pool.cfg.CarriersMax}
	return t
}

// run has a tunnel at all times. When the gateway's next process has taken over, the tunnel with the one before
// goes on until its streams have ended, beside the new one.
func (e *peer) run() {
	var tunnels sync.WaitGroup
	defer tunnels.Wait()
	t := e.tunnel.Load()
	for {
		ended := make(chan struct{})
		tunnels.Go(func() {
			defer close(ended)
			e.runTunnel(t)
		})
		select {
		case <-ended:
			if e.ctx.Err() != nil {
				return
			}
			t = e.begin()
			e.next.Store(nil)
			e.tunnel.Store(t)
			e.publish()
		case <-t.moved:
			t = e.begin()
			e.next.Store(t)
		}
	}
}

func (e *peer) runTunnel(t *tunnel) {
	ctx, cancel := context.WithCancel(e.ctx)
	var carriers sync.WaitGroup
	t.run(ctx, func(now time.Duration) time.Duration { return e.grow(ctx, t, now, &carriers) })
	cancel()
	t.close(wire.ResetShutdown, true)
	carriers.Wait()
}

// succeed puts the next tunnel in the place of the one before when it is up. What the gateway said of its groups
// and how far it is hold until it says otherwise.
func (e *peer) succeed() {
	next := e.next.Load()
	if next == nil || next.up() == 0 || !e.next.CompareAndSwap(next, nil) {
		return
	}
	old := e.tunnel.Load()
	next.groups.CompareAndSwap(nil, old.groups.Load())
	next.rttNow.CompareAndSwap(0, old.rttNow.Load())
	e.tunnel.Store(next)
	old.wake()
}

// lingers is for a tunnel whose gateway process was succeeded: it dials nothing any more, and ends with its
// last stream. It reports false for any other tunnel.
func (e *peer) lingers(t *tunnel) bool {
	select {
	case <-t.moved:
	default:
		return false
	}
	if e.tunnel.Load() != t && t.streams.len() == 0 {
		t.close(wire.ResetShutdown, true)
	}
	return true
}

// grow dials carriers that are missing and retires those that are too many. It returns when it must
// be called again at the latest.
func (e *peer) grow(ctx context.Context, t *tunnel, now time.Duration, carriers *sync.WaitGroup) time.Duration {
	if e.lingers(t) {
		return now + e.pool.env.PingInterval
	}
	e.mu.Lock()
	due := now >= e.nextPublish // changes are published when they happen, figures now and then
	if due {
		e.nextPublish = now + e.pool.env.PingInterval
	}
	e.mu.Unlock()
	if due {
		e.publish()
	}
	up, alive := t.up(), len(t.carriers())
	e.mu.Lock()
	defer e.mu.Unlock()
	for up+e.dialing < t.watcher.want && alive+e.dialing < carriersCeiling && e.dialing < dialsMax {
		if now < e.nextDial {
			return e.nextDial
		}
		e.dialing++
		e.number++
		number := e.number
		carriers.Go(func() { e.carry(ctx, t, number) })
	}
	if up > t.watcher.want && e.dialing == 0 {
		e.retire(t, now)
	}
	return now + time.Hour
}

// retire has a carrier that nothing is on leave.
func (e *peer) retire(t *tunnel, now time.Duration) {
	for _, c := range t.carriers() {
		if c.load.Load() == 0 && c.fit() {
			c.leaving.Store(true)
			c.health.leaveUntil = now + leaveTimeout
			t.evacuate(c)
			c.send(wire.AppendLeave)
			return
		}
	}
}

// carry sets up a carrier and runs it until it ends.
func (e *peer) carry(ctx context.Context, t *tunnel, number uint32) {
	c, err := e.connect(ctx, t, number)
	if err == nil && !t.join(c) {
		_ = c.raw.Close()
		err = net.ErrClosed
	}
	e.mu.Lock()
	e.dialing--
	if err == nil {
		e.backoff, e.nextDial = 0, 0
	} else {
		e.backoff = min(max(2*e.backoff, dialBackoffMin), dialBackoffMax)
		e.nextDial = e.pool.env.now() + mathrand.N(e.backoff) + dialBackoffMin/10
	}
	first := e.backoff == dialBackoffMin
	e.mu.Unlock()
	t.wake()
	log := e.pool.env.log.With("peer", e.id, "carrier", number)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return
	case first:
		log.Warn("carrier not set up; trying on", "error", err)
		fallthrough
	default:
		e.pool.env.metrics.carriersFailed.Inc()
		log.Debug("carrier not set up", "error", err)
		return
	}
	e.pool.env.metrics.carriersBegun.Inc()
	log.Debug("carrier up", "remote", c.raw.RemoteAddr())
	log.Debug("carrier ended", "error", c.run())
}

// connect dials a carrier and exchanges HELLO and WELCOME.
func (e *peer) connect(ctx context.Context, t *tunnel, number uint32) (c *carrier, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	addrs := *e.addresses.Load()
	raw, err := e.pool.cfg.Dial(ctx, addrs[int(number)%len(addrs)])
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	setupSocket(raw, t.env.CongestionControl, t.env.log)
	conn := tls.Client(below(raw), carrierTLS(e.pool.cfg.ClientTLS(e.id)))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	hello := wire.Hello{
		VersionMin: wire.VersionMin, VersionMax: wire.VersionMax,
		Tunnel: t.id, Number: number, Window: uint64(t.env.Window),
	}
	if _, err := conn.Write(hello.Append(nil)); err != nil {
		return nil, fmt.Errorf("say hello: %w", err)
	}
	var w wire.Welcome
	if err := readFrame(conn, wire.TypeWelcome, w.Decode); err != nil {
		return nil, err
	}
	if w.Code != wire.WelcomeOK {
		return nil, fmt.Errorf("peer did not take the carrier: %v", w.Code)
	}
	_ = raw.SetDeadline(time.Time{})
	e.welcome(t, &w)
	return newCarrier(t, conn, raw, number), nil
}

// welcome notes what the gateway said. A generation that is not the one we know means that the
// gateway has forgotten the tunnel's streams.
func (e *peer) welcome(t *tunnel, w *wire.Welcome) {
	t.mu.Lock()
	stale := t.generation != 0 && t.generation != w.Generation
	t.generation = w.Generation
	if stale {
		t.parts = groupParts{}
	}
	t.mu.Unlock()
	t.peerWindow.Store(w.Window)
	if !stale {
		return
	}
	t.env.log.Warn("peer was restarted: its streams are lost", "peer", e.id)
	t.groups.Store(nil)
	t.draining.Store(false)
	for _, c := range t.carriers() {
		c.close()
	}
	t.resetAll(wire.ResetPeerLost)
}

// carrierTLS adds what every carrier needs to a configuration of the identity recipe.
func carrierTLS(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{wire.ALPN}
	cfg.DynamicRecordSizingDisabled = true // records of 16 KiB from the first byte on
	return cfg
}

// readFrame reads one frame, which must be of the type.
func readFrame(r io.Reader, want wire.Type, decode func([]byte) error) error {
	var header [wire.HeaderBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return fmt.Errorf("wait for %v: %w", want, err)
	}
	t, n, _, err := wire.ParseHeader(header[:])
	if err != nil {
		return err
	}
	if t != want || n > firstFrameMax {
		return fmt.Errorf("%v of %d bytes instead of %v: %w", t, n, want, wire.ErrInvalid)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return fmt.Errorf("wait for %v: %w", want, err)
	}
	return decode(p)
}

// publish recomputes the peer's state, and has listeners called if it differs by enough.
func (e *peer) publish() {
	e.succeed()
	t := e.tunnel.Load()
	s := PeerState{
		Draining: t.draining.Load(), RTT: time.Duration(t.rttNow.Load()),
		Loss: float32(t.says.Load()>>8) / 1e6, UDP: t.udpUp(),
	}
	for _, c := range t.carriers() {
		s.Up = s.Up || !c.stalled.Load()
		if c.rank() < 2 {
			s.Carriers++
		}
		if _, least := c.health.rtt(); least > 0 && (s.RTTMin == 0 || least < s.RTTMin) {
			s.RTTMin = least
		}
	}
	e.mu.Lock()
	e.state.Store(&s)
	groups := t.groups.Load()
	news := s.Up != e.told.Up || s.Draining != e.told.Draining || s.UDP != e.told.UDP ||
		groups != e.toldGroups || differs(s.RTT, e.told.RTT)
	if news {
		e.told, e.toldGroups = s, groups
	}
	e.mu.Unlock()
	if news {
		e.pool.change()
	}
}

// differs reports whether a round trip time has changed by more than a tenth, and enough to matter.
func differs(a, b time.Duration) bool {
	d := (a - b).Abs()
	return d > b/10 && d > 500*time.Microsecond
}
