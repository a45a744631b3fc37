package backbone

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

func TestHalfClose(t *testing.T) {
	w := newWorld(t, accept(func(c *conn, _ wire.Open) {
		c.s.OpenResult(wire.OpenResult{})
		all, err := io.ReadAll(c) // until the edge's FIN, while our direction is open
		if err != nil {
			t.Error(err)
		}
		if _, err := c.Write(append([]byte("got "), all...)); err != nil {
			t.Error(err)
		}
		c.s.CloseWrite()
	}))
	w.waitUp(1)
	c := w.open()
	if _, err := c.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	c.s.CloseWrite()
	if _, err := c.Write([]byte("more")); !errors.Is(err, ErrClosed) {
		t.Fatalf("write after CloseWrite: %v", err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "got question" {
		t.Fatalf("%q, %v", got, err)
	}
	w.checkClean()
}

func TestServerFirst(t *testing.T) {
	w := newWorld(t, accept(func(c *conn, _ wire.Open) {
		c.s.OpenResult(wire.OpenResult{})
		if _, err := c.Write([]byte("220 ready")); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, c)
		c.s.CloseWrite()
	}))
	w.waitUp(1)
	c := w.open()
	buf := make([]byte, 9)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "220 ready" {
		t.Fatalf("%q, %v", buf, err)
	}
	c.s.CloseWrite()
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

func TestResetReachesTheOtherSide(t *testing.T) {
	reasons := make(chan wire.ResetReason, 1)
	w := newWorld(t, accept(func(c *conn, o wire.Open) {
		c.s.OpenResult(wire.OpenResult{})
		if o.Group == "resets" {
			c.s.Reset(wire.ResetIdle)
			return
		}
		reasons <- c.waitReset()
	}))
	w.waitUp(2)

	c := w.open()
	if _, err := c.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.opened(); err != nil { // a reset before the Open has left would cancel that
		t.Fatal(err)
	}
	c.s.Reset(wire.ResetByPeer)
	c.s.Reset(wire.ResetIdle) // too late
	if r := next(t, "the reset", reasons); r != wire.ResetByPeer {
		t.Fatalf("gateway saw %v", r)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("write after Reset: %v", err)
	}

	d := newConn()
	d.set(w.openTo("resets", d))
	if r := d.waitReset(); r != wire.ResetIdle {
		t.Fatalf("edge saw %v", r)
	}
	var reset *ResetError
	if _, err := d.Write([]byte("x")); !errors.As(err, &reset) || reset.Reason != wire.ResetIdle {
		t.Fatalf("write after the peer's reset: %v", err)
	}
	w.checkClean()
}

func TestOpenRefused(t *testing.T) {
	w := newWorld(t, func(s *Stream, o *wire.Open) Sink {
		if o.Group == "nobody" {
			return nil
		}
		c := newConn()
		c.set(s)
		s.OpenResult(wire.OpenResult{Code: wire.OpenTimeout, Endpoint: "10.0.0.1"})
		if _, err := s.Write([]byte("x")); !errors.Is(err, ErrClosed) {
			t.Errorf("write after a refusal: %v", err)
		}
		return c
	})
	w.waitUp(2)
	c := w.open()
	_, _ = c.Write(make([]byte, 50_000)) // early bytes: the relay keeps them for the next candidate
	if r, err := c.opened(); err != nil || r.Code != wire.OpenTimeout || r.Endpoint != "10.0.0.1" {
		t.Fatalf("%v, %v", r, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("write after the refusal: %v", err)
	}
	d := newConn()
	d.set(w.openTo("nobody", d))
	if r := d.waitReset(); r != wire.ResetRefused {
		t.Fatalf("edge saw %v", r)
	}
	w.checkClean()
}

// TestReadFromSocket sends from a TCP connection through the tunnel.
func TestReadFromSocket(t *testing.T) {
	w := newWorld(t, accept(echo))
	w.waitUp(1)
	ours, theirs := tcpPair(t)
	defer ours.Close()
	message := bytes.Repeat([]byte("a line of text\n"), 200_000)
	go func() {
		defer theirs.Close()
		for _, cut := range []int{1, 500, 10_000, 1_000_000} { // small and large pieces
			if _, err := theirs.Write(message[:cut]); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	c := w.open()
	sent := make(chan error, 1)
	go func() {
		_, err := c.s.ReadFrom(ours)
		c.s.CloseWrite()
		sent <- err
	}()
	var want []byte
	for _, cut := range []int{1, 500, 10_000, 1_000_000} {
		want = append(want, message[:cut]...)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if err := next(t, "the end of the source", sent); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

// TestReadFromEndsWithTheStream resets a stream while its source is silent, and while it is not.
func TestReadFromEndsWithTheStream(t *testing.T) {
	w := newWorld(t, accept(func(c *conn, _ wire.Open) {
		c.s.OpenResult(wire.OpenResult{})
		_, _ = c.Read(make([]byte, 1))
		c.s.Reset(wire.ResetByPeer)
	}))
	w.waitUp(1)
	ours, theirs := tcpPair(t)
	defer ours.Close()
	defer theirs.Close()
	c := w.open()
	if _, err := theirs.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := c.s.ReadFrom(ours); done <- err }()
	c.waitReset()
	if _, err := theirs.Write([]byte("x")); err != nil { // it notices at the next byte
		t.Fatal(err)
	}
	var reset *ResetError
	if err := next(t, "the end of ReadFrom", done); !errors.As(err, &reset) {
		t.Fatal(err)
	}
	w.checkClean()
}

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ca, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cb, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return ca.(*net.TCPConn), cb.(*net.TCPConn)
}

// A deafSink takes nothing, ever, until it is told to.
type deafSink struct {
	mu    sync.Mutex
	take  bool
	taken int
	fin   bool
	reset bool
}

func (d *deafSink) Opened(wire.OpenResult) {}

func (d *deafSink) Deliver(p []byte, fin bool) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.take {
		return 0
	}
	d.taken += len(p)
	d.fin = fin
	return len(p)
}

func (d *deafSink) Reset(wire.ResetReason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reset = true
}

// TestDeafSinks opens a thousand streams whose sinks take nothing while the gateway sends without
// end: memory stays within the bound at both sides, other streams go on, and when the sinks listen
// after all, nothing is missing.
func TestDeafSinks(t *testing.T) {
	const deaf, each, limit = 1000, 256 << 10, 16 << 20
	var sending sync.WaitGroup
	t.Cleanup(sending.Wait) // after the world has ended: what fails must not outlive the test
	w := newWorld(t, func(s *Stream, o *wire.Open) Sink {
		c := newConn()
		c.set(s)
		s.OpenResult(wire.OpenResult{})
		sending.Go(func() {
			if o.Group == "g" {
				echo(c, *o)
				return
			}
			if _, err := s.Write(make([]byte, each)); err != nil {
				t.Errorf("gateway: %v", err)
			}
			s.CloseWrite()
		})
		return c
	}, func(p *PoolConfig, s *ServerConfig) {
		p.Memory, s.Memory = NewMemory(limit), NewMemory(limit)
		p.PingInterval, s.PingInterval = 0, 0 // the machine is busy, and nothing is broken here
		p.DeadAfter, s.DeadAfter = 0, 0
	})
	w.waitUp(2)
	var sinks []*deafSink
	for range deaf {
		d := &deafSink{}
		w.openTo("deaf", d).CloseWrite()
		sinks = append(sinks, d)
	}
	// Everything that can arrive has arrived when both sides' memory has stopped moving.
	var used [2]int64
	still := 0
	waitFor(t, "memory to settle", func() bool {
		now := [2]int64{w.pool.env.memory.Used(), w.server.env.memory.Used()}
		if now == used && now[0] > 0 {
			still++
		} else {
			used, still = now, 0
		}
		return still > 50
	})
	slack := int64(deaf * chunkClasses[1]) // what each may hold however little is left
	if used[0] > limit+slack || used[1] > limit+slack {
		t.Fatalf("%d and %d bytes are held, limit %d", used[0], used[1], limit)
	}
	t.Logf("held: %d at the edge, %d at the gateway, limit %d; not kept: %v bytes", used[0], used[1], limit,
		count(w.pool.env.metrics.reneged))

	c := w.open() // others go on
	go func() { _, _ = c.Write(make([]byte, 300_000)); c.s.CloseWrite() }()
	if got, err := io.ReadAll(c); err != nil || len(got) != 300_000 {
		t.Fatalf("beside deaf sinks: %d bytes, %v", len(got), err)
	}

	tunnel := (*w.pool.peers.Load())["gw-1"].tunnel.Load()
	for _, d := range sinks {
		d.mu.Lock()
		d.take = true
		d.mu.Unlock()
	}
	tunnel.streams.each(func(s *Stream) { s.Resume() })
	taken := func() (bytes, done int) {
		for _, d := range sinks {
			d.mu.Lock()
			bytes += d.taken
			if d.fin && d.taken == each && !d.reset {
				done++
			}
			d.mu.Unlock()
		}
		return bytes, done
	}
	for done := 0; done < deaf; { // a quarter of a gigabyte: as long as it takes, but never standing still
		before, _ := taken()
		waitFor(t, "sinks to get more", func() bool {
			var now int
			now, done = taken()
			return now > before || done == deaf
		})
	}
	sending.Wait()
	w.checkClean()
}
