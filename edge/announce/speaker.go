package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/nearcast/nearcast/proto/model"
)

// Session is one BGP session as it is now.
type Session struct {
	Peer      model.BGPPeer
	State     string
	Since     time.Time
	Reason    string // why it went down last
	Announced []netip.Prefix
	Received  int
}

// speaker makes gobgp do what a Plan says. It is owned by one goroutine.
type speaker struct {
	log     *slog.Logger
	changed func()

	server   *server.BgpServer
	stop     context.CancelFunc // of the watch
	global   string             // what the server was started with
	peers    map[netip.Addr]model.BGPPeer
	policy   string
	routes   map[netip.Prefix]string // what each was announced with
	sessions map[netip.Addr]*Session // last events, by address; written by the server's goroutine
	events   chan Session
	restart  bool // peers are told that this speaker has restarted

	established atomic.Int64
}

func newSpeaker(log *slog.Logger, changed func()) *speaker {
	return &speaker{log: log, changed: changed, events: make(chan Session, 64)}
}

// apply brings sessions and routes to what the plan says. Routes are there before the sessions that carry
// them. An error says what could not be done; it is tried again with the next plan.
func (s *speaker) apply(p *Plan, routerID netip.Addr) error {
	if p.Off != "" || p.BGP.DryRun || len(p.Peers) == 0 {
		s.close()
		return nil
	}
	passive := slices.ContainsFunc(p.Peers, func(b model.BGPPeer) bool { return b.Passive && !b.Disabled })
	global := fmt.Sprint(p.BGP.LocalASN, routerID, passive)
	if s.server != nil && s.global != global {
		s.close()
	}
	if s.server == nil {
		if err := s.open(p.BGP.LocalASN, routerID, passive); err != nil {
			s.close()
			return err
		}
		s.global = global
	}
	want := map[netip.Addr]model.BGPPeer{}
	for _, b := range p.Peers {
		if !b.Disabled {
			want[b.Address] = b
		}
	}
	var errs []error
	for addr, b := range s.peers {
		if w, ok := want[addr]; !ok || sessionKey(w) != sessionKey(b) {
			errs = append(errs, s.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: addr.String()}))
			delete(s.peers, addr)
			delete(s.sessions, addr)
		}
	}
	errs = append(errs, s.setPolicy(p, want), s.setRoutes(p))
	for addr, b := range want {
		if _, ok := s.peers[addr]; !ok {
			if err := s.server.AddPeer(context.Background(), &api.AddPeerRequest{Peer: s.apiPeer(&b)}); err != nil {
				errs = append(errs, fmt.Errorf("peer %s: %w", b.Name, err))
				continue
			}
		}
		s.peers[addr] = b
	}
	s.count()
	return errors.Join(errs...)
}

// sessionKey is what a session must be made anew for.
func sessionKey(b model.BGPPeer) string {
	return fmt.Sprint(b.Address, b.Port, b.ASN, b.Password, b.TTLSecurity, b.MultihopTTL, b.HoldTime,
		b.ConnectRetry, b.RestartTime, b.MaxPrefixes, b.Passive, b.LocalAddress)
}

// open starts gobgp. It listens only if a router is to connect to us.
func (s *speaker) open(asn uint32, routerID netip.Addr, passive bool) error {
	s.peers, s.routes = map[netip.Addr]model.BGPPeer{}, map[netip.Prefix]string{}
	s.sessions, s.policy = map[netip.Addr]*Session{}, ""
	level := new(slog.LevelVar)
	s.server = server.NewBgpServer(server.LoggerOption(slog.New(quiet{s.log.Handler()}), level))
	go s.server.Serve()
	port := int32(-1)
	if passive {
		port = model.DefaultBGPPort
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: asn, RouterId: routerID.String(), ListenPort: port,
	}})
	if err != nil {
		return fmt.Errorf("start BGP: %w", err)
	}
	events := s.events
	return s.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPeerUpdate: func(ev *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
			if ev.Type != apiutil.PEER_EVENT_STATE && ev.Type != apiutil.PEER_EVENT_INIT {
				return
			}
			e := Session{State: stateText(ev.Peer.State.SessionState), Since: at,
				Reason: ev.Peer.State.DisconnectMessage}
			e.Peer.Address = ev.Peer.State.NeighborAddress
			select {
			case events <- e:
			default: // the state is asked for, too; only the reason is lost
			}
			s.changed()
		},
	}, server.WatchPeer())
}

func stateText(state bgp.FSMState) string {
	switch state {
	case bgp.BGP_FSM_ESTABLISHED:
		return "established"
	case bgp.BGP_FSM_OPENCONFIRM:
		return "open-confirm"
	case bgp.BGP_FSM_OPENSENT:
		return "open-sent"
	case bgp.BGP_FSM_ACTIVE:
		return "active"
	case bgp.BGP_FSM_CONNECT:
		return "connect"
	}
	return "idle"
}

// close ends all sessions in order: the routers are told, and drop what they have from us.
func (s *speaker) close() {
	if s.server == nil {
		return
	}
	s.stop()
	ended := make(chan struct{})
	go func() {
		s.server.Stop()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopWait):
		s.log.Warn("the BGP speaker does not end; it is left behind")
	}
	s.server, s.peers, s.routes, s.sessions = nil, nil, nil, nil
	s.established.Store(0)
}

// reset ends a session that BFD has for dead.
func (s *speaker) reset(addr netip.Addr) {
	if _, ok := s.peers[addr]; ok && s.server != nil {
		err := s.server.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: addr.String(),
			Communication: "BFD session down"})
		if err != nil {
			s.log.Warn("reset a BGP session", "peer", addr, "error", err)
		}
	}
}

func (s *speaker) apiPeer(b *model.BGPPeer) *api.Peer {
	family := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	if b.Address.Is6() {
		family.Afi = api.Family_AFI_IP6
	}
	af := &api.AfiSafi{
		Config:       &api.AfiSafiConfig{Family: family, Enabled: true},
		PrefixLimits: &api.PrefixLimit{Family: family, MaxPrefixes: uint32(b.MaxPrefixes)},
	}
	p := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: b.Address.String(), PeerAsn: b.ASN, AuthPassword: b.Password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: seconds(b.HoldTime), KeepaliveInterval: max(1, seconds(b.HoldTime)/3),
			ConnectRetry: seconds(b.ConnectRetry), IdleHoldTimeAfterReset: seconds(b.ConnectRetry),
		}},
		Transport: &api.Transport{PassiveMode: b.Passive, RemotePort: uint32(b.Port)},
		AfiSafis:  []*api.AfiSafi{af},
	}
	if b.LocalAddress.IsValid() {
		p.Transport.LocalAddress = b.LocalAddress.String()
	}
	if b.TTLSecurity {
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255}
	}
	if b.MultihopTTL > 0 {
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(b.MultihopTTL)}
	}
	if b.RestartTime > 0 {
		p.GracefulRestart = &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(seconds(b.RestartTime)), DeferralTime: uint32(seconds(deferral)),
			LocalRestarting: s.restart,
		}
		af.MpGracefulRestart = &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}}
	}
	return p
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }

// setRoutes announces and withdraws until the routes are those of the plan.
func (s *speaker) setRoutes(p *Plan) error {
	var errs []error
	want := map[netip.Prefix]Phase{}
	for _, e := range p.Entries {
		if e.Phase != Withdrawn {
			want[e.Prefix] = e.Phase
		}
	}
	for prefix := range s.routes {
		if _, ok := want[prefix]; ok {
			continue
		}
		path, err := path(prefix, Announced, p)
		if err == nil {
			err = s.server.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{path}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("withdraw %v: %w", prefix, err))
			continue
		}
		delete(s.routes, prefix)
	}
	for prefix, phase := range want {
		key := fmt.Sprint(phase, p.BGP.Communities)
		if s.routes[prefix] == key {
			continue
		}
		path, err := path(prefix, phase, p)
		if err == nil {
			_, err = s.server.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{path}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", prefix, err))
			continue
		}
		s.routes[prefix] = key
	}
	return errors.Join(errs...)
}

// path builds a route. The next hop is left open: each session fills in its own address.
func path(prefix netip.Prefix, phase Phase, p *Plan) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(prefix)
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0)}
	family := bgp.RF_IPv4_UC
	if prefix.Addr().Is4() {
		hop, err := bgp.NewPathAttributeNextHop(netip.IPv4Unspecified())
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, hop)
	} else {
		family = bgp.RF_IPv6_UC
		reach, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, reach)
	}
	all := slices.Clone(p.BGP.Communities)
	if phase == Draining {
		all = append(all, model.GracefulShutdown)
	}
	var plain []uint32
	var large []*bgp.LargeCommunity
	for _, c := range all {
		parts, err := c.Parts()
		switch {
		case err != nil:
			return nil, err
		case len(parts) == 3:
			large = append(large, bgp.NewLargeCommunity(parts[0], parts[1], parts[2]))
		default:
			plain = append(plain, parts[0])
		}
	}
	if len(plain) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(plain))
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs}, nil
}

// quiet passes only what gobgp warns of: it tells each step of each session at the level of news.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}
func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(name string) slog.Handler   { return quiet{q.Handler.WithGroup(name)} }
