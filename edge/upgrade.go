package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/handover"
)

// Names of what is handed over; plain listening sockets are plainName and their address.
const (
	lockName     = "data-dir"
	metricsName  = "metrics"
	backboneName = "backbone"
	plainName    = "tcp/"
)

// PIDFile is the file in the data directory that names the process which serves.
const PIDFile = "pid"

// Upgrade starts this node's next process, from the program that lies where this one's was started from, and
// lets it take over: new flows are its own, old ones stay here until they end, then Run returns. It returns at
// once. If the next process does not come to serve, this one goes on as before.
func (n *Node) Upgrade() {
	select {
	case n.upgrades <- struct{}{}:
	default: // one is under way
	}
}

// handOver starts the next process and lets it take over. It reports whether that one serves.
func (n *Node) handOver(ctx context.Context, parts *rooms) (bool, error) {
	files, err := n.inheritance()
	if err != nil {
		return false, err
	}
	n.log.Info("starting the next process", "program", n.cfg.Program)
	next, err := handover.Start(n.cfg.Program, n.cfg.Arguments, files)
	if err != nil {
		return false, err
	}
	begun, cancel := context.WithTimeout(ctx, nextReadyTimeout)
	err = next.Wait(begun, handover.Ready)
	cancel()
	if err != nil {
		next.Kill()
		return false, err
	}
	n.holdFlows()
	parts.end("metrics")
	parts.end("agent")
	n.mesh.Abandon()
	parts.end("mesh")
	parts.end("site")
	parts.end("announce")
	parts.end("dns")
	if n.traffic.doors != nil {
		n.traffic.doors.Release()
	}
	if err = next.Say(handover.Go); err == nil {
		serving, cancel := context.WithTimeout(context.Background(), nextServingTimeout)
		err = next.Wait(serving, handover.Serving)
		cancel()
	}
	if err != nil {
		next.Kill()
		return false, errors.Join(errHalfWay, err)
	}
	n.tell(fmt.Sprintf("MAINPID=%d\nREADY=1", next.PID()))
	n.holdFlows() // those that began meanwhile
	if n.traffic.doors != nil {
		n.traffic.doors.HandOver()
	}
	n.traffic.transport.CloseServers()
	if n.server != nil {
		n.server.HandOver()
	}
	n.log.Info("the next process serves", "pid", next.PID(), "flows_left_here", n.traffic.flows())
	next.Leave()
	return true, nil
}

// errHalfWay says that the next process failed when this one had let go of its ports already.
var errHalfWay = errors.New("the next process failed while it took over; this one ends, to be started anew")

// inheritance is what the next process gets.
func (n *Node) inheritance() (files map[string]int, err error) {
	files = map[string]int{}
	defer func() {
		if err != nil {
			for _, fd := range files {
				syscall.Close(fd)
			}
		}
	}()
	give := func(name string, c syscall.Conn) {
		fd, e := handover.Dup(c)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("hand over %s: %w", name, e))
			return
		}
		files[name] = fd
	}
	give(lockName, n.lock)
	for name, l := range map[string]net.Listener{metricsName: n.httpListener, backboneName: n.backboneListener} {
		if c, ok := l.(syscall.Conn); ok {
			give(name, c)
		}
	}
	if n.traffic.doors != nil {
		for at, l := range n.traffic.doors.Listeners() {
			give(plainName+at.String(), l)
		}
	}
	return files, err
}

// holdFlows has the datagrams of the flows that are here come here after the next process has taken over.
func (n *Node) holdFlows() {
	if n.traffic.doors == nil {
		return
	}
	var fresh []flow.Tuple
	now := n.traffic.udp.Tuples()
	for _, f := range now {
		if !n.held[f] {
			n.held[f] = true
			fresh = append(fresh, f)
		}
	}
	if err := n.traffic.doors.Hold(fresh); err != nil {
		n.log.Warn("UDP flows go over to the next process", "flows", len(fresh), "error", err)
	}
}

// letGo ends the hold of flows that have ended.
func (n *Node) letGo() {
	if n.traffic.doors == nil {
		return
	}
	over := maps.Clone(n.held)
	for _, f := range n.traffic.udp.Tuples() {
		delete(over, f)
	}
	var gone []flow.Tuple
	for f := range over {
		delete(n.held, f)
		gone = append(gone, f)
	}
	if err := n.traffic.doors.Let(gone); err != nil {
		n.log.Warn("let go of UDP flows", "error", err)
	}
}

// retire serves the flows that are left after a hand-over, until they have ended or ctx ends.
func (n *Node) retire(ctx context.Context, failed <-chan error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begun := time.Now()
	for {
		select {
		case <-ctx.Done():
			n.drain(failed)
			return
		case err := <-failed:
			n.log.Error("a part of the node failed after the hand-over", "error", err)
			return
		case <-tick.C:
		}
		n.letGo()
		// Handshakes that began here may still bring a flow.
		if time.Since(begun) > retireGrace && n.traffic.flows() == 0 {
			n.log.Info("all flows have ended; the next process has the node", "took", time.Since(begun).Round(time.Second))
			return
		}
	}
}

// takeOver takes over from the process before this one, when this one could serve.
func (n *Node) takeOver(ctx context.Context, parts *rooms) error {
	prev := n.cfg.Previous
	defer prev.Close()
	if err := n.prepared(ctx); err != nil {
		return err
	}
	if err := prev.Say(handover.Ready); err != nil {
		return err
	}
	if err := prev.Wait(ctx, handover.Go); err != nil {
		return err
	}
	if n.httpListener != nil {
		parts.start("metrics", func(ctx context.Context) error { return n.serveHTTP(ctx, n.httpListener) })
	}
	parts.start("mesh", n.mesh.Run)
	if n.site != nil {
		parts.start("site", n.site.Run)
	}
	if n.server != nil {
		parts.start("backbone server", n.server.Run)
	}
	n.mu.Lock()
	n.waiting = false
	t, s := n.table.Load(), n.snapshot.Load()
	n.traffic.open(n.traffic.bindings(t), n.drained(s))
	n.mu.Unlock()
	n.startOutward(parts)
	close(n.released)
	n.log.Info("taken over from the process before", "pid", os.Getppid())
	return prev.Say(handover.Serving)
}

// prepared waits until this process has a snapshot and its tunnels, as far as they come up at all.
func (n *Node) prepared(ctx context.Context) error {
	begun := time.Now()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for {
		has, up := n.snapshot.Load() != nil, true
		if n.pool != nil {
			for _, p := range n.pool.Peers() {
				up = up && p.Up
			}
			up = up && (len(n.pool.Peers()) > 0 || time.Since(begun) > time.Second)
		}
		switch waited := time.Since(begun); {
		case has && (up || waited > tunnelsTimeout):
			return nil
		case !has && waited > tunnelsTimeout:
			return errors.New("no snapshot on disk to take over with")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		}
	}
}

// serving notes which process serves, for operators and the service manager.
func (n *Node) serving() {
	path := filepath.Join(n.cfg.DataDir, PIDFile)
	err := os.WriteFile(path+".new", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path) // nobody reads half of it
	}
	if err != nil {
		n.log.Warn("nearcast-edge upgrade will not find this process", "error", err)
	}
	n.tell("READY=1")
}

// tell tells the service manager of a state, if there is one.
func (n *Node) tell(state string) {
	if err := handover.Notify(state); err != nil {
		n.log.Warn("the service manager was not told", "state", state, "error", err)
	}
}

// inherited returns a plain listening socket that the process before left.
func (n *Node) inherited(at netip.AddrPort) (*net.TCPListener, error) {
	return n.cfg.Previous.Listener(plainName + at.String())
}
