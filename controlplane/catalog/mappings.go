package catalog

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nearcast/nearcast/proto/model"
)

// Traffic is what SetTraffic allows or denies: every destination of a subnet, or those of up to 100
// addresses and 100 ports.
type Traffic struct {
	Group     model.GroupID
	Subnet    model.SubnetName
	Allow     bool // else deny
	All       bool // then there are neither Addresses nor Ports
	Addresses []netip.Addr
	Ports     []uint16 // empty: all of the group
}

// SetTraffic allows or denies traffic to destinations of a subnet.
func (c *Catalog) SetTraffic(ctx context.Context, t Traffic) (model.CustomRoutingGroup, error) {
	switch {
	case t.All && len(t.Addresses)+len(t.Ports) > 0:
		return model.CustomRoutingGroup{}, field(ReasonNone, "all", "is set, so addresses and ports must be empty")
	case !t.All && len(t.Addresses) == 0:
		return model.CustomRoutingGroup{}, field(ReasonNone, "addresses", "is empty; name destinations, or all of them")
	case len(t.Addresses) > trafficItemsMax || len(t.Ports) > trafficItemsMax:
		return model.CustomRoutingGroup{}, field(ReasonNone, "addresses", "or ports has more than %d", trafficItemsMax)
	}
	return c.updateCustomGroup(ctx, t.Group, func(ch *change, g *model.CustomRoutingGroup) error {
		at := customEndpoint(g, t.Subnet)
		if at < 0 {
			return endpointNotFound(model.EndpointID(t.Subnet), g.ID)
		}
		s, err := ch.subnets.need(t.Subnet)
		if err != nil {
			return err
		}
		e := &g.Endpoints[at]
		m := model.NewMapping(g, e, s)
		bits := make([]byte, (m.Len()+7)/8)
		copy(bits, e.Allowed)
		if t.All {
			for i := range m.Len() {
				setBit(bits, i, t.Allow)
			}
		} else if err := t.mark(g, m, bits); err != nil {
			return err
		}
		e.Allowed = bits
		return nil
	})
}

// mark sets the bits of t's addresses and ports.
func (t Traffic) mark(g *model.CustomRoutingGroup, m *model.Mapping, bits []byte) error {
	wanted := map[uint16]bool{}
	for i, port := range t.Ports {
		if !slices.ContainsFunc(g.Destinations, func(d model.CustomRoutingDestination) bool { return d.Contains(port) }) {
			return field(ReasonNone, fmt.Sprintf("ports[%d]", i), "%d is no destination port of group %s", port, g.ID)
		}
		wanted[port] = true
	}
	for i, addr := range t.Addresses {
		first, n, ok := m.Machine(addr)
		if !ok {
			return field(ReasonNone, fmt.Sprintf("addresses[%d]", i), "%v is not a mapped address of subnet %s", addr, t.Subnet)
		}
		for at := first; at < first+n; at++ {
			if len(wanted) == 0 || wanted[m.At(at).Destination.Port()] {
				setBit(bits, at, t.Allow)
			}
		}
	}
	return nil
}

func setBit(bits []byte, i int, on bool) {
	if on {
		bits[i/8] |= 1 << (i % 8)
	} else {
		bits[i/8] &^= 1 << (i % 8)
	}
}

// RoutedPort is a mapping and what it belongs to.
type RoutedPort struct {
	model.PortMapping
	Accelerator model.AcceleratorID
	Listener    model.ListenerID
	Group       model.GroupID
	Region      model.RegionName
	Subnet      model.SubnetName
}

// ListPortMappings computes a page of the mappings of an accelerator, or of one of its groups, in the order
// of ports.
func (c *Catalog) ListPortMappings(ctx context.Context, id model.AcceleratorID, group model.GroupID,
	p PageOptions) (page []RoutedPort, next string, err error) {
	size, err := mappingPage(p.Size)
	if err != nil {
		return nil, "", err
	}
	after, err := strconv.ParseUint("0"+p.Token, 10, 16)
	if err != nil {
		return nil, "", badMappingToken()
	}
	err = c.read(ctx, func(o *objects) error {
		a, err := o.accelerators.need(id)
		if err != nil {
			return err
		}
		if a.Type != model.CustomRouting {
			return precondition(ReasonWrongType, "accelerator %s is a standard one", id)
		}
		listeners, groups := map[model.GroupID]model.ListenerID{}, []*model.CustomRoutingGroup{}
		for l := range o.listenersOf(id) {
			for g := range o.customGroupsOf(l.ID) {
				if group == "" || g.ID == group {
					listeners[g.ID], groups = l.ID, append(groups, g)
				}
			}
		}
		if group != "" && len(groups) == 0 {
			return notFound(ReasonGroupNotFound, customGroupKind.name, string(group))
		}
		page = make([]RoutedPort, 0, min(size, 1024))
		for m, found := range model.CompilePorts(slices.Values(groups), o.subnets.get).After(uint16(after)) {
			if len(page) == size {
				next = strconv.Itoa(int(page[size-1].Port))
				return nil
			}
			page = append(page, RoutedPort{found, id, listeners[m.Group], m.Group, m.Region, m.Subnet})
		}
		return nil
	})
	return page, next, err
}

// ListPortMappingsOf computes a page of what leads to one address of a subnet, over all accelerators of a
// project ("": of all projects), in the order of accelerators' ids and ports.
func (c *Catalog) ListPortMappingsOf(ctx context.Context, project string, subnet model.SubnetName, addr netip.Addr,
	p PageOptions) (page []RoutedPort, next string, err error) {
	size, err := mappingPage(p.Size)
	if err != nil {
		return nil, "", err
	}
	err = c.read(ctx, func(o *objects) error {
		s, err := o.subnets.need(subnet)
		if err != nil {
			return err
		}
		for g := range o.customGroupsWith(subnet) {
			l := o.listeners.get(g.Listener)
			if l == nil || project != "" && o.accelerators.get(l.Accelerator).Project != project {
				continue
			}
			m := model.NewMapping(g, &g.Endpoints[customEndpoint(g, subnet)], s)
			first, n, ok := m.Machine(addr)
			if !ok {
				return field(ReasonNone, "address", "%v is not a mapped address of subnet %s", addr, subnet)
			}
			for i := first; i < first+n; i++ {
				r := RoutedPort{m.At(i), l.Accelerator, l.ID, g.ID, g.Region, subnet}
				if r.place() > p.Token {
					page = append(page, r)
				}
			}
		}
		return nil
	})
	slices.SortFunc(page, func(a, b RoutedPort) int { return strings.Compare(a.place(), b.place()) })
	if len(page) > size {
		page = page[:size]
		next = page[size-1].place()
	}
	return page, next, err
}

// place orders mappings over accelerators.
func (r *RoutedPort) place() string { return fmt.Sprintf("%s-%05d", r.Accelerator, r.Port) }

func mappingPage(size int) (int, error) {
	if size == 0 {
		return pageSizeMax, nil
	}
	if size < 1 || size > mappingPageMax {
		return 0, field(ReasonNone, "page_size", "is %d; use 1 to %d, or 0 for %d", size, mappingPageMax, pageSizeMax)
	}
	return size, nil
}

func badMappingToken() *Error {
	return field(ReasonInvalidPageToken, "page_token", "is not one that this listing gave; take it from the page before")
}
