package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/nearcast/nearcast/bpf/xdp"
	"github.com/nearcast/nearcast/cmd/size"
	"github.com/nearcast/nearcast/edge"
	"github.com/nearcast/nearcast/edge/kernel"
)

// options are the flags as they were given.
type options struct {
	file              string
	dataDir           string
	controllers       []string
	joinToken         string
	joinTokenFile     string
	name, site        string
	roles             []string
	backboneListen    string
	backboneAdvertise []string
	gossipListen      string
	gossipAdvertise   string
	serviceAddresses  []string
	manageAddresses   bool
	kernelModes       map[kernel.Name]*string
	kernelPins        string
	clientCongestion  string
	dnsListen         []string
	dnsTLSListen      []string
	dnsTLSCert        string
	dnsTLSKey         string
	dnsRate           float64
	geoDatabases      []string
	guardInterfaces   []string
	balanceInterfaces []string
	balanceAddress    string
	balanceWeight     int
	balanceFlows      int
	xdpMode           string
	clientMSS         int
	acceptSockets     int
	metricsListen     string
	flowLogs          string
	flowLogsFormat    string
	flowLogsAccount   string
	flowLogsSpool     string
	flowLogsInterval  time.Duration
	maxFlows          int
	memoryMax         string
	drainTimeout      time.Duration
	logLevel          string
	logFormat         string
}

func (o *options) register(f *pflag.FlagSet) {
	f.StringVar(&o.file, "config", "", "YAML `file` with any of these flags, without the dashes")
	f.StringVar(&o.dataDir, "data-dir", "/var/lib/nearcast-edge", "`directory` for the identity and the last snapshots")
	f.StringSliceVar(&o.controllers, "controllers", nil, "controllers to ask, each `host:port`")
	f.StringVar(&o.joinToken, "join-token", "", "`token` to enrol with at the first start")
	f.StringVar(&o.joinTokenFile, "join-token-file", "", "`file` that holds the join token")
	f.StringVar(&o.name, "name", hostname(), "this node's `name`, which no other node has")
	f.StringVar(&o.site, "site", "", "the `site` that this node stands in")
	f.StringSliceVar(&o.roles, "roles", []string{"edge", "gateway"}, "what this node does: `edge`, gateway, or both")
	f.StringVar(&o.backboneListen, "backbone-listen", ":7444", "`address:port` for tunnels, TCP and UDP")
	f.StringSliceVar(&o.backboneAdvertise, "backbone-advertise", nil,
		"where other nodes reach --backbone-listen, each `address:port` (default: as this machine reaches the controllers)")
	f.StringVar(&o.gossipListen, "gossip-listen", ":7445", "`address:port` for gossip, TCP and UDP")
	f.StringVar(&o.gossipAdvertise, "gossip-advertise", "",
		"where other nodes reach --gossip-listen, `address:port` (default: as --backbone-advertise)")
	f.StringSliceVar(&o.serviceAddresses, "service-addresses", nil,
		"this node's own client-facing `addresses`, for accelerators on node pools")
	f.BoolVar(&o.manageAddresses, "manage-addresses", true,
		"make accelerated addresses local to this machine (needs CAP_NET_ADMIN)")
	o.kernelModes = map[kernel.Name]*string{}
	for _, name := range kernel.Names {
		o.kernelModes[name] = f.String("kernel-"+string(name), string(kernel.Auto),
			"kernel program "+string(name)+": `auto` (if it can be had), on or off; see docs/KERNEL.md")
	}
	f.StringVar(&o.clientCongestion, "client-congestion", "",
		"congestion control towards clients, a `name` that the kernel has; kernel program tune sets it (default bbr if there)")
	f.StringVar(&o.kernelPins, "kernel-pins", "auto",
		"`directory` on a BPF file system for what outlives the process, or none (default one below /sys/fs/bpf)")
	f.StringSliceVar(&o.dnsListen, "dns-listen", nil,
		"where to answer DNS queries by UDP and TCP, each `address:port`, like :53 (default: nowhere)")
	f.StringSliceVar(&o.dnsTLSListen, "dns-tls-listen", nil, "the same over TLS, like :853")
	f.StringVar(&o.dnsTLSCert, "dns-tls-cert", "", "`file` with the certificate for --dns-tls-listen, PEM")
	f.StringVar(&o.dnsTLSKey, "dns-tls-key", "", "`file` with its key, PEM")
	f.Float64Var(&o.dnsRate, "dns-rate-limit", 0,
		"most like `answers` a second to a network by UDP without a cookie; -1: no limit (default 200)")
	f.StringSliceVar(&o.geoDatabases, "geo-database", nil,
		"MaxMind database `files` that say where clients are; earlier ones are asked first")
	f.StringSliceVar(&o.guardInterfaces, "guard-interfaces", nil,
		"`interfaces` on which clients' packets arrive, like eth0: the kernel program guard is attached there")
	f.StringSliceVar(&o.balanceInterfaces, "balance-interfaces", nil,
		"`interfaces` on which packets of clients and of the site's other nodes arrive: the kernel program balance is "+
			"attached there")
	f.StringVar(&o.balanceAddress, "balance-address", "",
		"where the site's other nodes send on packets of this node's flows, `address:port` (default: the gossip address, "+
			"port 6080)")
	f.IntVar(&o.balanceWeight, "balance-weight", 0, "this node's share of its site's flows, a `number` (default 100)")
	f.IntVar(&o.balanceFlows, "balance-flows", 0,
		"how many `flows` balance remembers, 120 bytes each (default 262144)")
	f.StringVar(&o.xdpMode, "xdp-mode", "auto",
		"where the kernel runs guard and balance: `auto` (native, if the driver can), native or generic")
	f.IntVar(&o.clientMSS, "client-mss", 0,
		"most `bytes` of a TCP segment that clients send; lower it where nodes of a site can't pass larger packets on")
	f.IntVar(&o.acceptSockets, "accept-sockets", 0,
		"`number` of sockets that accept connections with kernel program dispatch, for each IP version (default one for "+
			"8 CPUs)")
	f.StringVar(&o.metricsListen, "metrics-listen", "127.0.0.1:9465",
		"`address:port` of /metrics, /healthz, /readyz, /status and /drops; empty: none")
	f.StringVar(&o.flowLogs, "flow-logs", "",
		"where flow logs go: a `directory`, or the https:// endpoint of an S3-compatible store; see docs/FLOWLOGS.md")
	f.StringVar(&o.flowLogsFormat, "flow-logs-format", "aws", "`format` of flow logs: aws or json")
	f.StringVar(&o.flowLogsAccount, "flow-logs-account", "000000000000",
		"account `id` in flow logs of accelerators whose project is none")
	f.StringVar(&o.flowLogsSpool, "flow-logs-spool", "1GiB", "most disk for flow logs not delivered yet, a `size`")
	f.DurationVar(&o.flowLogsInterval, "flow-logs-interval", 5*time.Minute, "how much time one file of flow logs covers")
	f.IntVar(&o.maxFlows, "max-flows", 0, "most concurrent client `flows`, TCP and UDP each (default 262144)")
	f.StringVar(&o.memoryMax, "memory-max", "", "most memory to use, a `size` like 512MB or 4GiB (default no limit)")
	f.DurationVar(&o.drainTimeout, "drain-timeout", edge.DrainTimeoutDefault, "how long flows may take to end at SIGTERM")
	f.StringVar(&o.logLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "`format` of the log: text or json")
}

// hostname returns the machine's name, a fair default for a node's.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// readFile sets every flag that the file has and the command line has not. The file is read strictly:
// a name that is not a flag's is an error, since a setting that silently does nothing is a trap.
func (o *options) readFile(flags *pflag.FlagSet) error {
	if o.file == "" {
		return nil
	}
	data, err := os.ReadFile(o.file)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	return setFlags(flags, o.file, data)
}

func setFlags(flags *pflag.FlagSet, path string, data []byte) error {
	var settings map[string]any
	if err := yaml.UnmarshalStrict(data, &settings); err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	var errs []error
	names := make([]string, 0, len(settings))
	for name := range settings {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		flag := flags.Lookup(name)
		if flag == nil || name == "config" || name == "help" || name == "version" {
			errs = append(errs, fmt.Errorf("--config %s: %q is not a setting (see --help for all)", path, name))
			continue
		}
		if flag.Changed {
			continue
		}
		value, err := flagValue(settings[name])
		if err == nil {
			err = flags.Set(name, value)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--config %s: %s: %w", path, name, err))
		}
	}
	return errors.Join(errs...)
}

// flagValue writes a YAML value as it would stand on the command line.
func flagValue(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case float64: // every number, after the way through JSON
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case nil:
		return "", nil
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			s, ok := e.(string)
			if !ok {
				return "", fmt.Errorf("element %d must be text", i+1)
			}
			parts[i] = s
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("must be a value or a list of values")
}

// config turns the flags into a node's configuration. Errors name the flag and how to mend it.
func (o *options) config() (edge.Config, error) {
	cfg := edge.Config{
		DataDir: o.dataDir, Controllers: o.controllers, JoinToken: o.joinToken, Name: o.name, Site: o.site,
		ManageAddresses: o.manageAddresses, MetricsListen: o.metricsListen, MaxFlows: o.maxFlows,
		DrainTimeout: o.drainTimeout, ClientCongestion: o.clientCongestion,
	}
	var errs []error
	flag := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", name, err))
		}
	}
	var err error
	if o.joinTokenFile != "" {
		cfg.JoinToken, err = o.readToken()
		flag("join-token-file", err)
	}
	cfg.Edge, cfg.Gateway, err = parseRoles(o.roles)
	flag("roles", err)
	cfg.BackboneListen, err = parseListen(o.backboneListen)
	flag("backbone-listen", err)
	cfg.GossipListen, err = parseListen(o.gossipListen)
	flag("gossip-listen", err)
	for _, s := range o.backboneAdvertise {
		addr, err := parseAdvertised(s)
		flag("backbone-advertise", err)
		cfg.BackboneAdvertise = append(cfg.BackboneAdvertise, addr)
	}
	if o.gossipAdvertise != "" {
		cfg.GossipAdvertise, err = parseAdvertised(o.gossipAdvertise)
		flag("gossip-advertise", err)
	} else if len(cfg.BackboneAdvertise) > 0 && cfg.GossipListen.IsValid() {
		cfg.GossipAdvertise = netip.AddrPortFrom(cfg.BackboneAdvertise[0].Addr(), cfg.GossipListen.Port())
	}
	for _, s := range o.serviceAddresses {
		addr, err := netip.ParseAddr(s)
		flag("service-addresses", err)
		cfg.ServiceAddresses = append(cfg.ServiceAddresses, addr.Unmap())
	}
	o.balance(&cfg, flag)
	cfg.KernelModes = map[kernel.Name]kernel.Mode{}
	for name, s := range o.kernelModes {
		cfg.KernelModes[name], err = kernel.ParseMode(*s)
		flag("kernel-"+string(name), err)
	}
	switch o.kernelPins {
	case "none":
	case "auto":
		// Where there is no file system for pins the node does without, and says so.
		cfg.KernelPins, _ = kernel.DefaultPins(o.dataDir)
	default:
		cfg.KernelPins = o.kernelPins
	}
	o.names(&cfg, flag)
	cfg.FlowLogs, err = o.flowLogsConfig(os.Getenv)
	flag("flow-logs", err)
	cfg.FlowLogs.SpoolMax, err = size.Parse(o.flowLogsSpool)
	flag("flow-logs-spool", err)
	cfg.MemoryMax, err = size.Parse(o.memoryMax)
	flag("memory-max", err)
	if len(errs) > 0 {
		return cfg, errors.Join(errs...)
	}
	return cfg, cfg.Validate()
}

// balance fills in what is said about packets before the network stack has them.
func (o *options) balance(cfg *edge.Config, flag func(string, error)) {
	cfg.GuardInterfaces, cfg.BalanceInterfaces = o.guardInterfaces, o.balanceInterfaces
	cfg.BalanceWeight, cfg.BalanceFlows = o.balanceWeight, o.balanceFlows
	cfg.ClientMSS, cfg.AcceptSockets = o.clientMSS, o.acceptSockets
	var err error
	if o.balanceAddress != "" {
		cfg.BalanceAddress, err = parseAdvertised(o.balanceAddress)
		flag("balance-address", err)
	}
	cfg.XDPMode, err = xdp.ParseMode(o.xdpMode)
	flag("xdp-mode", err)
}

// names fills in what is said about DNS.
func (o *options) names(cfg *edge.Config, flag func(string, error)) {
	for _, s := range o.dnsListen {
		at, err := parseListen(s)
		flag("dns-listen", err)
		cfg.DNSListen = append(cfg.DNSListen, at)
	}
	for _, s := range o.dnsTLSListen {
		at, err := parseListen(s)
		flag("dns-tls-listen", err)
		cfg.DNSTLSListen = append(cfg.DNSTLSListen, at)
	}
	if o.dnsTLSCert != "" || o.dnsTLSKey != "" {
		pair, err := tls.LoadX509KeyPair(o.dnsTLSCert, o.dnsTLSKey)
		flag("dns-tls-cert", err)
		cfg.DNSTLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
			NextProtos: []string{"dot"}}
	}
	cfg.DNSRate, cfg.GeoDatabases = o.dnsRate, o.geoDatabases
}

// readToken reads the join token's file. Once the node has enrolled the file may be gone.
func (o *options) readToken() (string, error) {
	if o.joinToken != "" {
		return "", errors.New("give either this or --join-token")
	}
	data, err := os.ReadFile(o.joinTokenFile)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(bytes.TrimSpace(data)), err
}

func parseRoles(roles []string) (takes, hands bool, err error) {
	for _, r := range roles {
		switch r {
		case "edge":
			takes = true
		case "gateway":
			hands = true
		default:
			return false, false, fmt.Errorf("%q is not a role; roles are edge and gateway", r)
		}
	}
	return takes, hands, nil
}

// parseListen reads "address:port" and ":port"; without an address it is every one of both families.
func parseListen(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not address:port, like :7444 or 192.0.2.10:7444", s)
	}
	if host == "" {
		host = "::"
	}
	addr, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not address:port, like :7444 or 192.0.2.10:7444", s)
	}
	return addr, nil
}

// parseAdvertised reads "address:port". Names are not followed: they would have to be looked up while
// everything else may be down.
func parseAdvertised(s string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddrPort(s)
	if err != nil || addr.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not address:port, like 192.0.2.10:7444", s)
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), nil
}

// logger returns the log that the flags ask for.
func (o *options) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is not debug, info, warn or error", o.logLevel)
	}
	opt := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, opt)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opt)), nil
	}
	return nil, fmt.Errorf("--log-format: %q is not text or json", o.logFormat)
}
