package measure

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// perByte is what a byte takes on every connection of a test, both ways: 100 MB/s.
const perByte = 10 * time.Nanosecond

// place is an application in the memory of a test, so far away.
type place struct {
	address string
	rtt     time.Duration
	conns   chan net.Conn
	closed  chan struct{}
}

func (p *place) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *place) Close() error   { close(p.closed); return nil }
func (p *place) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects after a handshake of a round trip; what is read first comes a round trip later.
func (p *place) dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-time.After(p.rtt):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return &slowConn{Conn: near, rtt: p.rtt}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type slowConn struct {
	net.Conn
	rtt    time.Duration
	waited bool
}

func (c *slowConn) Read(p []byte) (int, error) {
	if !c.waited {
		c.waited = true
		time.Sleep(c.rtt) // the way of the request and the answer
	}
	n, err := c.Conn.Read(p)
	time.Sleep(time.Duration(n) * perByte)
	return n, err
}

func (c *slowConn) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * perByte)
	return c.Conn.Write(p)
}

// application serves at an address until the test ends: 200 KB at /big, 10 KB elsewhere, too few to take
// throughput of; and it takes uploads.
func application(t *testing.T, address string, rtt time.Duration) *place {
	p := &place{address: address, rtt: rtt, conns: make(chan net.Conn), closed: make(chan struct{})}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.Copy(io.Discard, r.Body)
			return
		}
		if r.Host != "app.example" {
			http.Error(w, "who?", http.StatusNotFound)
			return
		}
		size := 10_000
		if r.URL.Path == "/big" {
			size = 200 << 10
		}
		_, _ = w.Write(make([]byte, size))
	})}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(p) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
	})
	return p
}

// TestRun: what is measured is what there is, and the verdict follows it both ways. Time is the test's own, so
// that figures are the lines' and not the machine's.
func TestRun(t *testing.T) { synctest.Test(t, measured) }

func measured(t *testing.T) {
	const rtt = 150 * time.Millisecond
	far, near := application(t, "far:80", rtt), application(t, "near:80", 0)
	run := func(accelerated, direct *place, host, path string) Result {
		t.Helper()
		r, err := Run(t.Context(), Config{URL: &url.URL{Scheme: "http", Host: accelerated.address, Path: path},
			Direct: direct.address, Host: host, Rounds: 3, Bytes: 1 << 20, Upload: 10_000, Timeout: 20 * time.Second,
			Dial: func(ctx context.Context, address string) (net.Conn, error) {
				return map[string]*place{far.address: far, near.address: near}[address].dial(ctx)
			}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := run(near, far, "app.example", "/")
	if r.Direct.Connect != rtt || r.Direct.FirstByte < 2*rtt || r.Direct.FirstByte > 2*rtt+time.Millisecond ||
		r.Direct.Rounds != 3 || r.Accelerated.Connect != 0 || r.Accelerated.FirstByte > time.Millisecond ||
		r.Accelerated.Down != 0 || r.Accelerated.Up == 0 {
		t.Errorf("%+v", r)
	}
	if !r.Pays || !strings.HasPrefix(r.Verdict, "acceleration pays here: the first byte comes ") {
		t.Errorf("%q", r.Verdict)
	}
	// 100 MB/s, less what came with the first byte.
	if r := run(near, far, "app.example", "/big"); r.Direct.Down < 90e6 || r.Direct.Down > 130e6 ||
		r.Accelerated.Down < 90e6 || r.Accelerated.Down > 130e6 {
		t.Errorf("throughput: %+v", r)
	}
	if r := run(far, near, "app.example", "/"); r.Pays || !strings.Contains(r.Verdict, "does not pay") ||
		!strings.Contains(r.Verdict, "later") {
		t.Errorf("%q", r.Verdict)
	}
	if r := run(far, near, "other.example", "/"); r.Pays || r.Direct.Failed != 3 || !strings.Contains(r.Direct.Error, "404") ||
		!strings.Contains(r.Verdict, "nothing to compare") {
		t.Errorf("%+v", r)
	}
}

func TestJudge(t *testing.T) {
	way := func(first time.Duration, down float64) Way { return Way{Rounds: 1, FirstByte: first, Down: down} }
	const ms = time.Millisecond
	for _, c := range []struct {
		direct, accelerated Way
		pays                bool
		says                string
	}{
		{way(200*ms, 0), way(100*ms, 0), true, "50% sooner"},
		{way(200*ms, 0), way(198*ms, 0), false, "as soon as without"},
		{way(200*ms, 1e6), way(199*ms, 4e6), true, "4.0 times as fast"},
		{way(200*ms, 4e6), way(100*ms, 1e6), false, "75% slower"},
		{way(10*ms, 0), way(30*ms, 0), false, "200% later"},
		{way(10*ms, 1e6), way(11*ms, 3e6), true, "3.0 times"},
	} {
		r := Result{Direct: c.direct, Accelerated: c.accelerated}
		if r.judge(); r.Pays != c.pays || !strings.Contains(r.Verdict, c.says) {
			t.Errorf("%v, %v: pays %v, %q", c.direct, c.accelerated, r.Pays, r.Verdict)
		}
	}
}
