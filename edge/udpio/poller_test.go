package udpio

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pollable opens a socket as a gateway does: one of thousands.
func pollable(t testing.TB, remote netip.AddrPort) *Conn {
	return mustDial(t, remote, Options{Unpolled: true, RecvBuffer: -1, SendBuffer: -1})
}

// startPoller runs a poller until the test ends.
func startPoller[T any](t testing.TB, cfg PollerConfig[T]) *Poller[T] {
	t.Helper()
	p, err := NewPoller(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

// echo answers everything until the test ends.
func echo(t testing.TB) *Conn {
	server := mustListen(t, loopback4, Options{})
	var done sync.WaitGroup
	done.Go(func() {
		pkts := make([]Packet, 128)
		for {
			n, err := server.ReadBatch(pkts)
			if err != nil {
				return
			}
			for at := 0; at < n; {
				k, err := server.WriteBatch(pkts[at:n])
				if at += k; err != nil && !Full(err) {
					return
				}
			}
		}
	})
	t.Cleanup(func() { server.Close(); done.Wait() })
	return server
}

type pollFlow struct {
	id   uint32
	got  atomic.Int64
	conn *Conn
}

// Many sockets, few goroutines: each flow gets its own packets, in order.
func TestPollerKeepsFlowsApart(t *testing.T) {
	const flows, rounds = 500, 20
	server := echo(t)
	var total atomic.Int64
	all := make(chan struct{})
	p := startPoller(t, PollerConfig[*pollFlow]{Loops: 3, Handle: func(f *pollFlow, pkts []Packet, err error) {
		for _, pkt := range pkts {
			id, seq := binary.BigEndian.Uint32(pkt.Data), binary.BigEndian.Uint32(pkt.Data[4:])
			if id != f.id || int64(seq) != f.got.Load() || pkt.Remote != server.LocalAddr() {
				t.Errorf("flow %d at %d got packet %d of flow %d", f.id, f.got.Load(), seq, id)
			}
			f.got.Add(1)
			if total.Add(1) == flows*rounds {
				close(all)
			}
		}
		if err != nil {
			t.Errorf("flow %d: %v", f.id, err)
		}
	}})
	var list []*pollFlow
	for i := range uint32(flows) {
		f := &pollFlow{id: i, conn: pollable(t, server.LocalAddr())}
		if err := p.Add(f.conn, f); err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	if p.Len() != flows {
		t.Fatalf("%d sockets in the poller, want %d", p.Len(), flows)
	}
	for seq := range uint32(rounds) {
		for i, f := range list {
			// Never more on the way than a socket's smallest buffer holds.
			ahead := int64(seq)*flows + int64(i) - 300
			until(t, "packets come back", func() bool { return total.Load() >= ahead })
			b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, f.id), seq)
			writeAll(t, f.conn, []Packet{{Data: b}})
		}
	}
	select {
	case <-all:
	case <-time.After(patience):
		t.Fatalf("%d of %d packets came back", total.Load(), flows*rounds)
	}
	for _, f := range list {
		f.conn.Close()
	}
	if p.Len() != 0 {
		t.Errorf("%d closed sockets stayed in the poller", p.Len())
	}
}

// Handle may close the very socket it is called for, and slots are used again.
func TestPollerSocketsComeAndGo(t *testing.T) {
	server := echo(t)
	closed := make(chan *pollFlow, 300) // nobody waits for who fails
	p := startPoller(t, PollerConfig[*pollFlow]{Loops: 1, Handle: func(f *pollFlow, pkts []Packet, err error) {
		if err != nil {
			t.Errorf("flow %d: %v", f.id, err)
			return
		}
		if binary.BigEndian.Uint32(pkts[0].Data) != f.id {
			t.Errorf("flow %d got another's packet", f.id)
		}
		f.conn.Close()
		closed <- f
	}})
	for i := range uint32(300) {
		f := &pollFlow{id: i, conn: pollable(t, server.LocalAddr())}
		if err := p.Add(f.conn, f); err != nil {
			t.Fatal(err)
		}
		if err := p.Add(f.conn, f); err == nil {
			t.Fatal("added twice")
		}
		b := binary.BigEndian.AppendUint32(nil, i)
		writeAll(t, f.conn, []Packet{{Data: b}, {Data: b}})
		if got := next(t, closed); got != f {
			t.Fatalf("flow %d closed, want %d", got.id, i)
		}
		if err := p.Add(f.conn, f); err == nil {
			t.Fatal("added a closed socket")
		}
	}
	if n := len(p.loops[0].members); n > 2 || p.Len() != 0 {
		t.Errorf("%d slots, %d in use", n, p.Len())
	}
}

func TestPollerReportsRefusal(t *testing.T) {
	server := mustListen(t, nobodys(t), Options{})
	refused := make(chan error, 8)
	report := func(_ int, _ []Packet, err error) { refused <- err }
	p := startPoller(t, PollerConfig[int]{Loops: 1, Handle: report})
	c := pollable(t, server.LocalAddr())
	server.Close()
	if err := p.Add(c, 1); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the socket survives the first
		writeAll(t, c, []Packet{{Data: []byte("x")}})
		if err := next(t, refused); !Refused(err) {
			t.Fatalf("got %v", err)
		}
	}
}

// Trains longer than one call of Handle arrive whole.
func TestPollerLongTrains(t *testing.T) {
	server := mustListen(t, loopback4, Options{})
	got := make(chan []byte, 4096)
	p := startPoller(t, PollerConfig[int]{Loops: 1, Handle: func(_ int, pkts []Packet, _ error) {
		for _, pkt := range pkts {
			got <- bytes.Clone(pkt.Data)
		}
	}})
	c := pollable(t, server.LocalAddr())
	if err := p.Add(c, 1); err != nil {
		t.Fatal(err)
	}
	out := make([]Packet, 640)
	for i := range out {
		out[i] = Packet{Data: pattern(i, 100), Remote: c.LocalAddr()}
	}
	writeAll(t, server, out)
	for i := range out {
		select {
		case b := <-got:
			if !bytes.Equal(b, out[i].Data) {
				t.Fatalf("packet %d differs", i)
			}
		case <-time.After(patience):
			t.Fatalf("%d of %d packets", i, len(out))
		}
	}
}

func TestPollerRefusesWhatItCannotRead(t *testing.T) {
	if _, err := NewPoller(PollerConfig[int]{}); err == nil {
		t.Error("made without Handle")
	}
	p, err := NewPoller(PollerConfig[int]{Loops: 1, Handle: func(int, []Packet, error) {}})
	if err != nil {
		t.Fatal(err)
	}
	c := mustListen(t, loopback4, Options{})
	if err := p.Add(c, 1); err == nil {
		t.Error("added a socket of the runtime's poller")
	}
	u := mustListen(t, loopback4, Options{Unpolled: true})
	if _, err := u.ReadBatch(make([]Packet, 1)); err == nil {
		t.Error("read a socket that belongs to a poller")
	}
	p.Close()
	if err := p.Add(u, 1); err == nil {
		t.Error("added to a closed poller")
	}
	if p.Len() != 0 {
		t.Error("the refused socket is in the poller")
	}
}

func TestPollerNoAllocationsPerPacket(t *testing.T) {
	server := mustListen(t, loopback4, Options{})
	got := make(chan int, 100)
	handle := func(_ int, pkts []Packet, _ error) { got <- len(pkts) }
	p := startPoller(t, PollerConfig[int]{Loops: 1, Handle: handle})
	c := pollable(t, server.LocalAddr())
	if err := p.Add(c, 1); err != nil {
		t.Fatal(err)
	}
	out := make([]Packet, 32)
	for i := range out {
		out[i] = Packet{Data: pattern(i, 200), Remote: c.LocalAddr()}
	}
	allocs := testing.AllocsPerRun(100, func() {
		writeAll(t, server, out)
		for n := 0; n < len(out); {
			n += <-got // its writer's packets fit into its buffer
		}
	})
	if allocs >= 1 {
		t.Errorf("%v allocations for 32 packets", allocs)
	}
}
