package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/nearcast/nearcast/controlplane/awsapi"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/controlplane/series"
	"github.com/nearcast/nearcast/proto/model"
)

// Bounds of the HTTP server for AWS clients. Requests and answers are small; a client that takes longer
// has gone.
const (
	awsReadTimeout  = 15 * time.Second
	awsWriteTimeout = 30 * time.Second
	awsIdleTimeout  = 2 * time.Minute
	awsHeaderBytes  = 16 << 10
)

// listenAWS opens the door for AWS clients, if there is to be one.
func (c *Controller) listenAWS(ctx context.Context) (net.Listener, error) {
	if c.cfg.AWSListen == "" {
		return nil, nil
	}
	var cfg *tls.Config
	if c.cfg.AWSTLS.Cert != "" {
		cert, err := tls.LoadX509KeyPair(c.cfg.AWSTLS.Cert, c.cfg.AWSTLS.Key)
		if err != nil {
			return nil, fmt.Errorf("load the certificate for AWS clients: %w", err)
		}
		cfg = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	}
	l, err := listen(ctx, c.cfg.AWSListen)
	if err != nil {
		return nil, err
	}
	if cfg != nil {
		return tls.NewListener(l, cfg), nil
	}
	if at, err := netip.ParseAddrPort(l.Addr().String()); err != nil || !at.Addr().Unmap().IsLoopback() {
		c.log.Warn("AWS clients are answered in plain HTTP: what they ask and are told can be read and, in "+
			"answers, altered on the way; give a certificate or put a TLS proxy before it", "listen", l.Addr())
	}
	return l, nil
}

// serveAWS answers AWS clients until ctx ends; then requests that run may end.
func (c *Controller) serveAWS(ctx context.Context, l net.Listener) error {
	h, err := awsapi.New(awsapi.Config{Catalog: c.catalog, Key: c.keys.Find, Session: c.keys.CreateSession, Deployed: c.fleet.Deployed,
		Applied: c.fleet.Applied, Account: c.keys.Account, Project: c.keys.ProjectOf,
		Health: c.verdict, Audit: c.audit.Record, Log: c.log.With("room", "awsapi"), Metrics: c.registry,
		Traffic: c.series, Places: series.Places{EdgeArea: c.edgeArea, RegionArea: c.regionArea}})
	if err != nil {
		return err
	}
	s := &http.Server{Handler: h, ReadTimeout: awsReadTimeout, WriteTimeout: awsWriteTimeout,
		IdleTimeout: awsIdleTimeout, MaxHeaderBytes: awsHeaderBytes,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug)}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		late, cancel := context.WithTimeout(context.Background(), c.cfg.StopTimeout)
		defer cancel()
		if s.Shutdown(late) != nil {
			s.Close()
		}
	})
	err = s.Serve(l)
	if !stop() {
		<-stopped
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve AWS clients on %v: %w", l.Addr(), err)
	}
	return nil
}

// verdict returns the verdict on an endpoint as of now.
func (c *Controller) verdict(g model.GroupID, e model.EndpointID) (model.HealthState, string) {
	v := c.fleet.Published().Verdicts[health.Key{Group: g, Endpoint: e}]
	return v.State, v.Reason
}

// edgeArea returns the area of the site of a node, for CloudWatch.
func (c *Controller) edgeArea(id model.NodeID) string {
	snap := c.fleet.Published().Snapshot
	if snap == nil {
		return ""
	}
	if n := snap.Node(id); n != nil {
		if site := snap.Site(n.Site); site != nil {
			return series.Area(site.Region, site.Latitude, site.Longitude)
		}
	}
	return ""
}

// regionArea returns the area of a region: by its name, or of the first site that is in it.
func (c *Controller) regionArea(r model.RegionName) string {
	if snap := c.fleet.Published().Snapshot; snap != nil {
		for i := range snap.Sites {
			if site := &snap.Sites[i]; site.Region == r {
				return series.Area(r, site.Latitude, site.Longitude)
			}
		}
	}
	return series.Area(r, 0, 0)
}

// healthCounts counts the healthy endpoints of the groups of enabled accelerators.
func (c *Controller) healthCounts() (counts []series.HealthCount) {
	p := c.fleet.Published()
	if p.Snapshot == nil {
		return nil
	}
	for i := range p.Snapshot.Groups {
		g := &p.Snapshot.Groups[i]
		l := p.Snapshot.Listener(g.Listener)
		if a := p.Snapshot.Accelerator(l.Accelerator); !a.Enabled {
			continue
		}
		n := series.HealthCount{Accelerator: l.Accelerator, Listener: l.ID, Group: g.ID, Region: g.Region}
		for _, e := range g.Endpoints {
			if p.Verdicts[health.Key{Group: g.ID, Endpoint: e.ID}].State == model.HealthHealthy {
				n.Healthy++
			} else {
				n.Unhealthy++
			}
		}
		counts = append(counts, n)
	}
	return counts
}
