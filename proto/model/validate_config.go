package model

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// This file judges one object of the users' configuration by itself. Validate returns FieldErrors
// (never an empty list) or nil. It knows no other object and no Settings: references, quotas and
// what must be unique are the catalog's to check when an object is changed, and Snapshot.Consistent's
// once more before a node believes it. Output fields may be empty.

// Validate judges an accelerator by itself.
func (a Accelerator) Validate() error {
	c := newCheck("accelerator")
	a.check(c)
	return c.err()
}

func (a *Accelerator) check(c check) {
	c.idOrNone("id", string(a.ID))
	c.name("name", a.Name)
	c.name("project", a.Project)
	c.tags(a.Tags)
	if a.IPAddressType > DualStack {
		c.wrong("ip_address_type", "has the unknown value %d; use IPV4 or DUAL_STACK", a.IPAddressType)
	}
	switch {
	case a.Type > CustomRouting:
		c.wrong("type", "has the unknown value %d; use STANDARD or CUSTOM_ROUTING", a.Type)
	case a.Type == CustomRouting && a.IPAddressType != IPv4:
		c.wrong("ip_address_type", "must be IPV4 for custom routing, whose destinations are IPv4 addresses")
	}
	if a.Status > Deployed {
		c.wrong("status", "has the unknown value %d", a.Status)
	}
	if c.count("pools", len(a.Pools), AcceleratorPoolsMax) {
		for i, p := range a.Pools {
			c.name(index("pools", i), string(p))
			if slices.Contains(a.Pools[:i], p) {
				c.wrong(index("pools", i), "names %s twice; the two addresses need two pools of different zones",
					show(string(p)))
			}
		}
	}
	if c.count("addresses", len(a.Addresses), AddressesMax) {
		for i, addr := range a.Addresses {
			field := index("addresses", i)
			c.addr(field, addr)
			if addr.Is6() && a.IPAddressType == IPv4 {
				c.wrong(field, "%v is an IPv6 address, and the accelerator is IPV4; "+
					"leave it out or make ip_address_type DUAL_STACK", addr)
			}
			if slices.Contains(a.Addresses[:i], addr) {
				c.wrong(field, "names %v twice; leave one out", addr)
			}
		}
	}
	if a.DNSName != "" {
		c.host("dns_name", a.DNSName)
	}
	a.FlowLogs.check(c.at("flow_logs"))
}

func (f *FlowLogs) check(c check) {
	for _, part := range []struct{ field, value string }{{"bucket", f.Bucket}, {"prefix", f.Prefix}} {
		if f.Enabled && part.value == "" {
			c.wrong(part.field, "is missing; enabled flow logs need a bucket and a prefix")
		} else if part.value != "" {
			c.text(part.field, part.value, FlowLogsTextMax)
		}
	}
}

// Validate judges a listener by itself.
func (l Listener) Validate() error {
	c := newCheck("listener")
	l.check(c)
	return c.err()
}

func (l *Listener) check(c check) {
	c.idOrNone("id", string(l.ID))
	c.id("accelerator_id", string(l.Accelerator))
	c.tags(l.Tags)
	if l.Protocol == 0 || l.Protocol > TCPUDP {
		c.wrong("protocol", "is missing or unknown; use TCP, UDP or TCP_UDP")
	}
	if l.Affinity > AffinitySourceIP {
		c.wrong("affinity", "has the unknown value %d; use NONE or SOURCE_IP", l.Affinity)
	}
	l.checkPorts(c)
	l.Guard.check(c.at("guard"), l.Protocol)
	if d := l.TCPIdleTimeout; d < IdleTimeoutMin || d > TCPIdleTimeoutMax {
		c.wrong("tcp_idle_timeout", "is %v; use %v to %v, or 0 for %v",
			d, IdleTimeoutMin, TCPIdleTimeoutMax, DefaultTCPIdleTimeout)
	}
	if d := l.UDPIdleTimeout; d < IdleTimeoutMin || d > UDPIdleTimeoutMax {
		c.wrong("udp_idle_timeout", "is %v; use %v to %v, or 0 for %v",
			d, IdleTimeoutMin, UDPIdleTimeoutMax, DefaultUDPIdleTimeout)
	}
	if c.count("proxy_protocol_from", len(l.ProxyProtocolFrom), ProxyNetworksMax) {
		for i, p := range l.ProxyProtocolFrom {
			if !p.IsValid() {
				c.wrong(index("proxy_protocol_from", i), "is missing; write it like 192.0.2.0/24")
			}
		}
		if len(l.ProxyProtocolFrom) > 0 && !l.Protocol.Has(TCP) {
			c.wrong("proxy_protocol_from", "is for TCP, which this listener does not take; leave it out")
		}
	}
	if l.MaxFlows != 0 && l.MaxFlowsPerSource > l.MaxFlows {
		c.wrong("max_flows_per_source", "is %d, more than max_flows %d; lower it or raise max_flows",
			l.MaxFlowsPerSource, l.MaxFlows)
	}
}

func (l *Listener) checkPorts(c check) {
	if len(l.PortRanges) == 0 {
		c.wrong("port_ranges", "is empty; give at least one range, like from 443 to 443")
	}
	if !c.count("port_ranges", len(l.PortRanges), PortRangesMax) {
		return
	}
	for i, r := range l.PortRanges {
		field := index("port_ranges", i)
		switch {
		case r.From == 0:
			c.wrong(field+".from", "is 0; ports are 1 to 65535")
			continue
		case r.To == 0:
			c.wrong(field+".to", "is 0; ports are 1 to 65535, and one port is from and to alike")
			continue
		case r.From > r.To:
			c.wrong(field+".to", "is %d, below from %d; swap them", r.To, r.From)
			continue
		}
		for j, earlier := range l.PortRanges[:i] {
			if r.Overlaps(earlier) {
				c.wrong(field, "%d-%d overlaps with port_ranges[%d], %d-%d; join them or part them",
					r.From, r.To, j, earlier.From, earlier.To)
			}
		}
	}
}

// healthPath is AWS Global Accelerator's pattern of HealthCheckPath.
var healthPath = regexp.MustCompile(`^/[-a-zA-Z0-9@:%_\\+.~#?&/=]*$`)

// Validate judges a health check by itself.
func (h HealthCheck) Validate() error {
	c := newCheck("health_check")
	h.check(c)
	return c.err()
}

func (h *HealthCheck) check(c check) {
	if h.Protocol > HealthHTTPS {
		c.wrong("protocol", "has the unknown value %d; use TCP, HTTP or HTTPS", h.Protocol)
	}
	switch {
	case !strings.HasPrefix(h.Path, "/"):
		c.wrong("path", "%s does not begin with '/'; write it like /healthz", show(h.Path))
	case len(h.Path) > HealthPathMax:
		c.wrong("path", "has %d characters; shorten it to %d", utf8.RuneCountInString(h.Path), HealthPathMax)
	case !healthPath.MatchString(h.Path):
		c.wrong("path", "%s has a character that paths cannot have; write it in percent-encoding", show(h.Path))
	}
	if h.Interval < HealthIntervalMin || h.Interval > HealthIntervalMax {
		c.wrong("interval", "is %v; use %v to %v, or 0 for %v",
			h.Interval, HealthIntervalMin, HealthIntervalMax, DefaultHealthInterval)
	}
	if h.Timeout < HealthTimeoutMin || h.Timeout > h.Interval {
		c.wrong("timeout", "is %v; use %v to the interval, %v, or 0 for the smaller of %v and the interval",
			h.Timeout, HealthTimeoutMin, h.Interval, DefaultHealthTimeout)
	}
	for _, t := range []struct {
		field string
		n     int
	}{{"healthy_threshold", h.HealthyThreshold}, {"unhealthy_threshold", h.UnhealthyThreshold}} {
		if t.n < 1 || t.n > HealthThresholdMax {
			c.wrong(t.field, "is %d; use 1 to %d, or 0 for %d", t.n, HealthThresholdMax, DefaultHealthThreshold)
		}
	}
	if h.Host != "" {
		if why := hostProblem(hostOnly(h.Host)); why != "" {
			c.wrong("host", "%s %s; give what belongs in the Host header, like app.example.com",
				show(h.Host), why)
		}
	}
	if _, err := ParseCodes(h.ExpectedCodes); err != nil {
		c.wrong("expected_codes", "%v; write it like 200-399,404", err)
	}
}

// hostOnly returns a Host header's value without its port and brackets.
func hostOnly(s string) string {
	host, port, ok := cutLast(s, ':')
	if !ok || strings.Trim(port, "0123456789") != "" || port == "" || len(port) > 5 {
		host = s
	}
	if strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "[") {
		return s // a bare IPv6 address
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			return inner
		}
	}
	return host
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// Validate judges an endpoint by itself. Whether its address is one that endpoints may have is
// EndpointRules' to say.
func (e Endpoint) Validate() error {
	c := newCheck("endpoint")
	e.check(c)
	return c.err()
}

func (e *Endpoint) check(c check) {
	switch id := string(e.ID); {
	case id == "":
		c.wrong("id", "is missing; give an IP address, a DNS name or the name of a target")
	case len(id) > TargetNameMax || !isToken(id):
		c.wrong("id", "%s is too long or has spaces or unprintable characters; "+
			"give an IP address, a DNS name or the name of a target", show(id))
	}
	if e.ClientAddress > ClientAddressTransparent {
		c.wrong("client_address", "has the unknown value %d; use NONE, PROXY_V1, PROXY_V2 or TRANSPARENT",
			e.ClientAddress)
	}
	if e.Health > HealthUnhealthy {
		c.wrong("health", "has the unknown value %d", e.Health)
	}
	if e.Host != "" {
		c.host("host", e.Host)
	}
	if len(e.HealthReason) > ReasonMax || !utf8.ValidString(e.HealthReason) {
		c.wrong("health_reason", "is longer than %d bytes or not UTF-8; shorten it", ReasonMax)
	}
}

// Validate judges a group and its endpoints by themselves.
func (g EndpointGroup) Validate() error {
	c := newCheck("group")
	g.check(c)
	return c.err()
}

func (g *EndpointGroup) check(c check) {
	c.idOrNone("id", string(g.ID))
	c.id("listener_id", string(g.Listener))
	c.name("region", string(g.Region))
	c.tags(g.Tags)
	if !(g.TrafficDial >= 0 && g.TrafficDial <= 100) { // written so that NaN is refused
		c.wrong("traffic_dial", "is %v; it is a percentage, 0 to 100", g.TrafficDial)
	}
	g.HealthCheck.check(c.at("health_check"))
	g.checkOverrides(c)
	if !c.count("endpoints", len(g.Endpoints), EndpointsMax) {
		return
	}
	seen := make(map[EndpointID]bool, len(g.Endpoints))
	for i := range g.Endpoints {
		e := &g.Endpoints[i]
		e.check(c.atIndex("endpoints", i))
		if seen[e.ID] && e.ID != "" {
			c.wrong(index("endpoints", i)+".id", "%s is in the group twice; leave one out", show(string(e.ID)))
		}
		seen[e.ID] = true
	}
}

func (g *EndpointGroup) checkOverrides(c check) {
	if !c.count("port_overrides", len(g.PortOverrides), PortOverridesMax) {
		return
	}
	from, to := map[uint16]bool{}, map[uint16]bool{}
	for i, o := range g.PortOverrides {
		field := index("port_overrides", i)
		switch {
		case o.ListenerPort == 0:
			c.wrong(field+".listener_port", "is 0; ports are 1 to 65535")
		case from[o.ListenerPort]:
			c.wrong(field+".listener_port", "%d is overridden twice; leave one out", o.ListenerPort)
		}
		switch {
		case o.EndpointPort == 0:
			c.wrong(field+".endpoint_port", "is 0; ports are 1 to 65535")
		case to[o.EndpointPort]:
			c.wrong(field+".endpoint_port", "%d is already used by another override; "+
				"two listener ports cannot lead to one endpoint port", o.EndpointPort)
		}
		from[o.ListenerPort], to[o.EndpointPort] = true, true
	}
}

// Validate judges a target by itself.
func (t Target) Validate() error {
	c := newCheck("target")
	switch {
	case t.Name == "":
		c.wrong("name", "is missing; give 1–%d printable characters without spaces", TargetNameMax)
	case utf8.RuneCountInString(t.Name) > TargetNameMax || !isToken(t.Name):
		c.wrong("name", "%s is too long or has spaces or unprintable characters; "+
			"give 1–%d printable characters without spaces", show(t.Name), TargetNameMax)
	}
	if t.Region != "" {
		c.name("region", string(t.Region))
	}
	if t.Project != "" {
		c.name("project", t.Project)
	}
	c.host("host", t.Host)
	c.tags(t.Tags)
	return c.err()
}
