package pump

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience bounds waits that end at once unless something is broken.
const patience = 60 * time.Second

// until waits until done is true.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// flow is a client and an application with a pump between them.
type flow struct {
	client, app *net.TCPConn
	ends        chan End // of what lies between; nobody else reads them
	ownersLeft  int      // how many ends there will be
	end         func(wire.ResetReason)
}

// ways are the pumps: both are to behave alike.
func ways(t *testing.T, f func(t *testing.T, join func() *flow)) {
	t.Run("splice", func(t *testing.T) {
		pipes := &Pipes{}
		var running sync.WaitGroup
		t.Cleanup(func() { running.Wait(); pipes.Close() })
		f(t, func() *flow { return joinSplice(t, pipes, &running) })
	})
	t.Run("stream", func(t *testing.T) {
		w := newWorld(t)
		f(t, w.join)
	})
}

// tcpPair returns the two ends of a connection.
func tcpPair(t testing.TB) (outside, inside *net.TCPConn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

type ends chan End

func (e ends) Ended(end End) { e <- end }

func joinSplice(t testing.TB, pipes *Pipes, running *sync.WaitGroup) *flow {
	t.Helper()
	f := &flow{ends: make(chan End, 8), ownersLeft: 1}
	var a, b *net.TCPConn
	f.client, a = tcpPair(t)
	f.app, b = tcpPair(t)
	s := new(Splice)
	if err := s.Init(a, b, ends(f.ends), pipes); err != nil {
		t.Fatal(err)
	}
	running.Go(s.CopyAB)
	running.Go(s.CopyBA)
	f.end = s.End
	return f
}

// world is two nodes with a tunnel; each side of a stream is a Pair.
type world struct {
	t            testing.TB
	pool         *backbone.Pool
	running      sync.WaitGroup
	coming, here chan *flow // flows whose far side is not there yet, and is
}

// side is the sink of one end of a stream.
type side struct{ Pair }

func (s *side) Opened(wire.OpenResult) {}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, coming: make(chan *flow, 1), here: make(chan *flow, 1)}
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	common := func(name string) backbone.Common {
		key, csr, err := identity.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		der, err := ca.Sign(csr, identity.Subject{Cluster: "test", Kind: identity.KindNode, Name: name}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		c, err := identity.NewCredentials(der, key, []*x509.Certificate{ca.Certificate()})
		if err != nil {
			t.Fatal(err)
		}
		return backbone.Common{Credentials: c, LeaveHost: true, DeadAfter: patience}
	}
	server, err := backbone.NewServer(backbone.ServerConfig{Common: common("far"), Listener: l, HandleStream: w.accept})
	if err != nil {
		t.Fatal(err)
	}
	if w.pool, err = backbone.NewPool(backbone.PoolConfig{Common: common("near"), Self: "near"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = server.Run(ctx) })
	done.Go(func() { _ = w.pool.Run(ctx) })
	t.Cleanup(func() { w.running.Wait(); cancel(); done.Wait() })
	nodes := []model.Node{{ID: "near", Edge: true},
		{ID: "far", Gateway: true, BackboneAddresses: []netip.AddrPort{l.Addr().(*net.TCPAddr).AddrPort()}}}
	server.SetPeers(nodes)
	w.pool.SetPeers(nodes)
	until(t, "the tunnel is up", func() bool {
		p, _ := w.pool.Peer("far")
		return p.Up
	})
	return w
}

// accept joins a stream to its application's connection.
func (w *world) accept(s *backbone.Stream, _ *wire.Open) backbone.Sink {
	f := <-w.coming
	var inside *net.TCPConn
	f.app, inside = tcpPair(w.t)
	far := &side{}
	far.Begin(ends(f.ends), &w.running)
	far.SetStream(s)
	if !far.Attach(inside) {
		w.t.Error("attach: the flow is over")
	}
	s.OpenResult(wire.OpenResult{Code: wire.OpenOK})
	w.running.Go(far.Copy)
	w.here <- f
	return far
}

func (w *world) join() *flow {
	w.t.Helper()
	f := &flow{ends: make(chan End, 8), ownersLeft: 2}
	var inside *net.TCPConn
	f.client, inside = tcpPair(w.t)
	near := &side{}
	near.Begin(ends(f.ends), &w.running)
	if !near.Attach(inside) {
		w.t.Fatal("attach: the flow is over")
	}
	w.coming <- f
	s, err := w.pool.Open("far", wire.Open{}, near)
	if err != nil {
		w.t.Fatal(err)
	}
	near.SetStream(s)
	w.running.Go(near.Copy)
	select {
	case <-w.here:
	case <-time.After(patience):
		w.t.Fatal("the far side does not come")
	}
	f.end = near.End
	return f
}

// over waits until every owner was told of the end, once, and returns what they were told.
func (f *flow) over(t *testing.T) (told []End) {
	t.Helper()
	for range f.ownersLeft {
		select {
		case e := <-f.ends:
			told = append(told, e)
		case <-time.After(patience):
			t.Fatalf("the flow does not end; so far: %v", told)
		}
	}
	select {
	case e := <-f.ends:
		t.Errorf("an owner was told twice: %v", e)
	default:
	}
	return told
}

func pattern(n int, seed uint64) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

// TestBothDirections: bytes pass both ways at once, as they are, and each end is passed on by itself.
func TestBothDirections(t *testing.T) {
	ways(t, func(t *testing.T, join func() *flow) {
		for _, size := range []int{0, 1, 100_000, 3_000_000} {
			f := join()
			up, down := pattern(size, 1), pattern(size+7, 2)
			var all sync.WaitGroup
			send := func(c *net.TCPConn, b []byte) {
				all.Go(func() {
					if _, err := c.Write(b); err != nil {
						t.Error(err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				})
			}
			receive := func(c *net.TCPConn, want []byte) {
				all.Go(func() {
					if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes came, %v; want %d", len(got), err, len(want))
					}
				})
			}
			send(f.client, up)
			send(f.app, down)
			receive(f.client, down)
			receive(f.app, up)
			all.Wait()
			for _, e := range f.over(t) {
				if e.Cause != EndedWell {
					t.Errorf("it ended %v (%v)", e.Cause, e.Reason)
				}
			}
		}
	})
}

// TestHalfClose: after one direction has ended the other one goes on for as long as it likes.
func TestHalfClose(t *testing.T) {
	ways(t, func(t *testing.T, join func() *flow) {
		for _, fromApp := range []bool{false, true} {
			f := join()
			first, second := f.client, f.app
			if fromApp {
				first, second = second, first
			}
			if _, err := io.WriteString(first, "question"); err != nil {
				t.Fatal(err)
			}
			_ = first.CloseWrite()
			if got, err := io.ReadAll(second); err != nil || string(got) != "question" {
				t.Fatalf("%q, %v", got, err)
			}
			for i := range 3 {
				if _, err := second.Write([]byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
				in := make([]byte, 1)
				if _, err := io.ReadFull(first, in); err != nil || in[0] != byte(i) {
					t.Fatalf("%v, %v", in, err)
				}
			}
			_ = second.CloseWrite()
			if got, err := io.ReadAll(first); err != nil || len(got) != 0 {
				t.Fatalf("%q, %v", got, err)
			}
			f.over(t)
		}
	})
}

// TestReset: a reset of either side is a reset of the other, and the owners know who it was.
func TestReset(t *testing.T) {
	ways(t, func(t *testing.T, join func() *flow) {
		for _, fromApp := range []bool{false, true} {
			f := join()
			resets, suffers := f.client, f.app
			if fromApp {
				resets, suffers = suffers, resets
			}
			if _, err := resets.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(suffers, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = resets.SetLinger(0)
			resets.Close()
			if _, err := suffers.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other side sees %v, want a reset", err)
			}
			causes := map[Cause]int{}
			for _, e := range f.over(t) {
				causes[e.Cause]++
			}
			want := map[Cause]int{SocketFailed: 1, StreamReset: 1}
			if f.ownersLeft == 1 { // a splice has one owner: the client's side is its socket
				want = map[Cause]int{SocketFailed: 1}
				if fromApp {
					want = map[Cause]int{StreamReset: 1}
				}
			}
			for c, n := range want {
				if causes[c] != n {
					t.Errorf("causes %v, want %v", causes, want)
				}
			}
		}
	})
}

// TestEnd: an owner that ends a flow resets both sides, unless it was idle.
func TestEnd(t *testing.T) {
	ways(t, func(t *testing.T, join func() *flow) {
		for reason, want := range map[wire.ResetReason]error{
			wire.ResetIdle: io.EOF, wire.ResetRemoved: syscall.ECONNRESET, wire.ResetShutdown: syscall.ECONNRESET,
		} {
			f := join()
			f.end(reason)
			f.end(wire.ResetByPeer) // too late
			for _, c := range []*net.TCPConn{f.client, f.app} {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want) {
					t.Errorf("%v: a side sees %v, want %v", reason, err, want)
				}
			}
			told := 0
			for _, e := range f.over(t) {
				switch e.Reason {
				case reason:
					told++
				case wire.ResetUnknown: // the answer to what the far node sent meanwhile was faster
				default:
					t.Errorf("an owner was told %v, want %v", e.Reason, reason)
				}
			}
			if told == 0 {
				t.Errorf("no owner was told %v", reason)
			}
		}
	})
}

// TestStalledReader: while a side reads nothing, the other one is held back after a bounded number of
// bytes; when it reads again, every byte is there.
func TestStalledReader(t *testing.T) {
	ways(t, func(t *testing.T, join func() *flow) {
		f := join()
		_ = f.client.SetReadBuffer(64 << 10)
		const size = 96 << 20 // more than all buffers on the way hold
		want := pattern(1<<20, 9)
		wrote := make(chan int, 1)
		progress := make(chan struct{}, 1)
		go func() {
			total := 0
			for total < size {
				n, err := f.app.Write(want)
				total += n
				if err != nil {
					t.Error(err)
					break
				}
				select {
				case progress <- struct{}{}:
				default:
				}
			}
			_ = f.app.CloseWrite()
			wrote <- total
		}()
		for moving := true; moving; {
			select {
			case <-progress:
			case <-time.After(time.Second):
				moving = false
			case <-wrote:
				t.Fatal("the sender was never held back")
			}
		}
		got, err := 0, error(nil)
		for buf := make([]byte, 1<<20); err == nil; {
			var n int
			n, err = io.ReadFull(f.client, buf)
			if !bytes.Equal(buf[:n], want[:n]) {
				t.Fatalf("wrong bytes behind %d", got)
			}
			got += n
		}
		if err != io.EOF || got != <-wrote || got != size {
			t.Fatalf("%d bytes, %v; want %d", got, err, size)
		}
		_ = f.client.CloseWrite()
		f.over(t)
	})
}

// TestEndBeforeAttach: a flow that was ended while it had no connection resets the one that comes.
func TestEndBeforeAttach(t *testing.T) {
	outside, inside := tcpPair(t)
	var p side
	var running sync.WaitGroup
	told := make(ends, 2)
	p.Begin(told, &running)
	p.End(wire.ResetShutdown)
	p.End(wire.ResetIdle)
	if e := <-told; e.Cause != OwnerEnded || e.Reason != wire.ResetShutdown || len(told) != 0 {
		t.Errorf("told %v and %d more", e, len(told))
	}
	if p.Attach(inside) || !p.Over() {
		t.Error("a flow that is over took a connection")
	}
	if _, err := outside.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if p.SetStream(nil) {
		t.Error("a flow that is over took a stream")
	}
}
