package dns

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// connection is one TCP or TLS connection. Its goroutine answers in order, all that a client has sent
// ahead in one write: answers are never waited for here, so order costs nothing.
type connection struct {
	net.Conn
	from netip.Addr
	used atomic.Int64 // when it was last active
}

// accept takes connections until ctx ends.
func (s *Server) accept(ctx context.Context, ln net.Listener, via transport, counts *counters) error {
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			select { // out of files: the next one may do
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		addr, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		conn := &connection{Conn: c, from: addr.Addr().Unmap()}
		conn.used.Store(time.Now().UnixNano())
		if !s.conns.add(conn) {
			counts.refused.Add(1)
			c.Close()
			continue
		}
		go s.serveConn(conn, via, counts)
	}
}

// add takes a connection in, or says that its source has too many. When all are taken the one that was
// silent longest makes room.
func (c *connections) add(conn *connection) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.source[conn.from] >= connectionsPerSource {
		return false
	}
	if c.open == nil {
		c.open, c.source = map[*connection]struct{}{}, map[netip.Addr]int{}
	}
	if len(c.open) >= connectionsMax {
		var oldest *connection
		for o := range c.open {
			if oldest == nil || o.used.Load() < oldest.used.Load() {
				oldest = o
			}
		}
		oldest.Close()
		c.drop(oldest)
	}
	c.open[conn] = struct{}{}
	c.source[conn.from]++
	c.group.Add(1)
	return true
}

// drop forgets a connection. mu is held.
func (c *connections) drop(conn *connection) {
	if _, there := c.open[conn]; !there {
		return
	}
	delete(c.open, conn)
	if c.source[conn.from]--; c.source[conn.from] == 0 {
		delete(c.source, conn.from)
	}
}

func (c *connections) remove(conn *connection) {
	c.mu.Lock()
	c.drop(conn)
	c.mu.Unlock()
	c.group.Done()
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		conn.Close()
	}
}

func (c *connections) wait() { c.group.Wait() }

// serveConn answers one connection's queries until it is silent for too long, breaks a rule, or ends.
func (s *Server) serveConn(c *connection, via transport, counts *counters) {
	defer s.conns.remove(c)
	defer c.Close()
	if t, ok := c.Conn.(*tls.Conn); ok {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		err := t.HandshakeContext(ctx)
		cancel()
		if err != nil {
			return
		}
	}
	a := &answerer{s: s, count: counts, rate: newLimiter(-1), now: time.Now}
	in := make([]byte, 0, 4<<10)
	var out []byte
	timeout := idleTimeout
	for {
		if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			return
		}
		n, err := c.Read(in[len(in):cap(in)])
		in = in[:len(in)+n]
		if n > 0 {
			c.used.Store(time.Now().UnixNano())
			out = out[:0]
			ok := true
			if in, out, ok = s.answerAll(a, c, in, out, via); !ok || s.write(c, out) != nil {
				return
			}
			if a.q.keepalive {
				timeout = keepaliveTimeout
			}
		}
		if err != nil {
			return
		}
		if len(in) == cap(in) { // a query larger than the buffer
			if cap(in) > tcpSizeMax+2 {
				return
			}
			in = append(make([]byte, 0, min(2*cap(in), tcpSizeMax+3)), in...)
		}
	}
}

// answerAll answers every whole query in in, and returns what is left of it. ok is false when the client
// sent what gets no answer: it does not speak DNS.
func (s *Server) answerAll(a *answerer, c *connection, in, out []byte, via transport) (rest, answers []byte, ok bool) {
	used := 0
	for len(in)-used >= 2 {
		n := int(binary.BigEndian.Uint16(in[used:]))
		if len(in)-used-2 < n {
			break
		}
		a.count.tcp.Add(1)
		begin := len(out)
		out = append(out, 0, 0)
		out = a.answer(out, in[used+2:used+2+n], c.from, via)
		if len(out) == begin+2 {
			return in, out[:begin], false
		}
		binary.BigEndian.PutUint16(out[begin:], uint16(len(out)-begin-2))
		used += 2 + n
		if len(out) >= answersMax {
			if s.write(c, out) != nil {
				return in, out, false
			}
			out = out[:0]
		}
	}
	return in[:copy(in, in[used:])], out, true
}

func (s *Server) write(w *connection, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := w.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	n, err := w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
