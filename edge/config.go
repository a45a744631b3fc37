package edge

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/bpf/xdp"
	"github.com/nearcast/nearcast/edge/flowlog"
	"github.com/nearcast/nearcast/edge/handover"
	"github.com/nearcast/nearcast/edge/kernel"
	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
)

// Config configures a Node. Fields that have no default say so; the words in brackets are the flags
// of nearcast-edge.
type Config struct {
	Log      *slog.Logger         // nil: discard
	Registry *prometheus.Registry // nil: one of its own

	DataDir     string   // [data-dir] no default
	Controllers []string // [controllers] "host:port" each, no default
	JoinToken   string   // [join-token] needed until the node has enrolled
	Name        string   // [name] unique in the cluster, no default
	Site        string   // [site] no default
	Edge        bool     // [roles] takes client traffic
	Gateway     bool     // [roles] hands traffic to endpoints

	// BackboneListen is where a gateway accepts tunnels: TCP, and UDP on the same port. Port 0 takes a
	// free one. [backbone-listen]
	BackboneListen netip.AddrPort
	// BackboneAdvertise is where other nodes reach it. Empty: BackboneListen if that is one address,
	// else the address that this machine uses towards the controllers. [backbone-advertise]
	BackboneAdvertise []netip.AddrPort
	GossipListen      netip.AddrPort // [gossip-listen] TCP and UDP; port 0 takes a free one
	GossipAdvertise   netip.AddrPort // [gossip-advertise] as BackboneAdvertise

	ServiceAddresses []netip.Addr // [service-addresses] this node's own addresses, for node pools
	// ManageAddresses makes the accelerated addresses local to this machine; it needs CAP_NET_ADMIN.
	// Otherwise the operator does. [manage-addresses]
	ManageAddresses bool

	// KernelModes says which of the optional kernel programs are wanted; missing ones are, if they can be
	// had. [kernel-dispatch and the like]
	KernelModes map[kernel.Name]kernel.Mode
	// KernelPins is where on a BPF file system what outlives this process is pinned; "": nothing does.
	// [kernel-pins]
	KernelPins string
	// DNSListen is where the node answers DNS queries, by UDP and TCP. Empty: it does not. [dns-listen]
	DNSListen []netip.AddrPort
	// DNSTLSListen is the same over TLS, with the certificate of DNSTLS. [dns-tls-listen]
	DNSTLSListen []netip.AddrPort
	DNSTLS       *tls.Config // [dns-tls-cert, dns-tls-key]
	// DNSRate is how many like answers a second a client network gets by UDP; 0: the default, negative:
	// no limit. [dns-rate-limit]
	DNSRate float64
	// GeoDatabases are MaxMind databases that say where networks are. They are read again when they
	// change on disk. [geo-database]
	GeoDatabases []string

	// ClientCongestion is the congestion control towards clients, set by the kernel program tune; "": bbr where
	// there is one. [client-congestion]
	ClientCongestion string
	GuardInterfaces  []string // [guard-interfaces] where clients' packets arrive; empty: no guard
	// BalanceInterfaces are those on which clients' packets, and packets of the site's other nodes, arrive; empty:
	// flows are not balanced. [balance-interfaces]
	BalanceInterfaces []string
	// BalanceAddress is where the site's other nodes send on packets. Zero with interfaces: the gossip address, with
	// DefaultBalancePort. [balance-address]
	BalanceAddress netip.AddrPort
	BalanceWeight  int      // [balance-weight] its share of the site's flows; 0: 100
	BalanceFlows   int      // [balance-flows] how many flows it remembers, 120 bytes each; 0: 262,144
	XDPMode        xdp.Mode // [xdp-mode] of guard and balance
	// ClientMSS bounds the TCP segments that clients are told to send, in bytes; 0: by the interface. [client-mss]
	ClientMSS int
	// AcceptSockets is how many sockets of each IP version accept clients' connections with kernel program dispatch,
	// at most 64; 0: one for eight CPUs. [accept-sockets]
	AcceptSockets int

	MetricsListen string // [metrics-listen] "host:port" of /metrics, /healthz, /readyz, /status; "": none

	// FlowLogs says where records of flows go; its Dir, Socket and Node are set by the node.
	// [flow-logs, flow-logs-format, flow-logs-account, flow-logs-spool]
	FlowLogs flowlog.Config

	MaxFlows     int           // [max-flows] of each protocol; 0: 262,144
	MemoryMax    int64         // [memory-max] bytes for the whole process; 0: no limit is set
	DrainTimeout time.Duration // [drain-timeout] 0: 15 s

	// Program and Arguments start this node's next process at an upgrade. Previous is the process that this
	// one takes over from; nil: none.
	Program   string
	Arguments []string
	Previous  *handover.Previous

	Version string // build version, for people
	// Crashed says that the process before this one ended by a panic or fatal error.
	Crashed bool
}

// Validate reports what is wrong with the configuration, naming the flag.
func (c *Config) Validate() error {
	var errs []error
	wrong := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if c.DataDir == "" {
		wrong("data-dir", "is needed: a directory for the identity and the last snapshots")
	}
	if len(c.Controllers) == 0 {
		wrong("controllers", "is needed: at least one host:port")
	}
	for _, a := range c.Controllers {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			wrong("controllers", "%q is not host:port", a)
		}
	}
	if c.JoinToken != "" {
		if _, err := identity.ParseToken(c.JoinToken); err != nil {
			wrong("join-token", "%v", err)
		}
	}
	c.validateNode(wrong)
	if !c.BackboneListen.IsValid() {
		wrong("backbone-listen", "is needed: address:port, like :7444")
	}
	if !c.GossipListen.IsValid() {
		wrong("gossip-listen", "is needed: address:port, like :7445")
	}
	if slices.ContainsFunc(c.BackboneAdvertise, func(a netip.AddrPort) bool { return a.Addr().IsUnspecified() }) {
		wrong("backbone-advertise", "others cannot reach an unspecified address")
	}
	if c.GossipAdvertise.IsValid() && c.GossipAdvertise.Addr().IsUnspecified() {
		wrong("gossip-advertise", "others cannot reach an unspecified address")
	}
	if c.MaxFlows < 0 {
		wrong("max-flows", "must not be negative")
	}
	if c.MemoryMax != 0 && c.MemoryMax < memoryMin {
		wrong("memory-max", "must be at least %d MB", memoryMin>>20)
	}
	if len(c.DNSTLSListen) > 0 && c.DNSTLS == nil {
		wrong("dns-tls-listen", "needs --dns-tls-cert and --dns-tls-key")
	}
	if len(c.GeoDatabases) > 0 && len(c.DNSListen) == 0 {
		wrong("geo-database", "is used by DNS answers only; give --dns-listen, too")
	}
	c.validateBalance(wrong)
	if c.AcceptSockets < 0 || c.AcceptSockets > listen.AcceptSocketsMax {
		wrong("accept-sockets", "must be 0 (one for eight CPUs) to %d", listen.AcceptSocketsMax)
	}
	if c.DrainTimeout < 0 {
		wrong("drain-timeout", "must not be negative")
	}
	return errors.Join(errs...)
}

func (c *Config) validateBalance(wrong func(flag, format string, args ...any)) {
	if c.BalanceAddress.IsValid() && c.BalanceAddress.Addr().IsUnspecified() {
		wrong("balance-address", "others cannot reach an unspecified address")
	}
	if c.BalanceAddress.IsValid() && len(c.BalanceInterfaces) == 0 {
		wrong("balance-address", "is used only with --balance-interfaces; give that, too")
	}
	if c.BalanceFlows != 0 && (c.BalanceFlows < balanceFlowsMin || c.BalanceFlows > balanceFlowsMax) {
		wrong("balance-flows", "must be %d to %d", balanceFlowsMin, balanceFlowsMax)
	}
	if c.BalanceWeight < 0 || c.BalanceWeight > model.BalanceWeightMax {
		wrong("balance-weight", "must be 1 to %d", model.BalanceWeightMax)
	}
	guarded := 0
	for _, name := range c.BalanceInterfaces {
		if slices.Contains(c.GuardInterfaces, name) {
			guarded++
		}
	}
	if guarded != 0 && guarded != len(c.BalanceInterfaces) {
		wrong("guard-interfaces", "must name all of --balance-interfaces or none: the guard looks at what balance lets in")
	}
	if c.ClientMSS != 0 && (c.ClientMSS < clientMSSMin || c.ClientMSS > 65_495) {
		wrong("client-mss", "must be %d to 65495 bytes", clientMSSMin)
	}
}

func (c *Config) validateNode(wrong func(flag, format string, args ...any)) {
	if !c.Edge && !c.Gateway {
		wrong("roles", "is needed: edge, gateway, or edge,gateway")
	}
	if c.Name == "" {
		wrong("name", "is needed: a name that no other node has")
	}
	if c.Site == "" {
		wrong("site", "is needed: one of `nearcast site list`")
	}
	for _, a := range c.ServiceAddresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			wrong("service-addresses", "%v is not an address that clients can reach", a)
		}
	}
}

// node returns what this node says of itself. backbone and gossip are the addresses to advertise.
func (c *Config) node(backbone []netip.AddrPort, gossip netip.AddrPort) model.Node {
	var balance netip.AddrPort
	if len(c.BalanceInterfaces) > 0 {
		if balance = c.BalanceAddress; !balance.IsValid() {
			balance = netip.AddrPortFrom(gossip.Addr(), DefaultBalancePort)
		}
	}
	return model.Node{
		BalanceAddress: balance, BalanceWeight: c.BalanceWeight,
		Name: c.Name, Site: model.SiteName(c.Site), Edge: c.Edge, Gateway: c.Gateway,
		BackboneAddresses: backbone, GossipAddress: gossip, ServiceAddresses: c.ServiceAddresses,
	}
}

// advertised returns where others reach a socket: what the operator said, else where it listens if
// that is one address, else this machine's own address.
func (c *Config) advertised(said []netip.AddrPort, listen netip.AddrPort) ([]netip.AddrPort, error) {
	if len(said) > 0 {
		return said, nil
	}
	if !listen.Addr().IsUnspecified() {
		return []netip.AddrPort{listen}, nil
	}
	addr, err := ownAddress(c.Controllers)
	return []netip.AddrPort{netip.AddrPortFrom(addr, listen.Port())}, err
}

// ownAddress returns the address that this machine uses towards the controllers, or else towards the
// rest of the world. It asks the kernel's routing table only: names are not looked up, because a node
// must start while everything else is down.
func ownAddress(controllers []string) (netip.Addr, error) {
	elsewhere := []string{"192.0.2.1:9", "[2001:db8::1]:9"} // documentation addresses: the default route
	for _, to := range append(slices.Clone(controllers), elsewhere...) {
		if _, err := netip.ParseAddrPort(to); err != nil {
			continue
		}
		conn, err := net.Dial("udp", to) // connecting a UDP socket sends nothing
		if err != nil {
			continue
		}
		addr := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
		conn.Close()
		if !addr.IsUnspecified() {
			return addr, nil
		}
	}
	return netip.Addr{}, errors.New("this machine has no route that tells its address:" +
		" give --backbone-advertise and --gossip-advertise")
}
