package load

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Ports of a Server. They are fixed, so that worlds, scenarios and people agree on them.
const (
	PortHTTP   = 8080 // GET /bytes/N: N bytes of Pattern; GET /health: 200 or 503; GET /name
	PortTLS    = 8443 // the same over TLS 1.3 with a self-signed certificate
	PortEcho   = 7000 // TCP: every byte back; closes its side when the client has closed its own
	PortGreet  = 7001 // TCP: speaks first (a line with its name), then echoes
	PortSink   = 7002 // TCP: reads everything, then answers with the count as decimal text
	PortReset  = 7003 // TCP: reads one byte, then resets the connection
	PortSource = 7004 // TCP: sends Pattern without end until the client goes away
	PortUDP    = 9000 // UDP: every datagram back

	PortControl = 9999 // of the lab's endpoint process, on its loopback: /readyz, /healthy, /unhealthy
)

// Server is an application behind an accelerator. Its health can be switched and it counts what it
// was asked. Listen makes its sockets, which is how it gets into a network namespace.
type Server struct {
	Name   string
	Listen func(network, address string) (net.Listener, error)
	Packet func(network, address string) (net.PacketConn, error)
	Log    *slog.Logger // nil: discarded

	unhealthy atomic.Bool
	conns     sync.Map // net.Conn → struct{}

	Connections atomic.Int64 // accepted, all TCP ports
	Requests    atomic.Int64 // HTTP requests
	Datagrams   atomic.Int64
}

// SetHealthy switches what GET /health says.
func (s *Server) SetHealthy(ok bool) { s.unhealthy.Store(!ok) }

// Run serves until ctx ends, and returns when every connection has ended too.
func (s *Server) Run(ctx context.Context) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	cert, err := selfSigned(s.Name)
	if err != nil {
		return err
	}
	handlers := map[int]func(net.Conn){
		PortHTTP: s.serveHTTP, PortEcho: serveEcho, PortGreet: s.serveGreet, PortSink: serveSink,
		PortReset: serveReset, PortSource: serveSource,
		PortTLS: func(c net.Conn) {
			s.serveHTTP(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}))
		},
	}
	group, ctx := errgroup.WithContext(ctx)
	for port, handle := range handlers {
		l, err := s.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		context.AfterFunc(ctx, func() { l.Close() })
		group.Go(func() error { return s.accept(ctx, l, handle) })
	}
	pc, err := s.Packet("udp", ":"+strconv.Itoa(PortUDP))
	if err != nil {
		return fmt.Errorf("listen on UDP port %d: %w", PortUDP, err)
	}
	context.AfterFunc(ctx, func() { pc.Close() })
	group.Go(func() error { return s.echoDatagrams(ctx, pc) })
	return group.Wait()
}

func (s *Server) accept(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			s.conns.Range(func(k, _ any) bool { k.(net.Conn).Close(); return true })
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.Connections.Add(1)
		s.conns.Store(c, struct{}{})
		wg.Go(func() {
			defer s.conns.Delete(c)
			defer c.Close()
			if ctx.Err() == nil {
				handle(c)
			}
		})
	}
}

func (s *Server) serveHTTP(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 2048)
	for {
		path, ok := readRequest(r)
		if !ok {
			return
		}
		s.Requests.Add(1)
		status, length := "200 OK", int64(0)
		var body io.Reader
		switch {
		case path == "/health" && s.unhealthy.Load():
			status = "503 Service Unavailable"
		case path == "/health":
		case path == "/name":
			length, body = int64(len(s.Name)), strings.NewReader(s.Name)
		case strings.HasPrefix(path, "/bytes/"):
			n, err := strconv.ParseInt(path[len("/bytes/"):], 10, 64)
			if err != nil || n < 0 {
				status = "400 Bad Request"
				break
			}
			length, body = n, io.LimitReader(NewPattern(0), n)
		default:
			status = "404 Not Found"
		}
		head := fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\nServer: %s\r\n\r\n", status, length, s.Name)
		if length > 0 && length <= 32<<10 {
			// One write for a small answer, as any web server does.
			buf := make([]byte, len(head)+int(length))
			copy(buf, head)
			if _, err := io.ReadFull(body, buf[len(head):]); err != nil {
				return
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
			continue
		}
		if _, err := io.WriteString(c, head); err != nil {
			return
		}
		if body != nil {
			if _, err := io.CopyBuffer(onlyWriter{c}, body, make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}
}

// readRequest reads one request without a body and returns its path.
func readRequest(r *bufio.Reader) (path string, ok bool) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", false
	}
	for {
		h, err := r.ReadString('\n')
		if err != nil {
			return "", false
		}
		if h == "\r\n" || h == "\n" {
			break
		}
	}
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return "", false
	}
	return fields[1], true
}

type onlyWriter struct{ io.Writer }

func serveEcho(c net.Conn) {
	if _, err := io.CopyBuffer(onlyWriter{c}, c, make([]byte, 64<<10)); err == nil {
		closeWrite(c)
	}
}

func (s *Server) serveGreet(c net.Conn) {
	if _, err := fmt.Fprintf(c, "220 %s ready\r\n", s.Name); err == nil {
		serveEcho(c)
	}
}

func serveSink(c net.Conn) {
	n, err := io.CopyBuffer(io.Discard, c, make([]byte, 64<<10))
	if err == nil {
		fmt.Fprintf(c, "%d", n)
		closeWrite(c)
	}
}

func serveReset(c net.Conn) {
	var b [1]byte
	_, _ = c.Read(b[:])
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

func serveSource(c net.Conn) {
	_, _ = io.CopyBuffer(onlyWriter{c}, NewPattern(0), make([]byte, 64<<10))
}

func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
}

func (s *Server) echoDatagrams(ctx context.Context, pc net.PacketConn) error {
	if u, ok := pc.(*net.UDPConn); ok {
		_ = u.SetReadBuffer(socketBuffer) // what the system allows of it
		_ = u.SetWriteBuffer(socketBuffer)
	}
	buf := make([]byte, 65535)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.Datagrams.Add(1)
		if _, err := pc.WriteTo(buf[:n], from); err != nil && ctx.Err() == nil && !transient(err) {
			return err
		}
	}
}

// socketBuffer is asked for by the datagram sockets: bursts of many clients wait in it.
const socketBuffer = 4 << 20

// transient reports whether a UDP write failed for a reason of its destination, not of the socket.
func transient(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

// Pattern is an endless stream of bytes in which every 8 bytes tell their own position, so that a
// byte that went astray is seen wherever it lands.
type Pattern struct{ pos uint64 }

// NewPattern returns the pattern from byte position pos on.
func NewPattern(pos uint64) *Pattern { return &Pattern{pos: pos} }

// Read fills p; it never fails.
func (g *Pattern) Read(p []byte) (int, error) {
	for i := 0; i < len(p); {
		var word [8]byte
		binary.BigEndian.PutUint64(word[:], (g.pos&^7)*0x9e3779b97f4a7c15)
		n := copy(p[i:], word[g.pos&7:])
		i += n
		g.pos += uint64(n)
	}
	return len(p), nil
}

func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
