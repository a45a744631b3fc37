package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/admin"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/countries"
	"github.com/nearcast/nearcast/controlplane/enroll"
	"github.com/nearcast/nearcast/controlplane/fleet"
	"github.com/nearcast/nearcast/controlplane/series"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
)

// Controller is one control plane process.
type Controller struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry

	store     *store.Store
	authority *enroll.Authority
	catalog   *catalog.Catalog
	operators *access.Operators
	keys      *access.Keys
	audit     *admin.Audit
	series    *series.Series
	countries *countries.Keeper

	// Made by Run, once the store is there.
	own     *identity.Credentials
	fleet   *fleet.Fleet
	running atomic.Pointer[fleet.Fleet] // the same, for who may ask too early
}

func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = ":7443"
	}
	if c.StopTimeout <= 0 {
		c.StopTimeout = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.Store.Endpoints) == 0 && c.Store.DataDir == "" {
		c.Store.DataDir = filepath.Join(c.DataDir, "store")
	}
	return c
}

// New makes a Controller. Nothing is started before Run.
func New(cfg Config) (*Controller, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := &Controller{cfg: cfg, log: cfg.Log, registry: prometheus.NewRegistry()}
	c.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cfg.Store.Log, cfg.Store.Metrics = c.log.With("room", "store"), c.registry
	var err error
	if c.store, err = store.New(cfg.Store); err != nil {
		return nil, err
	}
	c.authority, err = enroll.NewAuthority(c.store, cfg.Cluster, c.log.With("room", "enroll"))
	if err != nil {
		return nil, err
	}
	c.countries, err = countries.New(countries.Config{Store: c.store, Files: cfg.CountryDatabase,
		Log: c.log.With("room", "countries"), Metrics: c.registry})
	if err != nil {
		return nil, err
	}
	c.catalog, err = catalog.New(catalog.Config{Store: c.store, Cluster: cfg.Cluster, Countries: c.countries.Database,
		Log: c.log.With("room", "catalog"), Metrics: c.registry})
	if err != nil {
		return nil, err
	}
	c.operators = access.NewOperators(c.store)
	c.keys = access.NewKeys(c.store)
	c.audit = admin.NewAudit(c.store, c.log.With("room", "audit"))
	return c, nil
}

// Run serves until ctx ends, then stops in order and returns nil. It returns an error when something
// that the controller needs has failed.
func (c *Controller) Run(ctx context.Context) error {
	id, err := c.id()
	if err != nil {
		return err
	}
	l, err := listen(ctx, c.cfg.Listen)
	if err != nil {
		return err
	}
	defer l.Close()
	var web net.Listener
	if c.cfg.MetricsListen != "" {
		if web, err = listen(ctx, c.cfg.MetricsListen); err != nil {
			return err
		}
		defer web.Close()
	}
	aws, err := c.listenAWS(ctx)
	if err != nil {
		return err
	}
	if aws != nil {
		defer aws.Close()
	}
	// The store ends last: what stops has last words to write.
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	stored := make(chan error, 1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		err := c.store.Run(storeCtx)
		if err != nil {
			err = fmt.Errorf("store: %w", err)
		}
		cancel(err)
		stored <- err
	}()
	// Not never, though: without a quorum the last words would wait for ever.
	late := context.AfterFunc(ctx, func() {
		select {
		case <-storeCtx.Done():
		case <-time.After(2 * c.cfg.StopTimeout):
			c.log.Warn("stopping without having told the store everything")
			stopStore()
		}
	})
	defer late()
	err = c.serve(ctx, id, l, web, aws)
	stopStore()
	if storeErr := <-stored; storeErr != nil {
		return storeErr
	}
	return err
}

// serve runs everything above the store.
func (c *Controller) serve(ctx context.Context, id string, l, web, aws net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	if web != nil {
		g.Go(func() error { return c.serveWeb(ctx, web) }) // also while the store forms: probes want to know
	}
	g.Go(func() error {
		if err := c.waitStore(ctx); err != nil {
			return err
		}
		g.Go(func() error { return c.catalog.Run(ctx) })
		if err := c.prepare(ctx, id, l.Addr()); err != nil {
			return err
		}
		g.Go(func() error { return c.authority.Run(ctx, c.own) })
		g.Go(func() error { return c.fleet.Run(ctx) })
		g.Go(func() error { return c.countries.Run(ctx, id, c.catalog, c.fleet.Leading) })
		g.Go(func() error { return c.audit.Run(ctx, c.fleet.Leading) })
		g.Go(func() error { return c.keepRotating(ctx) })
		g.Go(func() error { return c.series.Run(ctx, c.fleet.Leading) })
		if aws != nil {
			g.Go(func() error { return c.serveAWS(ctx, aws) })
		}
		return c.serveCalls(ctx, l)
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// prepare makes what a cluster has once, and what this controller needs to serve.
func (c *Controller) prepare(ctx context.Context, id string, bound net.Addr) error {
	advertise, err := c.advertise(bound)
	if err != nil {
		return err
	}
	if err := c.retry(ctx, "load the certificate authority", c.authority.Load); err != nil {
		return err
	}
	if err := c.retry(ctx, "make the gossip key", c.catalog.EnsureGossipKey); err != nil {
		return err
	}
	if err := c.retry(ctx, "make the secrets of DNS cookies", c.rotateCookies); err != nil {
		return err
	}
	if c.own, err = c.authority.Issue(identity.KindController, id); err != nil {
		return fmt.Errorf("make this controller's certificate: %w", err)
	}
	var first identity.OperatorToken
	if err := c.retry(ctx, "make the first operator", func(ctx context.Context) error {
		return c.bootstrap(ctx, advertise, &first)
	}); err != nil {
		return err
	}
	c.series, err = series.New(series.Config{Store: c.store, Health: c.healthCounts,
		Log: c.log.With("room", "series"), Metrics: c.registry})
	if err != nil {
		return err
	}
	c.fleet, err = fleet.New(fleet.Config{
		Traffic: c.series,
		Store:   c.store, Catalog: c.catalog, Authority: c.authority, ID: id, Address: advertise,
		Version: c.cfg.Version, Log: c.log.With("room", "fleet"), Metrics: c.registry,
	})
	if err != nil {
		return err
	}
	c.registerExpiries()
	c.running.Store(c.fleet)
	c.log.Info("controller serves", "id", id, "listen", bound.String(), "advertise", advertise,
		"cluster", c.cfg.Cluster, "version", c.cfg.Version)
	return nil
}

// services returns the gRPC server with all services behind the guard.
func (c *Controller) services() (*grpc.Server, error) {
	tokens := enroll.NewTokens(c.store, c.authority)
	enrolling, err := enroll.NewService(enroll.Config{Authority: c.authority, Tokens: tokens,
		Catalog: c.catalog, Controllers: c.fleet.Controllers, Log: c.log.With("room", "enroll")})
	if err != nil {
		return nil, err
	}
	administration, err := admin.New(admin.Config{Catalog: c.catalog, Fleet: c.fleet, Authority: c.authority,
		Tokens: tokens, Operators: c.operators, Keys: c.keys, Audit: c.audit, Store: c.store,
		Countries: c.countries,
		Log:       c.log.With("room", "admin")})
	if err != nil {
		return nil, err
	}
	guard, err := access.New(access.Config{Operator: c.operators.Lookup, Node: c.fleet.Authorize,
		Audit: c.audit.Record, Log: c.log.With("room", "access"), Metrics: c.registry})
	if err != nil {
		return nil, err
	}
	return newServer(c.own, guard, administration, c.fleet.Service(), enrolling), nil
}

// serveCalls serves the gRPC port until ctx ends; then calls that run may end, and streams are ended
// by the fleet.
func (c *Controller) serveCalls(ctx context.Context, l net.Listener) error {
	s, err := c.services()
	if err != nil {
		return err
	}
	return serveUntil(ctx, s, l, c.cfg.StopTimeout)
}

// serveUntil serves at l until ctx ends; calls that run then may take until patience is over.
func serveUntil(ctx context.Context, s *grpc.Server, l net.Listener, patience time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %v: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	force := time.AfterFunc(patience, s.Stop)
	defer force.Stop()
	s.GracefulStop()
	// Serve may not have begun when the server was stopped, and says so; that is no fault.
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// serveWeb serves metrics and health until ctx ends.
func (c *Controller) serveWeb(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: c.web(), ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %v: %w", l.Addr(), err)
	}
	return nil
}
