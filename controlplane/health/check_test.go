package health

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

// local allows probing this machine.
var local = model.NewEndpointRules(&model.Snapshot{
	EndpointAllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
})

func checkOf(p model.HealthProtocol, addr string) model.HealthCheck {
	hc, err := model.HealthCheckFromProto(nil)
	if err != nil {
		panic(err)
	}
	hc.Protocol, hc.Port = p, netip.MustParseAddrPort(addr).Port()
	return hc
}

func TestCheckHTTP(t *testing.T) {
	var asked *http.Request
	handler := http.NewServeMux()
	handler.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { asked = r })
	handler.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
	})
	handler.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	handler.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	handler.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
				return
			}
		}
	})
	handler.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X", strings.Repeat("x", 2*headerBytesMax))
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	for _, s := range []struct {
		proto model.HealthProtocol
		addr  string
	}{{model.HealthHTTP, plain.Listener.Addr().String()}, {model.HealthHTTPS, secure.Listener.Addr().String()}} {
		for _, c := range []struct{ path, codes, host, want string }{
			{"/ok", "", "", ""},
			{"/ok?deep=1", "200", "app.example.com", ""},
			{"/ok", "404", "", "status 200"},
			{"/moved", "", "", ""},
			{"/moved", "200", "", "status 302"},
			{"/broken", "", "", "status 503"},
			{"/broken", "500-599", "", ""},
			{"/endless", "", "", ""},
			{"/header", "", "", "header"},
			{"/slow", "", "", "timeout"},
		} {
			hc := checkOf(s.proto, s.addr)
			hc.Path, hc.ExpectedCodes, hc.Host = c.path, c.codes, c.host
			if c.want == "timeout" {
				hc.Timeout = 100 * time.Millisecond
			}
			err := Check(t.Context(), "127.0.0.1", hc, local)
			if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s codes %q over %v: %v, want %q", c.path, c.codes, s.proto, err, c.want)
			}
			if host := c.host; c.path == "/ok" && c.codes == "" && (asked.Host != s.addr || host != "") {
				t.Errorf("it asked for host %q", asked.Host)
			}
			if c.host != "" && asked.Host != c.host {
				t.Errorf("it asked for host %q, not %q", asked.Host, c.host)
			}
		}
	}
	hc := checkOf(model.HealthHTTPS, plain.Listener.Addr().String())
	if err := Check(t.Context(), "127.0.0.1", hc, local); err == nil {
		t.Error("a plain server passed as HTTPS")
	}
}

func TestCheckTCP(t *testing.T) {
	l, err := net.Listen("tcp", netns.FreeAddr(t)) // where nobody else will listen once it is closed
	if err != nil {
		t.Fatal(err)
	}
	hc, host := checkOf(model.HealthTCP, l.Addr().String()), l.Addr().(*net.TCPAddr).IP.String()
	if err := Check(t.Context(), host, hc, local); err != nil {
		t.Errorf("an open port: %v", err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the check's connection brought %d bytes, %v: it must be closed", n, err)
	}
	conn.Close()
	if err := Check(t.Context(), host, hc, nil); err == nil || !strings.Contains(err.Error(), "refused: "+host+" is a loopback") {
		t.Errorf("where endpoints must not lie: %v", err)
	}
	l.Close()
	err = Check(t.Context(), host, hc, local)
	if err == nil || err.Error() != "connect: connection refused" {
		t.Errorf("a closed port: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Check(ctx, host, hc, local); err == nil {
		t.Error("a cancelled check passed")
	}
}

// TestCheckName: a name leads only where endpoints may lie.
func TestCheckName(t *testing.T) {
	hc := checkOf(model.HealthTCP, "127.0.0.1:1")
	err := Check(t.Context(), "localhost", hc, nil)
	if err == nil || !strings.HasPrefix(err.Error(), "refused: ") {
		t.Errorf("localhost: %v", err)
	}
}
