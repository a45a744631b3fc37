package catalog

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/proto/model"
)

// resolve returns the address or DNS name that an endpoint's id means: a target's, where there is one of
// that name, or its own. The second result is the target.
func (o *objects) resolve(id model.EndpointID) (host string, t *model.Target) {
	if t := o.targets.get(string(id)); t != nil {
		return t.Host, t
	}
	return string(id), nil
}

// sameEndpoint reports whether two ids are one endpoint, written differently: "2001:DB8::1" and
// "2001:db8:0::1", "APP.example.com." and "app.example.com".
func sameEndpoint(a, b model.EndpointID) bool {
	return a == b || canonical(string(a)) == canonical(string(b))
}

func canonical(host string) string {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().String()
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// checkGroupEndpoints checks every endpoint of g. What is wrong is an error of the request if g is the
// group self that the request changes, and otherwise one of the state that the change meets.
func (o *objects) checkGroupEndpoints(g *model.EndpointGroup, self model.GroupID) error {
	l, err := o.listeners.need(g.Listener)
	if err != nil {
		return err
	}
	for i := range g.Endpoints {
		e := &g.Endpoints[i]
		why, reason := o.endpointProblem(l, g, i)
		switch {
		case why == "":
		case g.ID == self:
			return field(reason, fmt.Sprintf("group.endpoints[%d].id", i), "%s", why)
		default:
			return precondition(reason, "endpoint %s of group %s stands against that: %s", e.ID, g.ID, why)
		}
	}
	return nil
}

// endpointProblem says why the i-th endpoint of g cannot be, or "".
func (o *objects) endpointProblem(l *model.Listener, g *model.EndpointGroup, i int) (string, Reason) {
	e := &g.Endpoints[i]
	for _, other := range g.Endpoints[:i] {
		if sameEndpoint(other.ID, e.ID) {
			return fmt.Sprintf("%s and %s are the same endpoint; leave one out", other.ID, e.ID), ReasonEndpointExists
		}
	}
	// AWS: an endpoint may be in several groups only if these are under different listeners.
	for other := range o.groupsOf(l.ID) {
		if other.ID != g.ID && findEndpoint(other, e.ID) != nil {
			return fmt.Sprintf("%s is in group %s of the same listener, too", e.ID, other.ID), ReasonEndpointExists
		}
	}
	host, t := o.resolve(e.ID)
	if t == nil {
		if why := hostProblem(host); why != "" {
			return why, ReasonTargetNotFound
		}
	} else if a := o.accelerators.get(l.Accelerator); a != nil && o.notShared(a.Project, a.ID, t.Name) != "" {
		return o.notShared(a.Project, a.ID, t.Name), ReasonNotShared
	} else if t.Region != "" && t.Region != g.Region {
		return fmt.Sprintf("target %s is in region %s, the group in %s", t.Name, t.Region, g.Region), ReasonNone
	}
	if e.ClientAddress == model.ClientAddressProxyV1 && l.Protocol != model.TCP {
		return fmt.Sprintf("client_address PROXY_V1 is for TCP, and listener %s takes %v; use PROXY_V2",
			l.ID, l.Protocol), ReasonNone
	}
	if err := o.hostAllowed(host, endpointPorts(l, g)); err != nil {
		return err.Error(), ReasonForbiddenEndpoint
	}
	return "", ReasonNone
}

// hostProblem says why an id that is no target's name is no endpoint either, or "".
func hostProblem(host string) string {
	const what = "is neither an IP address nor a DNS name like app.example.com nor the name of a target"
	if err := (model.Endpoint{ID: "x", Host: host}).Validate(); err != nil {
		return fmt.Sprintf("%q %s", host, what)
	}
	_, err := netip.ParseAddr(host)
	if err != nil && !strings.Contains(strings.TrimSuffix(host, "."), ".") {
		// A single label would be looked up in whatever domain the gateway's machine is in, and is
		// more likely a target's name mistyped.
		return fmt.Sprintf("%q %s", host, what)
	}
	return ""
}

// endpointPorts returns the ports at which g's endpoints are reached: the listener's, as overridden,
// and the health check's.
func endpointPorts(l *model.Listener, g *model.EndpointGroup) []model.PortRange {
	var ports []model.PortRange
	for _, r := range l.PortRanges {
		ports = append(ports, without(r, g.PortOverrides)...)
	}
	for _, ov := range g.PortOverrides {
		ports = append(ports, model.PortRange{From: ov.EndpointPort, To: ov.EndpointPort})
	}
	hc := g.HealthCheck.Port
	if hc == 0 {
		hc = l.PortRanges[0].From
	}
	return append(ports, model.PortRange{From: hc, To: hc})
}

// without returns r without the ports that are overridden.
func without(r model.PortRange, overrides []model.PortOverride) (rest []model.PortRange) {
	var gone []uint16
	for _, ov := range overrides {
		if r.Contains(ov.ListenerPort) {
			gone = append(gone, ov.ListenerPort)
		}
	}
	slices.Sort(gone)
	from := uint32(r.From)
	for _, port := range gone {
		if from < uint32(port) {
			rest = append(rest, model.PortRange{From: uint16(from), To: port - 1})
		}
		from = uint32(port) + 1
	}
	if from <= uint32(r.To) {
		rest = append(rest, model.PortRange{From: uint16(from), To: r.To})
	}
	return rest
}

// forbiddenNames are DNS names that lead to the machine itself or to what only it may ask. What other
// names resolve to is checked at each probe and each dial.
var forbiddenNames = []string{"localhost", "localdomain", "metadata.google.internal", "metadata.goog",
	"instance-data.ec2.internal"}

// hostAllowed applies the rules of where endpoints must not lie (R-SE4) at configuration time. The same
// rules are applied to the addresses that a name resolves to, by gateways and probers, as
// model.EndpointRules; here they are stricter by whole pools, whose other addresses may be an
// accelerator's tomorrow.
func (o *objects) hostAllowed(host string, ports []model.PortRange) error {
	addr, err := netip.ParseAddr(host)
	if err == nil {
		return o.addrAllowed(addr.Unmap(), ports)
	}
	name := canonical(host)
	suffix := canonical(o.settings().DNSSuffix)
	if under(name, suffix) {
		return fmt.Errorf("%s is an accelerator's name: a loop", host)
	}
	for _, f := range forbiddenNames {
		if under(name, f) {
			return fmt.Errorf("%s leads to the gateway's own machine or its metadata service", host)
		}
	}
	return nil
}

// under reports whether name is domain or lies below it.
func under(name, domain string) bool { return name == domain || strings.HasSuffix(name, "."+domain) }

func (o *objects) addrAllowed(addr netip.Addr, ports []model.PortRange) error {
	allow := o.settings().EndpointAllowNetworks
	if err := model.ForbiddenAddr(addr, allow); err != nil {
		return err
	}
	allowed := func(a netip.Addr) bool {
		return slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, at := range append(model.EmbeddedIPv4(addr), addr) {
		if id, port, loop := o.servedAt(at, ports); loop {
			return fmt.Errorf("%v port %d is served by listener %s: a loop", at, port, id)
		}
		if allowed(addr) || allowed(at) {
			continue
		}
		if p := o.poolHolding(at); p != nil {
			return fmt.Errorf("%v is in pool %s, whose addresses are accelerated: a loop", at, p.Name)
		}
		if n, what := o.nodeAt(at, ports); n != nil {
			return fmt.Errorf("%v is the %s address of node %s", at, what, n.Name)
		}
	}
	return nil
}

// servedAt returns the listener that takes one of ports at addr.
func (o *objects) servedAt(addr netip.Addr, ports []model.PortRange) (model.ListenerID, uint16, bool) {
	var at []model.AcceleratorID
	for a := range o.accelerators.all() {
		if slices.Contains(a.Addresses, addr) {
			at = append(at, a.ID)
		}
	}
	for n := range o.nodes.all() {
		if !slices.Contains(n.ServiceAddresses, addr) {
			continue
		}
		// Whether its site is the pool's or not: pools change, and gateways do not look at it either.
		for a := range o.accelerators.all() {
			if len(a.Addresses) == 0 {
				at = append(at, a.ID)
			}
		}
		break
	}
	if len(at) == 0 {
		return "", 0, false
	}
	for _, l := range inOrder(o.listeners.all(), listenerKind.key) {
		if !slices.Contains(at, l.Accelerator) {
			continue
		}
		for _, r := range l.PortRanges {
			for _, p := range ports {
				if r.Overlaps(p) {
					return l.ID, max(r.From, p.From), true
				}
			}
		}
	}
	return "", 0, false
}

// nodeAt returns the node that has one of ports at addr for itself, and what for.
func (o *objects) nodeAt(addr netip.Addr, ports []model.PortRange) (*model.Node, string) {
	is := func(a netip.AddrPort) bool {
		return a.Addr() == addr &&
			slices.ContainsFunc(ports, func(r model.PortRange) bool { return r.Contains(a.Port()) })
	}
	for n := range o.nodes.all() {
		if slices.ContainsFunc(n.BackboneAddresses, is) {
			return n, "backbone"
		}
		if is(n.GossipAddress) {
			return n, "gossip"
		}
	}
	return nil, ""
}

// checkEndpointsAt checks the endpoints that lie at any of addrs, after something came to be there.
func (o *objects) checkEndpointsAt(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	return o.checkEndpointsWhere(func(a netip.Addr) bool { return slices.Contains(addrs, a) })
}

// checkEndpointsWhere checks the groups that have an endpoint whose address, or an IPv4 address inside
// it, is one that concerns the change.
func (o *objects) checkEndpointsWhere(concerns func(netip.Addr) bool) error {
	for _, g := range inOrder(o.groups.all(), groupKind.key) {
		for i := range g.Endpoints {
			host, _ := o.resolve(g.Endpoints[i].ID)
			addr, err := netip.ParseAddr(host)
			if err != nil {
				continue
			}
			addr = addr.Unmap()
			if concerns(addr) || slices.ContainsFunc(model.EmbeddedIPv4(addr), concerns) {
				if err := o.checkGroupEndpoints(g, ""); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// listensAt returns the addresses at which an accelerator takes traffic.
func (o *objects) listensAt(id model.AcceleratorID) (all []netip.Addr) {
	if a := o.accelerators.get(id); a != nil && len(a.Addresses) > 0 {
		return a.Addresses
	}
	for n := range o.nodes.all() {
		all = append(all, n.ServiceAddresses...)
	}
	return all
}

// CreateTarget names an address. A name that endpoints already use as an address or DNS name is
// refused: it would silently change where they lead.
func (c *Catalog) CreateTarget(ctx context.Context, t model.Target, _ Options) (model.Target, error) {
	t = targetKind.clone(t)
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(t.Validate()); err != nil {
			return err
		}
		if err := checkTargetName(t.Name); err != nil {
			return err
		}
		if ch.targets.get(t.Name) != nil {
			return exists(ReasonNone, "there is a target %q already", t.Name)
		}
		for _, g := range inOrder(ch.groups.all(), groupKind.key) {
			if e := findEndpoint(g, model.EndpointID(t.Name)); e != nil {
				return precondition(ReasonInUse, "%q is an endpoint of group %s by itself; remove it there first",
					e.ID, g.ID)
			}
		}
		return ch.putTarget(t)
	})
	if err != nil {
		return model.Target{}, err
	}
	return c.Target(ctx, t.Name)
}

// resourceID is the form of ids of accelerators, listeners and groups.
var resourceID = regexp.MustCompile(`^([0-9a-f]{8}|[0-9a-f]{12}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)

// checkTargetName refuses names that mean something else already: Tag and Untag take ids and target
// names alike, and an endpoint that is written as an address is one.
func checkTargetName(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return field(ReasonNone, "target.name", "%q is an IP address, which needs no name", name)
	}
	if resourceID.MatchString(strings.ToLower(name)) {
		return field(ReasonNone, "target.name", "%q looks like the id of an accelerator, listener or group", name)
	}
	return nil
}

// putTarget stages a valid target and checks the groups that use it.
func (ch *change) putTarget(t model.Target) error {
	if err := checkTagCount(ch.settings(), t.Tags); err != nil {
		return err
	}
	// Before anybody uses it: an address that no endpoint may have is worth no name.
	if why := hostProblem(t.Host); why != "" {
		return field(ReasonNone, "target.host", "%s", why)
	}
	if err := ch.hostAllowed(t.Host, nil); err != nil {
		return field(ReasonForbiddenEndpoint, "target.host", "%v", err)
	}
	if err := ch.needRegion(t.Region); err != nil {
		return err
	}
	if a := ch.sharedBy(t.Name); a != nil && t.Project != "" && t.Project != a.Project {
		return precondition(ReasonInUse, "attachment %s of project %s shares target %q; remove it there first",
			a.ID, a.Project, t.Name)
	}
	if err := put(ch, &ch.targets, t); err != nil {
		return err
	}
	for _, g := range inOrder(ch.groups.all(), groupKind.key) {
		if findEndpoint(g, model.EndpointID(t.Name)) != nil {
			if err := ch.checkGroupEndpoints(g, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// Target returns one.
func (c *Catalog) Target(ctx context.Context, name string) (model.Target, error) {
	return get(c, ctx, targetsTable, name, plain(targetKind))
}

// ListTargets returns a page.
func (c *Catalog) ListTargets(ctx context.Context, p PageOptions) ([]model.Target, string, error) {
	return list(c, ctx, p, targetsTable, nil, plain(targetKind))
}

func targetsTable(o *objects) *table[string, model.Target] { return &o.targets }

// UpdateTarget lets edit alter Region, Host and Tags; see UpdateAccelerator. Revision of the accelerators
// that use it moves with it.
func (c *Catalog) UpdateTarget(ctx context.Context, name string, o Options,
	edit func(*model.Target) error) (model.Target, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.targets.need(name)
		if err != nil {
			return err
		}
		t, changed, err := update(&ch.targets, name, before.Revision, o, edit, targetFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(t.Validate()); err != nil {
			return err
		}
		return ch.putTarget(t)
	})
	if err != nil {
		return model.Target{}, err
	}
	return c.Target(ctx, name)
}

var targetFixed = map[string]func(a, b *model.Target) bool{
	"target.name": func(a, b *model.Target) bool { return a.Name == b.Name },
}

// DeleteTarget removes a target that no endpoint names.
func (c *Catalog) DeleteTarget(ctx context.Context, name string, o Options) error {
	return c.change(ctx, func(ch *change) error {
		t, err := ch.targets.need(name)
		if err != nil {
			return err
		}
		if err := expect(o, targetKind.name, name, t.Revision); err != nil {
			return err
		}
		for _, g := range inOrder(ch.groups.all(), groupKind.key) {
			if findEndpoint(g, model.EndpointID(name)) != nil {
				return precondition(ReasonInUse, "target %q is an endpoint of group %s; remove it there first",
					name, g.ID)
			}
		}
		if a := ch.sharedBy(name); a != nil {
			return precondition(ReasonInUse, "attachment %s shares target %q; remove it there first", a.ID, name)
		}
		remove(ch, &ch.targets, name)
		return nil
	})
}
