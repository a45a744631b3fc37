package probe

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/netns"
)

// patience is how long anything may take that is not to time out, on a machine that has no time.
const patience = 30 * time.Second

var onLoopback = model.NewEndpointRules(&model.Snapshot{
	EndpointAllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
})

func newChecker() *checker { return &checker{resolver: net.DefaultResolver} }

func TestCheckHTTP(t *testing.T) {
	var host, path, sni string
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, path, sni = r.Host, r.URL.Path, ""
		if r.TLS != nil {
			sni = r.TLS.ServerName
		}
		switch r.URL.Path {
		case "/503":
			w.WriteHeader(503)
		case "/early":
			w.WriteHeader(103)
			w.WriteHeader(204)
		case "/move":
			http.Redirect(w, r, "/503", 302)
		case "/large":
			w.Header().Set("Large", strings.Repeat("x", headerBytesMax))
		}
	})
	plain := httptest.NewServer(handler)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(handler)
	secure.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	secure.StartTLS()
	defer secure.Close()
	for _, c := range []struct{ name, path, host, codes, want string }{
		{"default", "", "", "", ""},
		{"unhealthy status", "/503", "", "", "status 503"},
		{"expected status", "/503", "", "500-599", ""},
		{"unexpected status", "/ok", "", "201", "status 200"},
		{"informational answers are not final", "/early", "", "204", ""},
		{"redirects are not followed", "/move", "", "302", ""},
		{"huge headers", "/large", "", "", "response: headers longer"},
		{"host header", "/ok", "shop.example", "", ""},
		{"host header with port", "/ok", "shop.example:8443", "", ""},
		{"no second header line", "/ok\r\nX: y", "a\r\nb", "", ""},
	} {
		for _, s := range []*httptest.Server{plain, secure} {
			addr := s.Listener.Addr().(*net.TCPAddr).AddrPort()
			check := &model.HealthCheck{
				Protocol: model.HealthHTTP, Port: addr.Port(), Timeout: patience,
				Path: c.path, Host: c.host, ExpectedCodes: c.codes,
			}
			if s == secure {
				check.Protocol = model.HealthHTTPS
			}
			res := newChecker().check(context.Background(), addr.Addr().String(), check, onLoopback)
			if c.want == "" && res.reason != "" || !strings.HasPrefix(res.reason, c.want) {
				t.Errorf("%s, %v: %q, want %q", c.name, s.URL, res.reason, c.want)
			}
			if res.reason == "" && res.latency <= 0 {
				t.Errorf("%s: no latency", c.name)
			}
			wantHost := oneLine(c.host)
			if wantHost == "" {
				wantHost = addr.String()
			}
			if host != wantHost {
				t.Errorf("%s: host %q, want %q", c.name, host, wantHost)
			}
			if s == secure && c.host == "shop.example:8443" && sni != "shop.example" {
				t.Errorf("%s: server name %q", c.name, sni)
			}
			if strings.ContainsAny(path, "\r\n") {
				t.Errorf("%s: path %q", c.name, path)
			}
		}
	}
}

// TestCheckServers asks servers that net/http would not make.
func TestCheckServers(t *testing.T) {
	for _, c := range []struct {
		name     string
		protocol model.HealthProtocol
		serve    func(net.Conn)
		want     string
	}{
		{"a connection is enough", model.HealthTCP, func(net.Conn) {}, ""},
		{"closed at once", model.HealthHTTP, func(net.Conn) {}, "response: "},
		{"garbage", model.HealthHTTP, func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n\r\n") }, "response: "},
		{"endless informational", model.HealthHTTP, func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "HTTP/1.1 102 x\r\n\r\n"); err != nil {
					return
				}
			}
		}, "response: more than"},
		{"silent", model.HealthHTTP, func(c net.Conn) { io.Copy(io.Discard, c) }, "response: timed out"},
		{"status and then a stalled body", model.HealthHTTP, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
			io.Copy(io.Discard, c)
		}, ""},
		{"not TLS", model.HealthHTTPS, func(c net.Conn) { io.WriteString(c, "hello, plain\r\n") }, "tls: "},
	} {
		port := netns.FreePort(t) // one of the kernel's could be somebody else's when it is closed
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		go serve(ln, c.serve)
		check := &model.HealthCheck{Protocol: c.protocol, Port: port, Timeout: patience}
		if strings.HasSuffix(c.want, "timed out") {
			check.Timeout = 2 * time.Second // in which a busy machine must have connected
		}
		res := newChecker().check(context.Background(), "127.0.0.1", check, onLoopback)
		if c.want == "" && res.reason != "" || !strings.HasPrefix(res.reason, c.want) {
			t.Errorf("%s: %q, want %q", c.name, res.reason, c.want)
		}
		ln.Close()
		check.Timeout = patience
		res = newChecker().check(context.Background(), "127.0.0.1", check, onLoopback)
		if res.reason != "connect: connection refused" {
			t.Errorf("%s, after its end: %q", c.name, res.reason)
		}
	}
}

func serve(ln net.Listener, handle func(net.Conn)) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			handle(conn)
		}()
	}
}

func TestCheckRefusesForbiddenAddresses(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	check := &model.HealthCheck{
		Port: ln.Addr().(*net.TCPAddr).AddrPort().Port(), Timeout: patience,
	}
	// By address, in another spelling, and by a name that resolves to it.
	for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1", "localhost"} {
		res := newChecker().check(context.Background(), host, check, model.NewEndpointRules(nil))
		if !strings.HasPrefix(res.reason, "refused: ") {
			t.Errorf("%s: %q", host, res.reason)
		}
	}
	if res := newChecker().check(context.Background(), "127.0.0.1", check, onLoopback); res.reason != "" {
		t.Errorf("allowed: %q", res.reason)
	}
}

// FuzzFetch feeds answers of an endpoint, which is outside input.
func FuzzFetch(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 x\r\n\r\nHTTP/1.0 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		conn := &answering{answer: answer}
		code, err := fetch(conn, "GET / HTTP/1.1\r\n\r\n")
		if err == nil && (code < 0 || code > 999) {
			t.Errorf("code %d", code)
		}
		if conn.read > headerBytesMax+drainBytesMax {
			t.Errorf("read %d bytes", conn.read)
		}
		if err != nil && len(brief("response", err)) > reasonBytesMax {
			t.Errorf("a reason of %d bytes", len(brief("response", err)))
		}
	})
}

// answering is a connection that gives a fixed answer.
type answering struct {
	net.Conn
	answer []byte
	read   int
}

func (a *answering) Write(p []byte) (int, error)     { return len(p), nil }
func (a *answering) SetReadDeadline(time.Time) error { return nil }
func (a *answering) Read(p []byte) (int, error) {
	if a.read == len(a.answer) {
		return 0, io.EOF
	}
	n := copy(p, a.answer[a.read:])
	a.read += n
	return n, nil
}
