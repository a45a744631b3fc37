package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/nearcast/nearcast/testbed/world"
)

// sayFunc tells a step of a demonstration.
type sayFunc = func(format string, args ...any)

// showRoutes waits for the routers and says which site each city reaches, and by which way.
func showRoutes(ctx context.Context, w *world.World, app *world.App, say sayFunc) error {
	say("waiting until every city's router has a route to every address")
	if err := w.Routed(ctx, app.Addresses); err != nil {
		return err
	}
	for _, c := range w.Spec.Cities {
		for _, a := range app.Addresses {
			if err := showReached(ctx, w, c.Name, a, say); err != nil {
				return err
			}
		}
	}
	return nil
}

func showReached(ctx context.Context, w *world.World, city string, addr netip.Addr, say sayFunc) error {
	path, err := w.ASPath(ctx, city, addr)
	if err != nil {
		return err
	}
	node, err := w.Reached(ctx, city, netip.AddrPortFrom(addr, world.ListenHTTP))
	if err != nil {
		return err
	}
	say("%-8s  reaches %-13s at %-6s (AS path %s)", city, addr, node, path)
	return nil
}

// showAway takes the first city's site away, gently and then by a crash, and says what new connections saw.
func showAway(ctx context.Context, out io.Writer, w *world.World, app *world.App, say sayFunc) error {
	fmt.Fprint(out, `In this world clients' packets take the routers' cables to the edge, which have no delay; answers, and all direct
traffic, have the distances' delays. Half a round trip to the edge is missing from "accelerated" and from "floor".

`)
	city := w.Spec.Cities[0]
	addr := netip.AddrPortFrom(app.Addresses[0], world.ListenHTTP)
	home, err := w.ASPath(ctx, city.Name, addr.Addr())
	if err != nil {
		return err
	}
	cli := func(args ...string) error {
		say("$ nearcast %s", strings.Join(args, " "))
		_, err := w.CLI(ctx, args...)
		return err
	}
	tell := func(what string, take func() error) error {
		a, err := w.TakeAway(ctx, city.Name, addr, take)
		if err != nil {
			return err
		}
		say("%s: %s's route led elsewhere after %v (AS path %s now)", what, city.Name, a.Moved.Round(time.Millisecond), a.Path)
		say("%s: new connections that began %v after the command or later all succeeded elsewhere; %d of %d failed", what,
			a.Outage.Round(time.Millisecond), a.Failed, a.Tried)
		return showReached(ctx, w, city.Name, addr.Addr(), say)
	}
	err = tell("site drained", func() error { return cli("announce", "drain", "--site", city.Site) })
	if err != nil {
		return err
	}
	if err := cli("announce", "restore", "--site", city.Site); err != nil {
		return err
	}
	if _, err := w.Moved(ctx, city.Name, addr.Addr(), func(path string) bool { return path == home }); err != nil {
		return err
	}
	if err := showReached(ctx, w, city.Name, addr.Addr(), say); err != nil {
		return err
	}
	say("killing every node of %s (SIGKILL)", city.Site)
	return tell("site killed", func() error {
		for name, p := range w.Nodes {
			if strings.HasPrefix(name, city.Site+"-") {
				if err := p.Kill(); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
