package measure

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// slowDial connects after a handshake of so long, and delivers what is read so much later.
func slowDial(rtt map[string]time.Duration) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		select {
		case <-time.After(rtt[address]):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		return &slowConn{Conn: conn, rtt: rtt[address]}, err
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
	return c.Conn.Read(p)
}

// TestRun: what is measured is what there is, and the verdict follows it both ways.
func TestRun(t *testing.T) {
	application := func() *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				_, _ = io.Copy(io.Discard, r.Body)
				return
			}
			if r.Host != "app.example" {
				http.Error(w, "who?", http.StatusNotFound)
				return
			}
			size := 10_000 // too small to take throughput of
			if r.URL.Path == "/big" {
				size = 200 << 10
			}
			_, _ = w.Write(make([]byte, size))
		}))
		t.Cleanup(s.Close)
		return s
	}
	far, near := application(), application()
	delays := map[string]time.Duration{far.Listener.Addr().String(): 150 * time.Millisecond, near.Listener.Addr().String(): 0}
	run := func(accelerated, direct *httptest.Server, host, path string) Result {
		u, err := url.Parse(accelerated.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(t.Context(), Config{URL: u, Direct: direct.Listener.Addr().String(), Host: host, Rounds: 3,
			Bytes: 1 << 20, Upload: 10_000, Timeout: 20 * time.Second, Dial: slowDial(delays)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := run(near, far, "app.example", "/")
	if r.Direct.Connect < 150*time.Millisecond || r.Direct.FirstByte < 300*time.Millisecond || r.Direct.Rounds != 3 ||
		r.Accelerated.FirstByte >= r.Direct.FirstByte || r.Accelerated.Down != 0 || r.Accelerated.Up == 0 {
		t.Errorf("%+v", r)
	}
	if !r.Pays || !strings.HasPrefix(r.Verdict, "acceleration pays here: the first byte comes ") {
		t.Errorf("%q", r.Verdict)
	}
	if r := run(near, far, "app.example", "/big"); r.Direct.Down == 0 || r.Accelerated.Down == 0 {
		t.Errorf("no throughput: %+v", r)
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
