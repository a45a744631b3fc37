package backbone

import (
	"errors"
	"io"
	"sync"

	"github.com/nearcast/nearcast/proto/wire"
)

// A conn makes a stream look like a connection: its sink keeps at most max bytes for Read.
type conn struct {
	ready chan struct{} // the stream is set
	s     *Stream
	max   int

	mu     sync.Mutex
	cond   sync.Cond
	buf    []byte
	fin    bool
	reset  error
	result *wire.OpenResult
	stuck  bool // the sink has refused bytes
	broken string
}

func newConn() *conn {
	c := &conn{ready: make(chan struct{}), max: 64 << 10}
	c.cond.L = &c.mu
	return c
}

func (c *conn) set(s *Stream) { c.s = s; close(c.ready) }

func (c *conn) Opened(r wire.OpenResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.result != nil || c.reset != nil || len(c.buf) > 0 {
		c.broken = "Opened came late or twice"
	}
	c.result = &r
	c.cond.Broadcast()
}

func (c *conn) Deliver(p []byte, fin bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reset != nil || c.fin || len(p) == 0 && !fin {
		c.broken = "Deliver after the end, or of nothing"
	}
	n := min(len(p), c.max-len(c.buf))
	c.buf = append(c.buf, p[:n]...)
	c.stuck = n < len(p)
	c.fin = fin && n == len(p)
	c.cond.Broadcast()
	return n
}

func (c *conn) Reset(reason wire.ResetReason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reset != nil {
		c.broken = "Reset twice"
	}
	c.reset = &ResetError{reason}
	c.cond.Broadcast()
}

func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.buf) == 0 && !c.fin && c.reset == nil {
		c.cond.Wait()
	}
	switch {
	case c.broken != "":
		return 0, errors.New(c.broken)
	case c.reset != nil:
		return 0, c.reset
	case len(c.buf) == 0:
		return 0, io.EOF
	}
	n := copy(p, c.buf)
	c.buf = append(c.buf[:0], c.buf[n:]...)
	if c.stuck {
		c.stuck = false
		c.mu.Unlock()
		<-c.ready
		c.s.Resume()
		c.mu.Lock()
	}
	return n, nil
}

func (c *conn) Write(p []byte) (int, error) { return c.s.Write(p) }

// opened waits for the gateway's answer.
func (c *conn) opened() (wire.OpenResult, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.result == nil && c.reset == nil {
		c.cond.Wait()
	}
	if c.result == nil {
		return wire.OpenResult{}, c.reset
	}
	return *c.result, nil
}

// waitReset waits for a reset and returns its reason.
func (c *conn) waitReset() wire.ResetReason {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.reset == nil {
		c.cond.Wait()
	}
	return c.reset.(*ResetError).Reason
}
