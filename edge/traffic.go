package edge

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/clients"
	"github.com/nearcast/nearcast/edge/datagram"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/flowlog"
	"github.com/nearcast/nearcast/edge/gateway"
	"github.com/nearcast/nearcast/edge/kernel"
	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/probe"
	"github.com/nearcast/nearcast/edge/relay"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

// traffic is the parts that flows go through: doors (edges), relays (edges), tunnels, and the gateway.
// An edge has a gateway, too: it dials regions that have none.
type traffic struct {
	n         *Node
	transport *datagram.Transport
	gateway   *gateway.Gateway
	tcp       *relay.TCP
	udp       *relay.UDP
	doors     *listen.Set
	meter     *meter.Meter
	flowlog   *flowlog.Log

	doorsShut atomic.Pointer[error] // which of the doors could not be opened at first, and why
}

// buildTraffic makes the parts that this node's roles need. After an error nothing is left open.
func (n *Node) buildTraffic(common backbone.Common) (err error) {
	t := &traffic{n: n}
	n.traffic = t
	carriers := datagram.Config{Log: n.log.With("room", "datagram"), Metrics: n.registry}
	if n.cfg.Gateway {
		carriers.Listen = n.cfg.BackboneListen
	}
	if t.transport, err = datagram.New(carriers); err != nil {
		return fmt.Errorf("--backbone-listen: %w", err)
	}
	defer func() {
		if err != nil {
			t.transport.Close()
		}
	}()
	common.Transport = t.transport
	t.gateway, err = gateway.New(gateway.Config{
		Self: n.self, MaxFlows: n.cfg.MaxFlows, MaxSessions: n.cfg.MaxFlows,
		SendDatagrams: t.toEdge, LocalDatagrams: t.fromGateway, OnGroups: t.onGroups,
		Log: n.log.With("room", "gateway"), Metrics: n.registry,
	})
	if err != nil {
		return err
	}
	if n.cfg.Gateway {
		if err = n.listenBackbone(); err != nil {
			return err
		}
		accept := common
		accept.HandleDatagrams = t.gateway.HandleDatagrams
		n.server, err = backbone.NewServer(backbone.ServerConfig{
			Common: accept, Listener: n.backboneListener, HandleStream: t.gateway.HandleStream,
		})
		if err != nil {
			return err
		}
	}
	if n.cfg.Edge {
		return n.buildEdge(common)
	}
	return nil
}

// listenBackbone opens the socket that carriers are accepted on, or takes over that of the process before.
func (n *Node) listenBackbone() error {
	l, err := n.cfg.Previous.Listener(backboneName)
	if l != nil || err != nil {
		n.backboneListener = l
		return err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	if n.backboneListener, err = lc.Listen(context.Background(), "tcp", n.cfg.BackboneListen.String()); err != nil {
		return fmt.Errorf("--backbone-listen: %w", err)
	}
	return nil
}

func (n *Node) buildEdge(common backbone.Common) (err error) {
	t := n.traffic
	common.HandleDatagrams = t.fromGateway
	n.kernel, err = kernel.New(kernel.Config{
		Modes: n.cfg.KernelModes, PinDir: n.cfg.KernelPins, ClientCongestion: n.cfg.ClientCongestion,
		Self: n.self, GuardInterfaces: n.cfg.GuardInterfaces, BalanceInterfaces: n.cfg.BalanceInterfaces,
		BalanceFlows: n.cfg.BalanceFlows, XDPMode: n.cfg.XDPMode, TakesOver: n.cfg.Previous != nil,
		ClientSegment: n.cfg.ClientMSS, Log: n.log.With("room", "kernel"), Metrics: n.registry,
	})
	if err != nil {
		return err
	}
	if err := n.buildSite(); err != nil {
		return err
	}
	n.pool, err = backbone.NewPool(backbone.PoolConfig{Common: common, Self: n.self, Dial: n.kernel.DialCarrier})
	if err != nil {
		return err
	}
	n.pool.OnChange(n.changed)
	logs := n.cfg.FlowLogs
	logs.Dir, logs.Socket = filepath.Join(n.cfg.DataDir, "flowlogs"), filepath.Join(n.cfg.DataDir, "flows.sock")
	logs.Node, logs.Log, logs.Metrics = string(n.self), n.log.With("room", "flowlog"), n.registry
	if t.flowlog, err = flowlog.New(logs); err != nil {
		return err
	}
	t.meter, err = meter.New(meter.Config{
		Fold: t.fold, Report: n.agent.ReportTraffic, Metrics: n.registry, Wanted: t.flowlog.Wanted, Window: t.flowlog.Record,
	})
	if err != nil {
		return err
	}
	if n.clients, err = clients.New(n.registry); err != nil {
		return err
	}
	n.recall()
	cfg := relay.Config{
		Meter: t.meter, Saw: n.saw,
		Self: n.self, Pool: n.pool, Gateway: t.gateway, Memory: common.Memory, MaxFlows: n.cfg.MaxFlows,
		OnOverload: func(bound int) { t.doors.Backlog(bound + bound/4) },
		Behind:     func() bool { return t.doors.Behind() },
		Log:        n.log.With("room", "relay"), Metrics: n.registry,
	}
	if t.tcp, err = relay.NewTCP(cfg); err != nil {
		return err
	}
	if t.udp, err = relay.NewUDP(cfg); err != nil {
		return err
	}
	t.doors, err = listen.New(listen.Config{
		HandleTCP: t.tcp.Handle, HandleUDP: t.udp.HandleUDP, ManageAddresses: n.cfg.ManageAddresses,
		Dispatch: n.kernel.Dispatch(), Mark: n.kernel.MarkClient(),
		Inherited: n.inherited, MaxSegment: n.cfg.ClientMSS, AcceptSockets: n.cfg.AcceptSockets,
		Log: n.log.With("room", "listen"), Metrics: n.registry,
	})
	return err
}

// start starts the parts that carry flows, from the inside out.
func (t *traffic) start(parts *rooms) {
	parts.start("datagrams", t.transport.Run)
	if t.n.pool != nil {
		parts.start("backbone pool", t.n.pool.Run)
	}
	if t.n.server != nil && t.n.cfg.Previous == nil {
		parts.start("backbone server", t.n.server.Run)
	}
	parts.start("gateway", t.gateway.Run)
	if t.doors != nil {
		parts.start("flow logs", t.flowlog.Run)
		parts.start("clients", t.n.remember)
		parts.start("meter", t.meter.Run)
		parts.start("relay of TCP", t.tcp.Run)
		parts.start("relay of UDP", t.udp.Run)
		parts.start("listen", t.doors.Run)
	}
}

// fold has what open flows have carried counted.
func (t *traffic) fold(time.Time) {
	t.tcp.Fold()
	t.udp.Fold()
}

// logFlows has the flows of a snapshot's accelerators written down as they want it.
func (t *traffic) logFlows(s *model.Snapshot) {
	if t.flowlog == nil {
		return
	}
	var region model.RegionName
	var name model.SiteName
	if self := s.Node(t.n.self); self != nil {
		name = self.Site
		if site := s.Site(name); site != nil {
			region = site.Region
		}
	}
	t.flowlog.Apply(s, region, name)
}

// toEdge sends the gateway's datagrams to an edge.
func (t *traffic) toEdge(peer model.NodeID, msgs [][]byte) int {
	if t.n.server == nil {
		return 0
	}
	return t.n.server.SendDatagrams(peer, msgs)
}

// fromGateway takes datagrams of gateways, this node's own among them.
func (t *traffic) fromGateway(peer model.NodeID, msgs [][]byte) {
	if t.udp != nil {
		t.udp.HandleDatagrams(peer, msgs)
	}
}

// onGroups tells every edge which groups can be served here, and steers by it.
func (t *traffic) onGroups(groups map[model.GroupID]bool) {
	if t.n.server != nil {
		t.n.server.AnnounceGroups(groups)
	}
	t.n.changed()
}

// verdict has the gateway act on the prober's word.
func (t *traffic) verdict(v probe.Verdict) {
	t.gateway.SetVerdict(v.Group, v.Endpoint, v.State)
}

// groups is this gateway's own word on the groups of its region; nil on a node that is none.
func (t *traffic) groups() map[model.GroupID]bool {
	if t.n.server == nil {
		return nil
	}
	return t.gateway.Groups()
}

// plan works out which doors to open, and refuses what could not be open whatever the machine's state.
func (t *traffic) plan(table *steer.Table) ([]listen.Binding, error) {
	if t.doors == nil {
		return nil, nil
	}
	bindings := t.bindings(table)
	return bindings, t.doors.Check(bindings)
}

// bindings returns what must be listened on for a table.
func (t *traffic) bindings(table *steer.Table) []listen.Binding {
	if t.doors == nil {
		return nil
	}
	return relay.Bindings(table, t.n.kernel.Dispatch() != nil)
}

// setTable has new flows go by a table.
func (t *traffic) setTable(table *steer.Table) {
	if t.doors != nil {
		t.meter.SetTable(table)
		t.tcp.SetTable(table)
		t.udp.SetTable(table)
	}
}

// open opens the doors for clients and closes all others. One that cannot be opened here and now
// (another process has the port) does not refuse the snapshot: that would keep this node from every
// other change, too. The node says so, is not ready, and the door is tried again.
//
// A node that takes no new flows closes its doors for TCP. Those for UDP stay, since answers leave
// through them; new flows are refused there.
func (t *traffic) open(bindings []listen.Binding, drained bool) {
	if t.doors == nil || t.n.waiting {
		return
	}
	if drained {
		bindings = slices.DeleteFunc(slices.Clone(bindings), func(b listen.Binding) bool {
			return b.Proto == flow.TCP
		})
	}
	t.udp.SetDraining(drained)
	err := t.doors.Apply(bindings)
	if err != nil {
		t.n.log.Error("open listeners; trying on", "error", err)
	}
	t.doorsShut.Store(&err)
}

// flows returns the flows that this node carries now.
func (t *traffic) flows() int {
	s := t.status()
	return s.TCP + s.UDP + s.EndpointTCP + s.EndpointUDP
}

// busy returns the flows that a node which is about to end waits for. A flow of datagrams has no end that could be
// seen; one that has been silent for a while is served as long as the node runs, but not waited for.
func (t *traffic) busy() int {
	tcp, udp := t.gateway.Busy(drainUDPQuiet)
	if t.doors != nil {
		tcp += t.tcp.Flows()
		udp += t.udp.Busy(drainUDPQuiet)
	}
	return tcp + udp
}

// TrafficStatus is what a node carries.
type TrafficStatus struct {
	TCP         int   `json:"tcp"`               // flows of clients here
	UDP         int   `json:"udp"`               //
	EndpointTCP int   `json:"endpoint_tcp"`      // flows to endpoints from here
	EndpointUDP int   `json:"endpoint_udp"`      //
	Missing     int   `json:"sockets_missing"`   // listening sockets that could not be opened yet
	Memory      int64 `json:"memory_held_bytes"` // by streams
}

func (t *traffic) status() TrafficStatus {
	var s TrafficStatus
	s.EndpointTCP, s.EndpointUDP = t.gateway.Flows()
	if t.doors != nil {
		s.TCP, s.UDP = t.tcp.Flows(), t.udp.Flows()
		s.Missing = t.doors.Missing()
	}
	s.Memory = t.n.memory.Used()
	return s
}

// notes says what flows go without here.
func (t *traffic) notes() []string {
	if t.n.kernel == nil {
		return nil
	}
	notes := t.n.kernel.Notes()
	if ports, room := t.doors.Short(); ports > 0 {
		notes = append(notes, fmt.Sprintf("%d ports of custom routing are closed here: without the kernel's "+
			"dispatcher there is a socket for each address, port and protocol, and at most %d of them", ports, room))
	}
	if left, _ := t.doors.Left(); len(left) > 0 {
		notes = append(notes, fmt.Sprintf("ports of listeners that other services of this machine have, and keep: %v",
			left[:min(len(left), 20)]))
	}
	return notes
}

// missing says which doors are not open although they should be.
func (t *traffic) missing() []string {
	if t.doors == nil {
		return nil
	}
	if _, wanted := t.doors.Left(); len(wanted) > 0 {
		return []string{fmt.Sprintf("%v is another service's of this machine: stop it, or give the listener other ports",
			wanted[0])}
	}
	n := t.doors.Missing()
	if n == 0 {
		return nil
	}
	text := fmt.Sprintf("%d listening sockets are not open; trying on", n)
	if err := t.doorsShut.Load(); err != nil && *err != nil {
		text += ": " + (*err).Error()
	}
	return []string{text}
}
