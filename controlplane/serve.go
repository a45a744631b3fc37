package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/admin"
	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

const (
	// A peer that does not answer within the two together is gone: its stream ends, and it shows as
	// away. Nodes connect again within a second, so a false alarm costs little.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// pingEvery is the fastest that clients may ping.
	pingEvery = 5 * time.Second
	// idleAfter closes connections of clients that call nothing; a stream is a call.
	idleAfter = 15 * time.Minute
	// handshakeTimeout is how long a stranger may take to prove himself.
	handshakeTimeout = 10 * time.Second
	streamsMax       = 256     // calls at once on a connection
	requestBytesMax  = 4 << 20 // of one message to the controller
	headerBytesMax   = 16 << 10
)

// newServer makes the gRPC server of the one TLS port.
func newServer(own *identity.Credentials, guard *access.Guard, a admin.Service,
	n v1.NodeServiceServer, e v1.EnrollServiceServer) *grpc.Server {
	s := grpc.NewServer(append(guard.ServerOptions(),
		grpc.Creds(credentials.NewTLS(own.ControllerTLS())),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: idleAfter, Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: pingEvery, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.MaxRecvMsgSize(requestBytesMax),
		grpc.MaxHeaderListSize(headerBytesMax),
	)...)
	v1.RegisterAdminServiceServer(s, a)
	v1.RegisterCustomRoutingServiceServer(s, a)
	v1.RegisterSharingServiceServer(s, a)
	v1.RegisterNodeServiceServer(s, n)
	v1.RegisterEnrollServiceServer(s, e)
	return s
}

// web answers /metrics; /healthz, which says that the process lives; and /readyz, which says whether it
// can serve.
func (c *Controller) web() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := c.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// registerExpiries makes the ends of certificates metrics, for alarms long before.
func (c *Controller) registerExpiries() {
	for name, d := range map[string]struct {
		help string
		end  func() time.Time
	}{
		"nearcast_controller_authority_expiry_seconds": {
			"When the cluster's certificate authority ends, in seconds since 1970.",
			func() time.Time { return c.authority.CA().Certificate().NotAfter }},
		"nearcast_controller_certificate_expiry_seconds": {
			"When this controller's own certificate ends, in seconds since 1970.", c.own.NotAfter},
	} {
		c.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: d.help},
			func() float64 { return float64(d.end().Unix()) }))
	}
}

// ready says why this controller cannot serve now, or nil.
func (c *Controller) ready(ctx context.Context) error {
	f := c.running.Load()
	if f == nil {
		return errors.New("starting")
	}
	if err := f.Ready(); err != nil {
		return err
	}
	return c.store.Health(ctx)
}

func listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}
