package backbone

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// faults dials connections that can be broken.
type faults struct {
	mu    sync.Mutex
	conns []*faultyConn
	cut   bool // new connections fail
}

func (f *faults) dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	cut := f.cut
	f.mu.Unlock()
	if cut {
		return nil, syscall.ENETUNREACH
	}
	c, err := dialTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	fc := &faultyConn{TCPConn: c.(*net.TCPConn)}
	fc.cond.L = &fc.mu
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut { // meanwhile: who cut has seen to all connections that there were
		_ = fc.Close()
		return nil, syscall.ENETUNREACH
	}
	f.conns = append(f.conns, fc)
	return fc, nil
}

// alive returns the connections that are not closed.
func (f *faults) alive() (alive []*faultyConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		if !c.isClosed() {
			alive = append(alive, c)
		}
	}
	f.conns = alive
	return append([]*faultyConn(nil), alive...)
}

// killOne closes a random connection, as the network would: with an RST.
func (f *faults) killOne() {
	if alive := f.alive(); len(alive) > 0 {
		alive[rand.IntN(len(alive))].kill()
	}
}

func (f *faults) setCut(cut bool) {
	f.mu.Lock()
	f.cut = cut
	f.mu.Unlock()
}

func (f *faults) heal() {
	for _, c := range f.alive() {
		c.stall(false)
	}
}

// A faultyConn is a TCP connection that can be killed, and stalled: then nothing comes out of it,
// and what is written waits.
type faultyConn struct {
	*net.TCPConn
	mu      sync.Mutex
	cond    sync.Cond
	stalled bool
	closed  bool
}

func (c *faultyConn) kill() {
	_ = c.TCPConn.SetLinger(0)
	_ = c.Close()
}

func (c *faultyConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *faultyConn) stall(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stalled = yes
	c.cond.Broadcast()
}

func (c *faultyConn) wait() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.stalled && !c.closed {
		c.cond.Wait()
	}
	if c.closed {
		return net.ErrClosed
	}
	return nil
}

func (c *faultyConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if werr := c.wait(); werr != nil {
		return 0, werr
	}
	return n, err
}

func (c *faultyConn) Write(p []byte) (int, error) {
	if err := c.wait(); err != nil {
		return 0, err
	}
	return c.TCPConn.Write(p)
}

func (c *faultyConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cond.Broadcast()
	c.mu.Unlock()
	return c.TCPConn.Close()
}
