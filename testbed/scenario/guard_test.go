package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

const (
	nobodyPort = 81                      // that no listener has
	silent     = 1500 * time.Millisecond // more than SYNs are apart
)

// TestGuard has the shipped edge guard the interface that clients come by: what no listener wants, who is
// denied and who comes too often gets no answer, not even a refusal, and the node says so in its metrics, at
// /drops and to nearcast top drops.
func TestGuard(t *testing.T) {
	database := filepath.Join(t.TempDir(), "country.mmdb")
	writeCountries(t, database, 0, map[string]string{"9.0.0.0/8": "US"})
	d := stand(t, "main", one("guard"), world.Options{NodeArgs: []string{"--guard-interfaces", "eth0", "--kernel-guard", "on"},
		ControllerArgs: []string{"--country-database", database}})
	app, err := d.Accelerate(d.ctx, t.Logf)
	d.do(t, err)
	g := &guarded{d, database}
	d.app = app
	t.Run("ports of nobody", g.nobody)
	t.Run("denied networks", g.denied)
	t.Run("denied and allowed countries", g.countries)
	t.Run("too often", g.often)
	t.Run("what is told of it", g.told)
}

type guarded struct {
	*deployment
	database string // file that says which networks a country has
}

// dropped returns how many packets the edge's guard has dropped for a reason.
func (g *guarded) dropped(t *testing.T, reason string) (n uint64) {
	t.Helper()
	return g.drops(t).Packets[reason]
}

type drops struct {
	Present bool
	Packets map[string]uint64
	Samples []struct {
		Reason, Protocol    string
		Source, Destination netip.AddrPort
	}
}

func (g *guarded) drops(t *testing.T) (d drops) {
	t.Helper()
	var text string
	eventually(t, 60*time.Second, "the edge shows its drops", func() (err error) {
		text, err = g.Nodes["sin-1"].Get(g.ctx, "/drops")
		return err
	})
	g.do(t, json.Unmarshal([]byte(text), &d))
	if !d.Present {
		t.Fatal("the edge has no guard")
	}
	return d
}

// refused waits until connection attempts of a client get no answer, because the guard drops them for this reason: a
// busy machine may not answer either.
func (g *guarded) refused(t *testing.T, what string, client netip.Addr, to netip.AddrPort, reason string) {
	t.Helper()
	eventually(t, 60*time.Second, what, func() error {
		before := g.dropped(t, reason)
		if err := g.silence(client, to, silent); err != nil {
			return err
		}
		if g.dropped(t, reason) == before {
			return fmt.Errorf("nothing was dropped as %s", reason)
		}
		return nil
	})
}

// silence reports that a connection attempt got no answer for so long: neither a connection nor a refusal.
func (g *guarded) silence(from netip.Addr, to netip.AddrPort, long time.Duration) error {
	ctx, cancel := context.WithTimeout(g.ctx, long)
	defer cancel()
	var local netip.AddrPort
	if from.IsValid() {
		local = netip.AddrPortFrom(from, 0)
	}
	c, err := g.NS("jakarta").Dial(ctx, "tcp", local, to)
	var timeout net.Error
	switch {
	case err == nil:
		c.Close()
		return errors.New("it was taken")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return nil
	}
	return fmt.Errorf("it was answered: %w", err)
}

// nobody: what no listener wants vanishes; what one wants does not.
func (g *guarded) nobody(t *testing.T) {
	g.refused(t, "a port that no listener has", netip.Addr{}, g.at(nobodyPort), "nobody")
	eventually(t, 60*time.Second, "a listener's port is served", func() error {
		_, err := g.fetchFrom("jakarta")
		return err
	})
}

// denied: a network that the listener denies gets nothing, at once and on connections that are there.
func (g *guarded) denied(t *testing.T) {
	network := netip.MustParsePrefix(g.trusted())
	client := network.Addr().Next()
	var c net.Conn
	eventually(t, 60*time.Second, "a connection of the network", func() (err error) {
		ctx, cancel := context.WithTimeout(g.ctx, 10*time.Second)
		defer cancel()
		if c, err = g.NS("jakarta").Dial(ctx, "tcp", netip.AddrPortFrom(client, 0), g.at(load.PortEcho)); err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = c.Write([]byte("x")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err != nil {
			c.Close()
		}
		return err
	})
	defer c.Close()
	g.run(t, nil, "listener", "update", g.app.TCP, "--deny-from", network.String())
	g.refused(t, "the network is denied", client, g.at(world.ListenHTTP), "denied")
	_, _ = c.Write([]byte("y"))
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection from before was answered with %d bytes", n)
	}
	if _, err := g.fetchFrom("jakarta"); err != nil {
		t.Errorf("who is not denied: %v", err)
	}
	g.run(t, nil, "listener", "update", g.app.TCP, "--deny-from", "")
	eventually(t, 60*time.Second, "the network is served again", func() error {
		if err := g.silence(client, g.at(world.ListenHTTP), silent); err == nil {
			return errors.New("it is still denied")
		}
		return nil
	})
}

// often: a source has as many connections as its rate allows, and others are not in its way.
func (g *guarded) often(t *testing.T) {
	g.run(t, nil, "listener", "update", g.app.TCP, "--source-rate", "1/5")
	greedy := netip.MustParsePrefix(g.trusted()).Addr().Next()
	eventually(t, 60*time.Second, "the rate holds", func() error {
		before := g.dropped(t, "source")
		for range 20 {
			if g.silence(greedy, g.at(world.ListenHTTP), silent/3) == nil && g.dropped(t, "source") > before {
				return nil // the next SYN comes after a second
			}
		}
		return errors.New("20 connections were taken at once")
	})
	if _, err := g.fetchFrom("jakarta"); err != nil {
		t.Errorf("another source: %v", err)
	}
}

// told: samples say who it was.
func (g *guarded) told(t *testing.T) {
	u, err := g.NS("jakarta").Dial(g.ctx, "udp", netip.AddrPort{}, g.at(nobodyPort))
	g.do(t, err)
	defer u.Close()
	for range 500 { // one of a hundred is a sample
		_, _ = u.Write([]byte("nobody wants this"))
	}
	client := netip.MustParseAddrPort(u.LocalAddr().String())
	eventually(t, 60*time.Second, "a sample names the client", func() error {
		for _, s := range g.drops(t).Samples {
			if s.Source == client && s.Destination == g.at(nobodyPort) && s.Reason == "nobody" && strings.EqualFold(s.Protocol, "udp") {
				return nil
			}
		}
		_, _ = u.Write([]byte("nobody wants this either"))
		return errors.New("there is none")
	})
	text := metrics(t, g.Nodes["sin-1"])
	for _, reason := range []string{"nobody", "denied", "country", "source"} {
		want := fmt.Sprintf(`nearcast_kernel_guard_packets_total{reason=%q,verdict="drop"} `, reason)
		at := strings.Index(text, want)
		if at < 0 || strings.HasPrefix(text[at+len(want):], "0\n") {
			t.Errorf("the metrics do not say that packets were dropped as %s", reason)
		}
	}
	cmd := g.NS("sin-1").Cmd(g.ctx, filepath.Join(os.Getenv("NEARCAST_BIN"), "nearcast"), "top", "drops")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), client.Addr().String()) || !strings.Contains(out.String(), "nobody") {
		t.Errorf("nearcast top drops: %v\n%s", err, out.String())
	}
	t.Logf("nearcast top drops:\n%s", out.String())
}
