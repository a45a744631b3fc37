package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nearcast/nearcast/edge/kernel"
)

// serveHTTP answers /metrics, /healthz, /readyz, /status and /drops until ctx ends. It holds no secret, but it
// is for the operators' tools and not for the public.
func (n *Node) serveHTTP(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", n.serveHealthz)
	mux.HandleFunc("GET /readyz", n.serveReadyz)
	mux.HandleFunc("GET /status", n.serveStatus)
	mux.HandleFunc("GET /drops", n.serveDrops)
	if onLoopback(ln.Addr()) {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: httpHeaderTimeout,
		ReadTimeout:       httpHeaderTimeout,
		IdleTimeout:       httpWriteTimeout,
		MaxHeaderBytes:    httpHeaderBytes,
	}
	stopped := context.AfterFunc(ctx, func() {
		short, cancel := context.WithTimeout(context.Background(), httpStopTimeout)
		defer cancel()
		if server.Shutdown(short) != nil {
			server.Close()
		}
	})
	err := server.Serve(ln)
	if !stopped() { // the function above runs or has run
		return nil
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}

// listenHTTP opens the socket for metrics, or returns nil if none is wanted.
func (n *Node) listenHTTP(ctx context.Context) (net.Listener, error) {
	if n.cfg.MetricsListen == "" {
		return nil, nil
	}
	if l, err := n.cfg.Previous.Listener(metricsName); l != nil || err != nil {
		return l, err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", n.cfg.MetricsListen)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	return ln, nil
}

func onLoopback(a net.Addr) bool {
	addr, err := netip.ParseAddrPort(a.String())
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// serveHealthz says that the process lives.
func (n *Node) serveHealthz(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }

// serveReadyz says whether this node can serve, or why not.
func (n *Node) serveReadyz(w http.ResponseWriter, _ *http.Request) {
	if missing := n.missing(); len(missing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(missing, "\n"))
		return
	}
	fmt.Fprintln(w, "ready")
}

// serveStatus gives the whole state as JSON, for people and `nearcast`.
func (n *Node) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	// An error here is the client having gone away.
	_ = e.Encode(n.Status())
}

// serveDrops gives what the guard has dropped as JSON, for `nearcast top drops`.
func (n *Node) serveDrops(w http.ResponseWriter, _ *http.Request) {
	var d kernel.Drops
	if n.up.Load() && n.kernel != nil {
		var err error
		if d, err = n.kernel.Drops(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	// An error here is the client having gone away.
	_ = json.NewEncoder(w).Encode(d)
}

// milliseconds makes durations readable in JSON.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
