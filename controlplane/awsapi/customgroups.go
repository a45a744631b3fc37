package awsapi

import (
	"context"
	"net/netip"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// customGroup is group for those of custom routing.
func (c call) customGroup(ctx context.Context, arn *string) (model.CustomRoutingGroup, resource, error) {
	r, ok := parseARN(text(arn))
	if !ok || r.group == "" {
		return model.CustomRoutingGroup{}, r, invalidf("'%s' is not a valid endpoint group ARN", shorten(text(arn)))
	}
	notFound := faultf(exGroup, "Endpoint group %s does not exist", shorten(text(arn)))
	if _, err := c.ownListener(ctx, r, model.CustomRouting); err != nil {
		if f, ok := err.(*fault); ok && f.code == exListener {
			return model.CustomRoutingGroup{}, r, notFound
		}
		return model.CustomRoutingGroup{}, r, err
	}
	g, err := c.cfg.Catalog.CustomRoutingGroup(ctx, r.group)
	if err != nil && catalog.CodeOf(err) == catalog.NotFound || err == nil && g.Listener != r.listener {
		return model.CustomRoutingGroup{}, r, notFound
	}
	return g, r, err
}

type customGroupAnswer struct{ EndpointGroup customGroupOut }

func (c call) customGroupOut(a model.AcceleratorID, g model.CustomRoutingGroup) customGroupOut {
	out := customGroupOut{EndpointGroupArn: groupARN(c.key.Account, a, g.Listener, g.ID),
		EndpointGroupRegion: string(g.Region), EndpointDescriptions: []customEndpointOut{}}
	for _, d := range g.Destinations {
		out.DestinationDescriptions = append(out.DestinationDescriptions,
			destinationOut{d.From, d.To, protocolWords(d.Protocol)})
	}
	for _, e := range g.Endpoints {
		out.EndpointDescriptions = append(out.EndpointDescriptions, customEndpointOut{string(e.Subnet)})
	}
	return out
}

func (c call) createCustomGroup(ctx context.Context, in *createCustomGroup) (out customGroupAnswer, err error) {
	l, err := c.customListener(ctx, in.ListenerArn)
	if err != nil {
		return out, err
	}
	g := model.CustomRoutingGroup{Listener: l.ID, Region: model.RegionName(*in.EndpointGroupRegion)}
	for _, d := range in.DestinationConfigurations {
		var p model.Protocol
		for _, w := range d.Protocols {
			p |= protocols[w]
		}
		g.Destinations = append(g.Destinations, model.CustomRoutingDestination{
			PortRange: model.PortRange{From: port(d.FromPort), To: port(d.ToPort)}, Protocol: p})
	}
	g, err = c.cfg.Catalog.CreateCustomRoutingGroup(ctx, g,
		catalog.Options{IdempotencyToken: *in.IdempotencyToken})
	if err != nil {
		return out, err
	}
	return customGroupAnswer{c.customGroupOut(l.Accelerator, g)}, nil
}

func (c call) describeCustomGroup(ctx context.Context, in *groupRequest) (out customGroupAnswer, err error) {
	g, r, err := c.customGroup(ctx, in.EndpointGroupArn)
	if err != nil {
		return out, err
	}
	return customGroupAnswer{c.customGroupOut(r.accelerator, g)}, nil
}

func (c call) listCustomGroups(ctx context.Context, in *listGroups) (map[string]any, error) {
	l, err := c.customListener(ctx, in.ListenerArn)
	if err != nil {
		return nil, err
	}
	p, err := page("custom-groups", in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListCustomRoutingGroups(ctx, l.ID, p)
	if err != nil {
		return nil, err
	}
	return pageAnswer("EndpointGroups", "custom-groups", items, next,
		func(g model.CustomRoutingGroup) customGroupOut { return c.customGroupOut(l.Accelerator, g) }), nil
}

func (c call) deleteCustomGroup(ctx context.Context, in *groupRequest) (none nothing, err error) {
	g, _, err := c.customGroup(ctx, in.EndpointGroupArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteCustomRoutingGroup(ctx, g.ID, catalog.Options{})
}

type customEndpointsAnswer struct {
	EndpointDescriptions []customEndpointOut
	EndpointGroupArn     string
}

func (c call) addCustomEndpoints(ctx context.Context, in *addCustomEndpoints) (out customEndpointsAnswer,
	err error) {
	g, r, err := c.customGroup(ctx, in.EndpointGroupArn)
	if err != nil {
		return out, err
	}
	out.EndpointGroupArn = groupARN(c.key.Account, r.accelerator, r.listener, r.group)
	var names []model.SubnetName
	for _, e := range in.EndpointConfigurations {
		if err := c.checkAttachment(ctx, r.accelerator, e.AttachmentArn, e.EndpointId); err != nil {
			return out, err
		}
		names = append(names, model.SubnetName(text(e.EndpointId)))
		out.EndpointDescriptions = append(out.EndpointDescriptions, customEndpointOut{text(e.EndpointId)})
	}
	_, err = c.cfg.Catalog.AddSubnets(ctx, g.ID, names)
	return out, err
}

func (c call) removeCustomEndpoints(ctx context.Context, in *removeCustomEndpoints) (none nothing, err error) {
	g, _, err := c.customGroup(ctx, in.EndpointGroupArn)
	if err != nil {
		return none, err
	}
	var names []model.SubnetName
	for _, id := range in.EndpointIds {
		names = append(names, model.SubnetName(id))
	}
	_, err = c.cfg.Catalog.RemoveSubnets(ctx, g.ID, names)
	return none, err
}

func (c call) allowTraffic(ctx context.Context, in *allowTraffic) (nothing, error) {
	return c.setTraffic(ctx, &in.destinations, true, in.AllowAllTrafficToEndpoint)
}

func (c call) denyTraffic(ctx context.Context, in *denyTraffic) (nothing, error) {
	return c.setTraffic(ctx, &in.destinations, false, in.DenyAllTrafficToEndpoint)
}

func (c call) setTraffic(ctx context.Context, in *destinations, allow bool, all *bool) (none nothing, err error) {
	g, _, err := c.customGroup(ctx, in.EndpointGroupArn)
	if err != nil {
		return none, err
	}
	t := catalog.Traffic{Group: g.ID, Subnet: model.SubnetName(*in.EndpointId), Allow: allow, All: all != nil && *all}
	for _, s := range in.DestinationAddresses {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return none, invalidf("'%s' in DestinationAddresses is not an IP address", shorten(s))
		}
		t.Addresses = append(t.Addresses, addr)
	}
	for _, p := range in.DestinationPorts {
		t.Ports = append(t.Ports, port(&p))
	}
	_, err = c.cfg.Catalog.SetTraffic(ctx, t)
	return none, err
}
