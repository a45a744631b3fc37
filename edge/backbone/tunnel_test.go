package backbone

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/datagram"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// TestEveryPathDown cuts all carriers: no new stream begins, an old one waits and goes on when there
// is a path again.
func TestEveryPathDown(t *testing.T) {
	w := newWorld(t, accept(echo), func(p *PoolConfig, s *ServerConfig) {
		p.PathWait, s.PathWait = time.Minute, time.Minute
	})
	w.waitUp(2)
	c := w.open()
	ping := func() {
		t.Helper()
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	ping()
	w.net.setCut(true)
	for _, f := range w.net.alive() {
		f.kill()
	}
	waitFor(t, "the peer to be down", func() bool { s, _ := w.pool.Peer("gw-1"); return !s.Up })
	if _, err := w.pool.Open("gw-1", wire.Open{}, newConn()); !errors.Is(err, ErrNoPath) {
		t.Fatalf("open without a path: %v", err)
	}
	if _, err := w.pool.Open("gw-2", wire.Open{}, newConn()); !errors.Is(err, ErrNoPath) {
		t.Fatalf("open to a stranger: %v", err)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		w.net.setCut(false)
	}()
	ping() // waits for the path
	c.s.CloseWrite()
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

// TestPathLostForGood gives streams up after PathWait, at both sides.
func TestPathLostForGood(t *testing.T) {
	gateway := make(chan wire.ResetReason, 1)
	w := newWorld(t, accept(func(c *conn, _ wire.Open) {
		c.s.OpenResult(wire.OpenResult{})
		gateway <- c.waitReset()
	}), func(p *PoolConfig, s *ServerConfig) {
		p.PathWait, s.PathWait = 200*time.Millisecond, 200*time.Millisecond
		p.DeadAfter, s.DeadAfter = time.Minute, time.Minute // not for want of time, before the path is lost
	})
	w.waitUp(2)
	c := w.open()
	if _, err := c.opened(); err != nil {
		t.Fatal(err)
	}
	w.net.setCut(true)
	for _, f := range w.net.alive() {
		f.kill()
	}
	if r := c.waitReset(); r != wire.ResetPathLost {
		t.Fatalf("edge: %v", r)
	}
	if r := next(t, "the gateway's reset", gateway); r != wire.ResetPathLost {
		t.Fatalf("gateway: %v", r)
	}
	w.net.setCut(false)
	w.waitUp(2)
	w.checkClean()
}

// TestSilentCarriers stalls every carrier: the peer is down within a few questions, and up again
// when they speak, without a stream being lost.
func TestSilentCarriers(t *testing.T) {
	w := newWorld(t, accept(echo), func(p *PoolConfig, s *ServerConfig) {
		p.DeadAfter, s.DeadAfter = time.Minute, time.Minute
		p.CarriersMax = 2
	})
	w.waitUp(2)
	c := w.open()
	w.net.setCut(true)
	for _, f := range w.net.alive() {
		f.stall(true)
	}
	waitFor(t, "the peer to be down", func() bool { s, _ := w.pool.Peer("gw-1"); return !s.Up })
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	w.net.heal()
	waitFor(t, "the peer to be up", func() bool { s, _ := w.pool.Peer("gw-1"); return s.Up })
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	c.s.Reset(wire.ResetByPeer)
	w.checkClean()
}

// TestOneSilentCarrier stalls the carrier that a stream is on: the stream goes on by another, long
// before the carrier is given up.
func TestOneSilentCarrier(t *testing.T) {
	w := newWorld(t, accept(echo), func(p *PoolConfig, s *ServerConfig) {
		p.DeadAfter, s.DeadAfter = time.Minute, time.Minute
	})
	w.waitUp(2)
	for range 10 {
		c := w.open()
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		alive := w.net.alive()
		alive[0].stall(true)
		if _, err := c.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		c.s.CloseWrite()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		alive[0].stall(false)
	}
	w.checkClean()
}

func TestServerRestart(t *testing.T) {
	w := newWorld(t, accept(echo))
	w.waitUp(2)
	c := w.open()
	if _, err := c.opened(); err != nil {
		t.Fatal(err)
	}
	addr := w.gateway.BackboneAddresses[0].String()
	w.stopServer()
	w.ends("the server", w.serverDone)
	if r := c.waitReset(); r != wire.ResetShutdown {
		t.Fatalf("edge saw %v", r)
	}
	w.startServer(addr)
	w.waitUp(2)
	d := w.open()
	d.s.CloseWrite()
	if _, err := io.ReadAll(d); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

// TestServerCrash restarts a server that said nothing: the edge learns from the generation that its
// streams are lost.
func TestServerCrash(t *testing.T) {
	w := newWorld(t, accept(echo), func(p *PoolConfig, _ *ServerConfig) { p.PathWait = time.Minute })
	w.waitUp(2)
	c := w.open()
	if _, err := c.opened(); err != nil {
		t.Fatal(err)
	}
	t.Log("crash")
	addr := w.gateway.BackboneAddresses[0].String()
	w.net.setCut(true)
	for _, f := range w.net.alive() {
		f.kill()
	}
	w.stopServer()
	w.ends("the server", w.serverDone)
	w.startServer(addr)
	w.net.setCut(false)
	if r := c.waitReset(); r != wire.ResetPeerLost {
		t.Fatalf("edge saw %v", r)
	}
	w.waitUp(2)
	w.checkClean()
}

func TestPoolGoesAway(t *testing.T) {
	gateway := make(chan wire.ResetReason, 1)
	w := newWorld(t, accept(func(c *conn, _ wire.Open) {
		c.s.OpenResult(wire.OpenResult{})
		gateway <- c.waitReset()
	}))
	w.waitUp(1)
	c := w.open()
	if _, err := c.opened(); err != nil {
		t.Fatal(err)
	}
	w.pool.SetPeers([]model.Node{w.edge})
	if r := next(t, "the gateway's reset", gateway); r != wire.ResetShutdown {
		t.Fatalf("gateway saw %v", r)
	}
	if r := c.waitReset(); r != wire.ResetShutdown {
		t.Fatalf("edge saw %v", r)
	}
	waitFor(t, "the tunnel to be forgotten", func() bool { return len(w.server.all()) == 0 })
	waitFor(t, "the peer to be forgotten", func() bool { _, ok := w.pool.Peer("gw-1"); return !ok })
}

func TestRevoked(t *testing.T) {
	w := newWorld(t, accept(echo))
	w.waitUp(2)
	c := w.open()
	if _, err := c.opened(); err != nil {
		t.Fatal(err)
	}
	revoked := w.edge
	revoked.State = model.NodeRevoked
	w.server.SetPeers([]model.Node{revoked, w.gateway})
	if r := c.waitReset(); r != wire.ResetRevoked {
		t.Fatalf("edge saw %v", r)
	}
	failed := count(w.server.env.metrics.carriersFailed)
	waitFor(t, "the edge to be turned away", func() bool {
		return count(w.server.env.metrics.carriersFailed) > failed+2
	})
	if s, _ := w.pool.Peer("gw-1"); s.Up {
		t.Fatal("up though revoked")
	}
	w.server.SetPeers([]model.Node{w.edge, w.gateway})
	w.waitUp(2)
}

func TestGroupsReachEdges(t *testing.T) {
	changes := new(atomic.Int32)
	w := newWorld(t, accept(echo))
	w.pool.OnChange(func() { changes.Add(1) })
	w.waitUp(2)
	if g := w.pool.GroupState("gw-1"); g != nil {
		t.Fatalf("nothing was announced: %v", g)
	}
	want := map[model.GroupID]bool{}
	for i := range 5000 { // more than one frame
		want[model.GroupID(fmt.Sprintf("%012x", i))] = i%3 == 0
	}
	same := func() bool { return maps.Equal(want, w.pool.GroupState("gw-1")) }
	w.server.AnnounceGroups(want)
	waitFor(t, "groups", same)
	if changes.Load() == 0 {
		t.Fatal("nobody was told")
	}
	for i := range 30 { // while carriers die
		want = map[model.GroupID]bool{"000000000001": i%2 == 0, model.GroupID(fmt.Sprint(i)): true}
		w.server.AnnounceGroups(want)
		w.net.killOne()
		waitFor(t, "new groups", same)
	}
	for _, f := range w.net.alive() {
		f.kill()
	}
	want = map[model.GroupID]bool{}
	w.server.AnnounceGroups(want)
	waitFor(t, "no groups", func() bool { g := w.pool.GroupState("gw-1"); return g != nil && len(g) == 0 })
}

func TestDrain(t *testing.T) {
	w := newWorld(t, accept(echo))
	w.waitUp(2)
	c := w.open()
	w.server.Drain()
	waitFor(t, "GOAWAY", func() bool { s, _ := w.pool.Peer("gw-1"); return s.Draining && s.Up })
	if _, err := c.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	c.s.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "still here" {
		t.Fatalf("%q, %v", got, err)
	}
	w.checkClean()
}

// TestStrangersAreTurnedAway connects with another cluster's certificate, and speaks nonsense.
func TestStrangersAreTurnedAway(t *testing.T) {
	w := newWorld(t, accept(echo), func(p *PoolConfig, s *ServerConfig) {
		p.Credentials = (&world{t: t, ca: otherCA(t)}).credentials("edge-1")
	})
	waitFor(t, "failures", func() bool { return count(w.server.env.metrics.carriersFailed) > 3 })
	if s, ok := w.pool.Peer("gw-1"); !ok || s.Up {
		t.Fatalf("%+v, %v", s, ok)
	}
}

// messages makes n datagram messages with numbers from first on.
func messages(first, n int) (msgs [][]byte) {
	for i := range n {
		m := (&wire.DatagramClose{FlowID: uint64(first + i)}).Append(nil)
		msgs = append(msgs, m)
	}
	return msgs
}

func flowOf(m []byte) uint64 {
	_, flow, _ := wire.DatagramHead(m)
	return flow
}

// TestDatagramsOverCarriers has no UDP at all.
func TestDatagramsOverCarriers(t *testing.T) {
	got, ready := make(chan uint64, 1000), make(chan struct{})
	var w *world
	w = newWorld(t, accept(echo), func(p *PoolConfig, s *ServerConfig) {
		s.HandleDatagrams = func(peer model.NodeID, msgs [][]byte) {
			<-ready
			if peer != "edge-1" {
				t.Errorf("from %s", peer)
			}
			for _, m := range msgs {
				w.server.SendDatagrams(peer, [][]byte{m})
			}
		}
		p.HandleDatagrams = func(_ model.NodeID, msgs [][]byte) {
			for _, m := range msgs {
				got <- flowOf(m)
			}
		}
		// What is on a carrier that passes for dead is lost.
		p.PingInterval, s.PingInterval = 2*time.Second, 2*time.Second
		p.DeadAfter, s.DeadAfter = time.Minute, time.Minute
	})
	close(ready)
	w.waitUp(2)
	if n := w.pool.SendDatagrams("gw-1", messages(1, 100)); n != 100 {
		t.Fatalf("took %d", n)
	}
	seen := map[uint64]bool{}
	for range 100 {
		seen[next(t, "datagrams", got)] = true
	}
	if len(seen) != 100 {
		t.Fatalf("%d different messages", len(seen))
	}
	if s, _ := w.pool.Peer("gw-1"); s.UDP {
		t.Fatal("UDP without a transport")
	}
	// The queue of a carrier is bounded.
	for _, f := range w.net.alive() {
		f.stall(true)
	}
	large := make([][]byte, 4000)
	for i := range large {
		large[i] = binary.BigEndian.AppendUint64(make([]byte, 1000), uint64(i))
	}
	if n := w.pool.SendDatagrams("gw-1", large); n == len(large) {
		t.Fatalf("took all %d", n)
	}
	if count(w.pool.env.metrics.datagramsDropped) == 0 {
		t.Fatal("drops were not counted")
	}
}

// TestDatagramsByUDP keys the channel from the tunnel, and again when the carrier that keyed it
// dies.
func TestDatagramsByUDP(t *testing.T) {
	got, ready := make(chan uint64, 1000), make(chan struct{})
	var w *world
	w = newWorld(t, accept(echo), func(p *PoolConfig, s *ServerConfig) {
		s.HandleDatagrams = func(peer model.NodeID, msgs [][]byte) { <-ready; w.server.SendDatagrams(peer, msgs) }
		p.HandleDatagrams = func(_ model.NodeID, msgs [][]byte) {
			for _, m := range msgs {
				got <- flowOf(m)
			}
		}
		p.Transport = transport(t, "")
		s.Transport = transport(t, s.Listener.Addr().String())
	})
	close(ready)
	up := func() bool { s, _ := w.pool.Peer("gw-1"); return s.Up && s.UDP }
	epoch := func() uint32 {
		return (*w.pool.peers.Load())["gw-1"].tunnel.Load().keys.channel.Load().Stats().Epoch
	}
	waitFor(t, "UDP", up)
	for i := range 5 {
		before := epoch()
		if n := w.pool.SendDatagrams("gw-1", messages(100*i, 50)); n != 50 {
			t.Fatalf("took %d", n)
		}
		for range 50 {
			next(t, "datagrams", got)
		}
		if carried := count(w.pool.env.metrics.datagramsCarried); carried != 0 {
			t.Fatalf("%v went over carriers", carried)
		}
		for _, f := range w.net.alive() {
			f.kill()
		}
		waitFor(t, "a new epoch", func() bool { return epoch() > before && up() })
	}
}

func transport(t *testing.T, listen string) *datagram.Transport {
	t.Helper()
	cfg := datagram.Config{Lanes: 1, Sockets: 1}
	if listen != "" {
		cfg.Listen = netip.MustParseAddrPort(listen)
	}
	tr, err := datagram.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return tr
}
