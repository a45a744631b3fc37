package pump

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// TestPipesAreShared: an idle splice holds no pipe, and no more are kept than the bound.
func TestPipesAreShared(t *testing.T) {
	pipes := &Pipes{}
	var running sync.WaitGroup
	defer func() { running.Wait(); pipes.Close() }()
	flows := make([]*flow, 100)
	for i := range flows {
		flows[i] = joinSplice(t, pipes, &running)
	}
	for _, f := range flows {
		if _, err := f.client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(f.app, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	// One after the other: each pipe was back before the next was needed, give or take a few. The last one may still
	// be on its way.
	free := 0
	until(t, "a pipe is back", func() bool {
		pipes.mu.Lock()
		defer pipes.mu.Unlock()
		free = len(pipes.free)
		return free > 0
	})
	if free > 16 {
		t.Errorf("%d pipes for 100 splices that spoke in turn", free)
	}
	for _, f := range flows {
		f.end(wire.ResetShutdown)
		f.over(t)
	}
}

// TestSocket: TryWrite takes what fits at once, AwaitWritable waits for more room, Interrupt ends a Read.
func TestSocket(t *testing.T) {
	outside, inside := tcpPair(t)
	var s Socket
	if err := s.Init(inside); err != nil {
		t.Fatal(err)
	}
	block, sent := make([]byte, 1<<20), 0
	for refused := 0; refused < 20; { // what is on its way to the other end makes room once more
		n, err := s.TryWrite(block)
		if err != nil {
			t.Fatal(err)
		}
		if sent += n; n > 0 {
			refused = 0
			continue
		}
		refused++
		time.Sleep(10 * time.Millisecond)
	}
	room := make(chan error, 1)
	go func() { room <- s.AwaitWritable() }()
	select {
	case err := <-room:
		t.Fatalf("there is room in a full socket (%v)", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := io.CopyN(io.Discard, outside, int64(sent)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-room:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("no room in an empty socket")
	}
	var p Progress
	until(t, "the last bytes are acknowledged", func() bool {
		var ok bool
		if p, ok = s.Progress(); !ok {
			t.Fatal("an open socket has no progress")
		}
		return p.Out >= uint64(sent)
	})
	if p.Out != uint64(sent) || p.In != 0 || p.Dead {
		t.Errorf("progress %+v; want %d bytes out", p, sent)
	}
	taken := 0
	get := func() []byte { taken++; return make([]byte, 16) }
	put := func([]byte) { taken-- }
	s.Interrupt()
	if _, err := s.Read(get, put); err == nil || taken != 0 {
		t.Errorf("an interrupted read: %v, %d buffers held", err, taken)
	}
	s.Proceed()
	if _, err := outside.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Read(get, put); err != nil || string(b) != "hello" || taken != 1 {
		t.Errorf("%q, %v, %d buffers held", b, err, taken)
	}
	outside.Close()
	if _, err := s.Read(get, put); err != io.EOF || taken != 1 {
		t.Errorf("at the end: %v, %d buffers held", err, taken)
	}
	s.Abort()
	if _, err := s.TryWrite([]byte("x")); err == nil {
		t.Error("a closed socket takes bytes")
	}
	if _, ok := s.Progress(); ok {
		t.Error("a closed socket has progress")
	}
}
