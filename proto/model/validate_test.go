package model

import (
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rule is one case of a table: what is done to a good object, and which field must be named for it
// (none: it must be accepted).
type rule[T any] struct {
	name  string
	spoil func(*T)
	field string
}

func judge[T interface{ Validate() error }](t *testing.T, good func() T, rules []rule[T]) {
	t.Helper()
	if err := good().Validate(); err != nil {
		t.Fatalf("the good one is refused: %v", err)
	}
	if len(rules) == 0 {
		t.Fatal("no rules")
	}
	for _, r := range rules {
		v := good()
		r.spoil(&v)
		err := v.Validate()
		fields := fieldsOf(t, err)
		switch {
		case r.field == "" && err != nil:
			t.Errorf("%s: %v", r.name, err)
		case r.field != "" && !slices.Contains(fields, r.field):
			t.Errorf("%s: want %s, got %v", r.name, r.field, err)
		}
		if err != nil && len(err.Error()) > 10000 {
			t.Errorf("%s: a message of %d bytes", r.name, len(err.Error()))
		}
	}
}

func manyTags(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m["k"+strconv.Itoa(i)] = "v"
	}
	return m
}

func TestValidateAccelerator(t *testing.T) {
	judge(t, func() Accelerator { return goodSnapshot().Accelerators[0] }, []rule[Accelerator]{
		{"new", func(a *Accelerator) { a.ID, a.Addresses, a.Pools, a.DNSName = "", nil, nil, "" }, ""},
		{"every character", func(a *Accelerator) { a.Name = "aZ09_.-x" }, ""},
		{"longest name", func(a *Accelerator) { a.Name = strings.Repeat("x", 64) }, ""},
		{"no name", func(a *Accelerator) { a.Name = "" }, "accelerator.name"},
		{"long name", func(a *Accelerator) { a.Name = strings.Repeat("x", 65) }, "accelerator.name"},
		{"leading dot", func(a *Accelerator) { a.Name = ".x" }, "accelerator.name"},
		{"trailing dash", func(a *Accelerator) { a.Name = "x-" }, "accelerator.name"},
		{"space", func(a *Accelerator) { a.Name = "a b" }, "accelerator.name"},
		{"not ASCII", func(a *Accelerator) { a.Name = "é" }, "accelerator.name"},
		{"not UTF-8", func(a *Accelerator) { a.Name = "a\xff" }, "accelerator.name"},
		{"project", func(a *Accelerator) { a.Project = "a/b" }, "accelerator.project"},
		{"id", func(a *Accelerator) { a.ID = "../etc" }, "accelerator.id"},
		{"type", func(a *Accelerator) { a.IPAddressType = 2 }, "accelerator.ip_address_type"},
		{"status", func(a *Accelerator) { a.Status = 2 }, "accelerator.status"},
		{"three pools", func(a *Accelerator) { a.Pools = []PoolName{"a", "b", "c"} },
			"accelerator.pools"},
		{"a pool twice", func(a *Accelerator) { a.Pools = []PoolName{"a", "a"} }, "accelerator.pools[1]"},
		{"a pool's name", func(a *Accelerator) { a.Pools = []PoolName{""} }, "accelerator.pools[0]"},
		{"five addresses", func(a *Accelerator) { a.Addresses = make([]netip.Addr, 5) },
			"accelerator.addresses"},
		{"zero address", func(a *Accelerator) { a.Addresses = make([]netip.Addr, 1) },
			"accelerator.addresses[0]"},
		{"multicast", func(a *Accelerator) { a.Addresses = addrs("224.0.0.1") },
			"accelerator.addresses[0]"},
		{"broadcast", func(a *Accelerator) { a.Addresses = addrs("255.255.255.255") },
			"accelerator.addresses[0]"},
		{"unspecified", func(a *Accelerator) { a.Addresses = addrs("::") }, "accelerator.addresses[0]"},
		{"zone", func(a *Accelerator) { a.Addresses = addrs("fe80::1%eth0") },
			"accelerator.addresses[0]"},
		{"mapped", func(a *Accelerator) { a.Addresses = addrs("::ffff:192.0.2.1") },
			"accelerator.addresses[0]"},
		{"twice", func(a *Accelerator) { a.Addresses = addrs("192.0.2.1", "192.0.2.1") },
			"accelerator.addresses[1]"},
		{"DNS name", func(a *Accelerator) { a.DNSName = "a b" }, "accelerator.dns_name"},
		{"tags", func(a *Accelerator) { a.Tags = manyTags(TagsMax) }, ""},
		{"tags in any language", func(a *Accelerator) { a.Tags = map[string]string{"ключ": strings.Repeat("я", 256)} },
			""},
		{"too many tags", func(a *Accelerator) { a.Tags = manyTags(TagsMax + 1) }, "accelerator.tags"},
		{"empty tag key", func(a *Accelerator) { a.Tags = map[string]string{"": "x"} },
			"accelerator.tags"},
		{"long tag value", func(a *Accelerator) { a.Tags = map[string]string{"k": strings.Repeat("x", 257)} },
			`accelerator.tags["k"]`},
		{"control character", func(a *Accelerator) { a.Tags = map[string]string{"k": "a\x1b[0m"} }, `accelerator.tags["k"]`},
		{"tag not UTF-8", func(a *Accelerator) { a.Tags = map[string]string{"k": "\xff"} }, `accelerator.tags["k"]`},
	})
}

func TestValidateListener(t *testing.T) {
	judge(t, func() Listener { return listener("4fd0ab12", "a", TCP, PortRange{443, 443}) }, []rule[Listener]{
		{"new", func(l *Listener) { l.ID = "" }, ""},
		{"no accelerator", func(l *Listener) { l.Accelerator = "" }, "listener.accelerator_id"},
		{"no protocol", func(l *Listener) { l.Protocol = 0 }, "listener.protocol"},
		{"unknown protocol", func(l *Listener) { l.Protocol = 4 }, "listener.protocol"},
		{"unknown affinity", func(l *Listener) { l.Affinity = 2 }, "listener.affinity"},
		{"all ports", func(l *Listener) { l.PortRanges = []PortRange{{1, 65535}} }, ""},
		{"neighbours", func(l *Listener) { l.PortRanges = []PortRange{{1, 9}, {10, 20}} }, ""},
		{"no ports", func(l *Listener) { l.PortRanges = nil }, "listener.port_ranges"},
		{"too many ranges", func(l *Listener) { l.PortRanges = make([]PortRange, 101) },
			"listener.port_ranges"},
		{"port 0", func(l *Listener) { l.PortRanges = []PortRange{{0, 1}} },
			"listener.port_ranges[0].from"},
		{"to 0", func(l *Listener) { l.PortRanges = []PortRange{{5, 0}} }, "listener.port_ranges[0].to"},
		{"backwards", func(l *Listener) { l.PortRanges = []PortRange{{1, 1}, {9, 5}} },
			"listener.port_ranges[1].to"},
		{"overlap", func(l *Listener) { l.PortRanges = []PortRange{{1, 9}, {20, 30}, {9, 12}} },
			"listener.port_ranges[2]"},
		{"TCP idle at least", func(l *Listener) { l.TCPIdleTimeout = time.Second }, ""},
		{"TCP idle at most", func(l *Listener) { l.TCPIdleTimeout = 24 * time.Hour }, ""},
		{"TCP idle short", func(l *Listener) { l.TCPIdleTimeout = time.Second - 1 },
			"listener.tcp_idle_timeout"},
		{"TCP idle negative", func(l *Listener) { l.TCPIdleTimeout = -time.Second },
			"listener.tcp_idle_timeout"},
		{"TCP idle long", func(l *Listener) { l.TCPIdleTimeout = 24*time.Hour + 1 },
			"listener.tcp_idle_timeout"},
		{"UDP idle long", func(l *Listener) { l.UDPIdleTimeout = time.Hour + 1 },
			"listener.udp_idle_timeout"},
		{"PROXY networks", func(l *Listener) { l.ProxyProtocolFrom = prefixes("10.0.0.0/8", "::/0") },
			""},
		{"zero network", func(l *Listener) { l.ProxyProtocolFrom = make([]netip.Prefix, 1) },
			"listener.proxy_protocol_from[0]"},
		{"PROXY on UDP", func(l *Listener) { l.Protocol, l.ProxyProtocolFrom = UDP, prefixes("::/0") },
			"listener.proxy_protocol_from"},
		{"flows", func(l *Listener) { l.MaxFlows, l.MaxFlowsPerSource = 10, 10 }, ""},
		{"flows of a source alone", func(l *Listener) { l.MaxFlowsPerSource = 10 }, ""},
		{"more a source than in all", func(l *Listener) { l.MaxFlows, l.MaxFlowsPerSource = 10, 11 },
			"listener.max_flows_per_source"},
		{"tags", func(l *Listener) { l.Tags = map[string]string{"": ""} }, "listener.tags"},
	})
}

func TestValidateHealthCheck(t *testing.T) {
	judge(t, func() HealthCheck { return group("g", "l", "r").HealthCheck }, []rule[HealthCheck]{
		{"HTTP", func(h *HealthCheck) { h.Protocol, h.Path = HealthHTTP, `/-az09@:%_\+.~#?&/=` }, ""},
		{"unknown", func(h *HealthCheck) { h.Protocol = 3 }, "health_check.protocol"},
		{"no slash", func(h *HealthCheck) { h.Path = "healthz" }, "health_check.path"},
		{"empty path", func(h *HealthCheck) { h.Path = "" }, "health_check.path"},
		{"space in path", func(h *HealthCheck) { h.Path = "/a b" }, "health_check.path"},
		{"line end in path", func(h *HealthCheck) { h.Path = "/a\r\nX: y" }, "health_check.path"},
		{"long path", func(h *HealthCheck) { h.Path = "/" + strings.Repeat("x", 255) },
			"health_check.path"},
		{"fastest", func(h *HealthCheck) { h.Interval, h.Timeout = time.Second, 100*time.Millisecond },
			""},
		{"slowest", func(h *HealthCheck) { h.Interval, h.Timeout = 300*time.Second, 300*time.Second },
			""},
		{"too fast", func(h *HealthCheck) { h.Interval, h.Timeout = 999*time.Millisecond, 500*time.Millisecond },
			"health_check.interval"},
		{"too slow", func(h *HealthCheck) { h.Interval = 301 * time.Second }, "health_check.interval"},
		{"timeout above interval", func(h *HealthCheck) { h.Timeout = 31 * time.Second },
			"health_check.timeout"},
		{"timeout too short", func(h *HealthCheck) { h.Timeout = 99 * time.Millisecond },
			"health_check.timeout"},
		{"threshold 0", func(h *HealthCheck) { h.HealthyThreshold = 0 },
			"health_check.healthy_threshold"},
		{"threshold 11", func(h *HealthCheck) { h.UnhealthyThreshold = 11 },
			"health_check.unhealthy_threshold"},
		{"host", func(h *HealthCheck) { h.Host = "app.example.com" }, ""},
		{"host with port", func(h *HealthCheck) { h.Host = "app.example.com:8443" }, ""},
		{"IPv6 host", func(h *HealthCheck) { h.Host = "2001:db8::1" }, ""},
		{"IPv6 host with port", func(h *HealthCheck) { h.Host = "[2001:db8::1]:80" }, ""},
		{"host with header", func(h *HealthCheck) { h.Host = "a\r\nX: y" }, "health_check.host"},
		{"host with path", func(h *HealthCheck) { h.Host = "a/b" }, "health_check.host"},
		{"host with an odd port", func(h *HealthCheck) { h.Host = "a:b" }, "health_check.host"},
		{"codes", func(h *HealthCheck) { h.ExpectedCodes = "200-299,418" }, ""},
		{"bad codes", func(h *HealthCheck) { h.ExpectedCodes = "2xx" }, "health_check.expected_codes"},
	})
}

func TestValidateGroup(t *testing.T) {
	judge(t, func() EndpointGroup { return group("0123456789ab", "l", "eu-ams-1", "10.0.0.1", "b") }, []rule[EndpointGroup]{
		{"new and empty", func(g *EndpointGroup) { g.ID, g.Endpoints = "", nil }, ""},
		{"no listener", func(g *EndpointGroup) { g.Listener = "" }, "group.listener_id"},
		{"no region", func(g *EndpointGroup) { g.Region = "" }, "group.region"},
		{"odd region", func(g *EndpointGroup) { g.Region = "eu ams" }, "group.region"},
		{"dial 0", func(g *EndpointGroup) { g.TrafficDial = 0 }, ""},
		{"dial 33.3", func(g *EndpointGroup) { g.TrafficDial = 33.3 }, ""},
		{"dial above", func(g *EndpointGroup) { g.TrafficDial = 100.1 }, "group.traffic_dial"},
		{"dial below", func(g *EndpointGroup) { g.TrafficDial = -1 }, "group.traffic_dial"},
		{"dial NaN", func(g *EndpointGroup) { g.TrafficDial = float32(math.NaN()) },
			"group.traffic_dial"},
		{"dial infinite", func(g *EndpointGroup) { g.TrafficDial = float32(math.Inf(1)) },
			"group.traffic_dial"},
		{"health", func(g *EndpointGroup) { g.HealthCheck.Path = "" }, "group.health_check.path"},
		{"overrides", func(g *EndpointGroup) { g.PortOverrides = []PortOverride{{80, 8080}, {443, 8443}} },
			""},
		{"override of 0", func(g *EndpointGroup) { g.PortOverrides = []PortOverride{{0, 8080}} },
			"group.port_overrides[0].listener_port"},
		{"override to 0", func(g *EndpointGroup) { g.PortOverrides = []PortOverride{{80, 0}} },
			"group.port_overrides[0].endpoint_port"},
		{"overridden twice", func(g *EndpointGroup) { g.PortOverrides = []PortOverride{{80, 1}, {80, 2}} },
			"group.port_overrides[1].listener_port"},
		{"two to one", func(g *EndpointGroup) { g.PortOverrides = []PortOverride{{80, 1}, {81, 1}} },
			"group.port_overrides[1].endpoint_port"},
		{"endpoint twice", func(g *EndpointGroup) { g.Endpoints[1].ID = "10.0.0.1" },
			"group.endpoints[1].id"},
		{"endpoint", func(g *EndpointGroup) { g.Endpoints[1].ID = "" }, "group.endpoints[1].id"},
		{"too many endpoints", func(g *EndpointGroup) { g.Endpoints = make([]Endpoint, EndpointsMax+1) },
			"group.endpoints"},
	})
}

func TestValidateEndpointAndTarget(t *testing.T) {
	judge(t, func() Endpoint { return Endpoint{ID: "10.0.0.1"} }, []rule[Endpoint]{
		{"ARN", func(e *Endpoint) {
			e.ID = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/x/50dc6c495c0c9188"
		}, ""},
		{"resolved", func(e *Endpoint) { e.Host = "app.example.com" }, ""},
		{"no id", func(e *Endpoint) { e.ID = "" }, "endpoint.id"},
		{"space", func(e *Endpoint) { e.ID = "a b" }, "endpoint.id"},
		{"line end", func(e *Endpoint) { e.ID = "a\nb" }, "endpoint.id"},
		{"not UTF-8", func(e *Endpoint) { e.ID = "\xff" }, "endpoint.id"},
		{"too long", func(e *Endpoint) { e.ID = EndpointID(strings.Repeat("x", 256)) }, "endpoint.id"},
		{"mode", func(e *Endpoint) { e.ClientAddress = 4 }, "endpoint.client_address"},
		{"state", func(e *Endpoint) { e.Health = 3 }, "endpoint.health"},
		{"host", func(e *Endpoint) { e.Host = "a b" }, "endpoint.host"},
		{"reason", func(e *Endpoint) { e.HealthReason = strings.Repeat("x", ReasonMax+1) },
			"endpoint.health_reason"},
	})
	judge(t, func() Target { return Target{Name: "i-0123", Host: "10.0.0.1"} }, []rule[Target]{
		{"longest name", func(x *Target) { x.Name = strings.Repeat("é", 255) }, ""},
		{"region", func(x *Target) { x.Region = "eu-ams-1" }, ""},
		{"no name", func(x *Target) { x.Name = "" }, "target.name"},
		{"long name", func(x *Target) { x.Name = strings.Repeat("x", 256) }, "target.name"},
		{"space", func(x *Target) { x.Name = "a b" }, "target.name"},
		{"no host", func(x *Target) { x.Host = "" }, "target.host"},
		{"odd region", func(x *Target) { x.Region = "-" }, "target.region"},
		{"tags", func(x *Target) { x.Tags = map[string]string{"": ""} }, "target.tags"},
	})
}

func TestHosts(t *testing.T) {
	good := []string{"10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "localhost", "app.example.com", "app.example.com.",
		"_srv.example.com", "xn--bcher-kva.example", "1and1.com", strings.Repeat("a.", 126) + "a", strings.Repeat("a", 63)}
	bad := []string{"", ".", "..", "a..b", "-a", "a-", "a b", "a/b", "a:80", "http://a", "[::1]", "10.0.0", "10.0.0.256",
		"1.2.3.4.5", "bücher.example", "fe80::1%eth0", "0.0.0.0", "::", "ff02::1", "224.0.0.1", strings.Repeat("a", 64),
		strings.Repeat("a.", 127) + "a", "a\x00b", "*.example.com"}
	for _, s := range good {
		if why := hostProblem(s); why != "" {
			t.Errorf("%q %s", s, why)
		}
	}
	for _, s := range bad {
		if hostProblem(s) == "" {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestValidateFleet(t *testing.T) {
	judge(t, func() Pool { return goodSnapshot().Pools[0] }, []rule[Pool]{
		{"no name", func(p *Pool) { p.Name = "" }, "pool.name"},
		{"no kind", func(p *Pool) { p.Kind = 0 }, "pool.kind"},
		{"unknown kind", func(p *Pool) { p.Kind = 3 }, "pool.kind"},
		{"no zone", func(p *Pool) { p.Zone = "" }, "pool.zone"},
		{"no prefixes", func(p *Pool) { p.Prefixes = nil }, "pool.prefixes"},
		{"anycast sites", func(p *Pool) { p.Sites = []SiteName{"a"} }, "pool.sites"},
		{"zero prefix", func(p *Pool) { p.Prefixes = make([]netip.Prefix, 1) }, "pool.prefixes[0]"},
		{"host bits", func(p *Pool) { p.Prefixes = prefixes("192.0.2.1/24") }, "pool.prefixes[0]"},
		{"everything", func(p *Pool) { p.Prefixes = prefixes("0.0.0.0/0") }, "pool.prefixes[0]"},
		{"multicast", func(p *Pool) { p.Prefixes = prefixes("ff00::/8") }, "pool.prefixes[0]"},
		{"overlap", func(p *Pool) { p.Prefixes = prefixes("10.0.0.0/8", "10.1.0.0/16") },
			"pool.prefixes[1]"},
		{"too many", func(p *Pool) { p.Prefixes = make([]netip.Prefix, PoolPrefixesMax+1) },
			"pool.prefixes"},
	})
	judge(t, func() Pool { return goodSnapshot().Pools[3] }, []rule[Pool]{
		{"all sites", func(p *Pool) { p.Sites = nil }, ""},
		{"zone", func(p *Pool) { p.Zone = "z" }, "pool.zone"},
		{"prefixes", func(p *Pool) { p.Prefixes = prefixes("10.0.0.0/8") }, "pool.prefixes"},
		{"site twice", func(p *Pool) { p.Sites = []SiteName{"a", "a"} }, "pool.sites[1]"},
		{"site's name", func(p *Pool) { p.Sites = []SiteName{"a/b"} }, "pool.sites[0]"},
	})
	judge(t, func() Region { return Region{Name: "eu-ams-1"} }, []rule[Region]{
		{"description", func(r *Region) { r.Description = "Amsterdam, Нидерланды" }, ""},
		{"no name", func(r *Region) { r.Name = "" }, "region.name"},
		{"long description", func(r *Region) { r.Description = strings.Repeat("x", 257) },
			"region.description"},
	})
	judge(t, func() Site { return goodSnapshot().Sites[0] }, []rule[Site]{
		{"the date line", func(s *Site) { s.Latitude, s.Longitude = -90, 180 }, ""},
		{"no name", func(s *Site) { s.Name = "" }, "site.name"},
		{"no region", func(s *Site) { s.Region = "" }, "site.region"},
		{"latitude", func(s *Site) { s.Latitude = 90.1 }, "site.latitude"},
		{"longitude", func(s *Site) { s.Longitude = -181 }, "site.longitude"},
		{"NaN", func(s *Site) { s.Longitude = math.NaN() }, "site.longitude"},
	})
	port := netip.MustParseAddrPort
	judge(t, func() Node { return goodSnapshot().Nodes[0] }, []rule[Node]{
		{"new", func(n *Node) { n.ID = "" }, ""},
		{"no gossip", func(n *Node) { n.GossipAddress = netip.AddrPort{} }, ""},
		{"no name", func(n *Node) { n.Name = "" }, "node.name"},
		{"no site", func(n *Node) { n.Site = "" }, "node.site"},
		{"no role", func(n *Node) { n.Edge, n.Gateway = false, false }, "node"},
		{"state", func(n *Node) { n.State = 3 }, "node.state"},
		{"port 0", func(n *Node) { n.BackboneAddresses[0] = port("192.0.2.1:0") },
			"node.backbone_addresses[0]"},
		{"unspecified", func(n *Node) { n.GossipAddress = port("0.0.0.0:1") }, "node.gossip_address"},
		{"balance address", func(n *Node) { n.BalanceAddress = port("0.0.0.0:1") }, "node.balance_address"},
		{"balance weight", func(n *Node) { n.BalanceWeight = 1001 }, "node.balance_weight"},
		{"backbone twice", func(n *Node) { n.BackboneAddresses = append(n.BackboneAddresses, n.BackboneAddresses[0]) },
			"node.backbone_addresses[1]"},
		{"service twice", func(n *Node) { n.ServiceAddresses = addrs("192.0.2.1", "192.0.2.1") },
			"node.service_addresses[1]"},
		{"service multicast", func(n *Node) { n.ServiceAddresses = addrs("ff02::1") },
			"node.service_addresses[0]"},
		{"too many", func(n *Node) { n.ServiceAddresses = make([]netip.Addr, NodeAddressesMax+1) },
			"node.service_addresses"},
	})
	judge(t, func() Settings { s, _ := SettingsFromProto(nil); return s }, []rule[Settings]{
		{"zero", func(s *Settings) { s.AcceleratorsMax = 0 }, "settings.accelerators_max"},
		{"negative", func(s *Settings) { s.TagsPerResourceMax = -1 }, "settings.tags_per_resource_max"},
		{"beyond a snapshot", func(s *Settings) { s.EndpointsPerGroupMax = EndpointsMax + 1 },
			"settings.endpoints_per_group_max"},
		{"percent", func(s *Settings) { s.MaxEjectionPercent = 101 }, "settings.max_ejection_percent"},
		{"networks", func(s *Settings) { s.EndpointAllowNetworks = prefixes("127.0.0.0/8") }, ""},
		{"zero network", func(s *Settings) { s.EndpointAllowNetworks = make([]netip.Prefix, 1) },
			"settings.endpoint_allow_networks[0]"},
		{"suffix", func(s *Settings) { s.DNSSuffix = "a b" }, "settings.dns_suffix"},
		{"suffix address", func(s *Settings) { s.DNSSuffix = "10.0.0.1" }, "settings.dns_suffix"},
	})
}

// TestMessagesSayHowToMend reads every message of a thoroughly broken snapshot: what is wrong comes
// first, without the field's name again, and most say what to do.
func TestMessagesSayHowToMend(t *testing.T) {
	broken := FieldErrors{}
	for _, v := range []interface{ Validate() error }{
		Accelerator{}, Listener{Protocol: 9}, EndpointGroup{TrafficDial: -1}, Endpoint{}, HealthCheck{Path: "x"},
		Target{}, Pool{}, Region{}, Site{Latitude: 100}, Node{}, Settings{},
	} {
		broken = append(broken, v.Validate().(FieldErrors)...)
	}
	if len(broken) < 30 {
		t.Fatalf("only %d messages", len(broken))
	}
	for _, e := range broken {
		if !strings.Contains(e.Message, ";") && !strings.Contains(e.Message, " use ") &&
			!strings.Contains(e.Message, "ports are") && !strings.Contains(e.Message, "percentage") {
			t.Errorf("%v: does not say how to mend it", e)
		}
	}
}

func TestFieldErrorsAt(t *testing.T) {
	es := FieldErrors{{"listener.port_ranges[1].to", "x"}, {"listener", "y"}}.At("listeners[4fd0ab12]")
	if es[0].Field != "listeners[4fd0ab12].port_ranges[1].to" || es[1].Field != "listeners[4fd0ab12]" {
		t.Errorf("%v", es)
	}
	if got := es.Error(); got != "listeners[4fd0ab12].port_ranges[1].to: x; listeners[4fd0ab12]: y" {
		t.Errorf("%s", got)
	}
}
