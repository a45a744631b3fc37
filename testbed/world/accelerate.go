package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
)

// Ports of the demonstration's listeners. The first two differ from the endpoints' to show overrides.
const (
	ListenHTTP = 80
	ListenTLS  = 443
)

// App is the accelerated application of a world.
type App struct {
	Accelerator string
	TCP, UDP    string // listener ids
	Groups      map[string]string
	Addresses   []netip.Addr
	Name        string                // DNS name
	ByCity      map[string]netip.Addr // where DNS brings each city, in a world with a node pool
	Home        string                // the region that takes all traffic; the others stand by
}

// Accelerate creates an accelerator for the world's endpoints through the CLI: the first region takes
// the traffic, the others stand by with a traffic dial of 0. It waits until the fleet has applied it
// and the endpoints are healthy.
func (w *World) Accelerate(ctx context.Context, say func(string, ...any)) (*App, error) {
	app := &App{Groups: map[string]string{}, Home: w.Spec.Regions[0].Name}
	run := func(out any, args ...string) error {
		say("$ nearcast %s", strings.Join(args, " "))
		return w.CLIJSON(ctx, out, append(args, "-o", "json")...)
	}
	var made struct {
		ID        string   `json:"id"`
		Addresses []string `json:"addresses"`
		DNSName   string   `json:"dnsName"`
	}
	create := []string{"accelerator", "create", "shop"}
	if w.Spec.dual() {
		create = append(create, "--dual-stack")
	}
	if err := run(&made, create...); err != nil {
		return nil, err
	}
	app.Accelerator, app.Name = made.ID, made.DNSName
	for _, a := range made.Addresses {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return nil, err
		}
		app.Addresses = append(app.Addresses, addr)
	}
	if len(app.Addresses) == 0 && !w.Spec.nodePool() {
		return nil, errors.New("the accelerator has no addresses")
	}
	tcpPorts := fmt.Sprintf("%d,%d,%d-%d", ListenHTTP, ListenTLS, load.PortEcho, load.PortSource)
	if err := run(&made, "listener", "create", "--accelerator", "shop", "--protocol", "tcp", "--ports", tcpPorts); err != nil {
		return nil, err
	}
	app.TCP = made.ID
	if err := run(&made, "listener", "create", "--accelerator", "shop", "--protocol", "udp",
		"--ports", fmt.Sprint(load.PortUDP)); err != nil {
		return nil, err
	}
	app.UDP = made.ID
	for _, listener := range []string{app.TCP, app.UDP} {
		for i, r := range w.Spec.Regions {
			args := []string{
				"group", "create", "--listener", listener, "--region", r.Name,
				"--health-protocol", "http", "--health-port", fmt.Sprint(load.PortHTTP), "--health-path", "/health",
				"--health-interval", "1s",
			}
			if i > 0 {
				args = append(args, "--dial", "0")
			}
			if listener == app.TCP {
				args = append(args, "--port-override", fmt.Sprintf("%d:%d", ListenHTTP, load.PortHTTP),
					"--port-override", fmt.Sprintf("%d:%d", ListenTLS, load.PortTLS))
			}
			for n := range r.Endpoints {
				args = append(args, "--endpoint", w.EndpointAddr(r.Name, n).String())
			}
			if err := run(&made, args...); err != nil {
				return nil, err
			}
			app.Groups[listener+"/"+r.Name] = made.ID
		}
	}
	say("waiting until every node has applied it and the endpoints are healthy")
	if err := w.Settled(ctx); err != nil || !w.Spec.nodePool() {
		return app, err
	}
	return app, w.resolveCities(ctx, app, say)
}

// status is the part of `nearcast status -o json` that worlds look at.
type status struct {
	Accelerators           int      `json:"accelerators"`
	AcceleratorsInProgress int      `json:"acceleratorsInProgress"`
	EndpointsHealthy       int      `json:"endpointsHealthy"`
	EndpointsUnhealthy     int      `json:"endpointsUnhealthy"`
	EndpointsInitial       int      `json:"endpointsInitial"`
	Problems               []string `json:"problems"`
}

// Settled waits until no accelerator is in progress and every endpoint is healthy.
func (w *World) Settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var st status
	var err error
	for ctx.Err() == nil {
		st = status{}
		// A controller that has just come back, or is busy, may not answer at once.
		err = w.CLIJSON(ctx, &st, "status", "-o", "json")
		if err == nil && st.AcceleratorsInProgress == 0 && st.EndpointsHealthy > 0 && st.EndpointsInitial+st.EndpointsUnhealthy == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return errors.Join(fmt.Errorf("the accelerator did not settle: %+v", st), err)
}
