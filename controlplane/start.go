package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

const (
	idFile      = "controller-id"
	contextFile = "admin-context.yaml"
	firstAdmin  = "admin"
	retryAfter  = 500 * time.Millisecond
)

// id returns this controller's lasting name.
func (c *Controller) id() (string, error) {
	if c.cfg.ID != "" {
		return c.cfg.ID, nil
	}
	if err := os.MkdirAll(c.cfg.DataDir, 0o700); err != nil {
		return "", fmt.Errorf("make the data directory: %w", err)
	}
	path := filepath.Join(c.cfg.DataDir, idFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id := "c-" + strings.ToLower(rand.Text()[:8])
		return id, identity.ReplaceFile(path, []byte(id+"\n"))
	}
	if err != nil {
		return "", fmt.Errorf("read the controller's id: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if err := identity.ValidateName(id); err != nil {
		return "", fmt.Errorf("controller's id in %s: %w", path, err)
	}
	return id, nil
}

// waitStore waits until the store has answered.
func (c *Controller) waitStore(ctx context.Context) error {
	select {
	case <-c.store.Ready():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retry does a step of the start again while the store is not available, as it is when several members
// start at different times.
func (c *Controller) retry(ctx context.Context, what string, step func(context.Context) error) error {
	for {
		err := step(ctx)
		if err == nil {
			return nil
		}
		var ce *catalog.Error
		away := errors.Is(err, store.ErrUnavailable) || errors.As(err, &ce) && ce.Code == catalog.Unavailable
		if !away || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		c.log.Warn("the store is not available yet; trying again", "to", what, "err", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retryAfter):
		}
	}
}

// advertise returns where others reach this controller.
func (c *Controller) advertise(bound net.Addr) (string, error) {
	if c.cfg.Advertise != "" {
		return c.cfg.Advertise, nil
	}
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", fmt.Errorf("listening address %v: %w", bound, err)
	}
	if unspecified(host) {
		host = outboundAddress()
		c.log.Warn("no advertise address is given; nodes and operators are told a guess", "host", host)
	}
	return net.JoinHostPort(host, port), nil
}

// outboundAddress returns this machine's address on the way to the Internet, or loopback. Connecting a
// UDP socket chooses a route and sends nothing; the address is one of documentation.
func outboundAddress() string {
	conn, err := net.Dial("udp", "192.0.2.1:9")
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil || unspecified(host) {
		return "127.0.0.1"
	}
	return host
}

// bootstrap makes the first operator, if the cluster has none, and leaves his credentials in the data
// directory; or gives him a new token, if that was asked for.
//
// It may be tried again with the same first, which keeps the token of the first try: the store may have taken
// the operator although it did not say so in time, and without his token nobody could use the cluster.
func (c *Controller) bootstrap(ctx context.Context, advertise string, first *identity.OperatorToken) error {
	var token string
	if c.cfg.NewAdminToken {
		var err error
		if token, err = c.operators.Reset(ctx, firstAdmin, v1.Role_ROLE_ADMIN); err != nil {
			return err
		}
	} else {
		if first.Secret == "" {
			all, err := c.operators.List(ctx)
			if err != nil || len(all) > 0 {
				return err
			}
			*first = identity.OperatorToken{Name: firstAdmin, Secret: identity.NewSecret()}
		}
		_, err := c.operators.CreateWith(ctx, *first, v1.Role_ROLE_ADMIN)
		if errors.Is(err, access.ErrExists) {
			return nil // another controller was first, and has the credentials
		}
		if err != nil {
			return err
		}
		token = first.String()
	}
	path := filepath.Join(c.cfg.DataDir, contextFile)
	if err := c.writeContext(path, advertise, token); err != nil {
		return fmt.Errorf("%w: the operator's token is lost; start once with a new admin token", err)
	}
	c.log.Info("operator's credentials written", "operator", firstAdmin, "file", path)
	return nil
}

// contexts is the CLI's contexts file.
type contexts struct {
	Current  string        `json:"current"`
	Contexts []contextItem `json:"contexts"`
}

type contextItem struct {
	Name   string `json:"name"`
	Server string `json:"server"`
	CA     string `json:"ca"` // PEM
	Token  string `json:"token"`
}

func (c *Controller) writeContext(path, server, token string) error {
	data, err := yaml.Marshal(contexts{Current: c.cfg.Cluster, Contexts: []contextItem{{
		Name: c.cfg.Cluster, Server: server, Token: token,
		CA: string(identity.MarshalCertificates(c.authority.Roots())),
	}}})
	if err != nil {
		return fmt.Errorf("encode the contexts file: %w", err)
	}
	if err := os.MkdirAll(c.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	return identity.ReplaceFile(path, data)
}

// cookieInterval is between two steps of the rotation of DNS cookies' secrets: far longer than the hour
// that a cookie is good for (RFC 9018 4.3), so that each secret outlives its cookies.
const cookieInterval = 12 * time.Hour

func (c *Controller) rotateCookies(ctx context.Context) error {
	return c.catalog.RotateCookieSecrets(ctx, cookieInterval)
}

// keepRotating takes the steps that are due until ctx ends. Every controller does, and the catalog lets
// one of them.
func (c *Controller) keepRotating(ctx context.Context) error {
	tick := time.NewTicker(cookieInterval / 24)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.rotateCookies(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("the secrets of DNS cookies are not rotated; trying again", "err", err)
		}
	}
}
