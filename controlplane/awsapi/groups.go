package awsapi

import (
	"context"
	"slices"
	"time"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// group returns the endpoint group that an ARN names, if it is the caller's, and the ARN's parts.
func (c call) group(ctx context.Context, arn *string) (model.EndpointGroup, resource, error) {
	r, ok := parseARN(text(arn))
	if !ok || r.group == "" {
		return model.EndpointGroup{}, r, invalidf("'%s' is not a valid endpoint group ARN", shorten(text(arn)))
	}
	notFound := faultf(exGroup, "Endpoint group %s does not exist", shorten(text(arn)))
	if _, err := c.ownListener(ctx, r, model.Standard); err != nil {
		if f, ok := err.(*fault); ok && f.code == exListener {
			return model.EndpointGroup{}, r, notFound
		}
		return model.EndpointGroup{}, r, err
	}
	g, err := c.cfg.Catalog.Group(ctx, r.group)
	if err != nil && catalog.CodeOf(err) == catalog.NotFound || err == nil && g.Listener != r.listener {
		return model.EndpointGroup{}, r, notFound
	}
	return g, r, err
}

type groupAnswer struct{ EndpointGroup groupOut }

func (c call) groupOut(a model.AcceleratorID, g model.EndpointGroup) groupOut {
	hc := g.HealthCheck
	out := groupOut{
		EndpointGroupArn:    groupARN(c.key.Account, a, g.Listener, g.ID),
		EndpointGroupRegion: string(g.Region), EndpointDescriptions: []endpointOut{},
		TrafficDialPercentage: g.TrafficDial, HealthCheckPort: hc.Port,
		HealthCheckProtocol:        word(healthChecks, hc.Protocol),
		HealthCheckIntervalSeconds: int(hc.Interval / time.Second), ThresholdCount: hc.UnhealthyThreshold,
		PortOverrides: []portOverrideOut{},
	}
	if hc.Protocol != model.HealthTCP {
		out.HealthCheckPath = hc.Path
	}
	for _, o := range g.PortOverrides {
		out.PortOverrides = append(out.PortOverrides, portOverrideOut{o.ListenerPort, o.EndpointPort})
	}
	for _, e := range g.Endpoints {
		out.EndpointDescriptions = append(out.EndpointDescriptions, c.endpointOut(g.ID, e))
	}
	return out
}

var healthWords = map[model.HealthState]string{
	model.HealthInitial: "INITIAL", model.HealthHealthy: "HEALTHY", model.HealthUnhealthy: "UNHEALTHY"}

const reasonMax = 255 // of HealthReason

func (c call) endpointOut(g model.GroupID, e model.Endpoint) endpointOut {
	state, reason := c.cfg.Health(g, e.ID)
	if r := []rune(reason); len(r) > reasonMax {
		reason = string(r[:reasonMax])
	}
	return endpointOut{
		EndpointId: string(e.ID), Weight: e.Weight, HealthState: healthWords[state], HealthReason: reason,
		ClientIPPreservationEnabled: e.ClientAddress == model.ClientAddressTransparent,
	}
}

// endpoints converts configurations. before are the endpoints that are there: what AWS's API has no
// member for, a PROXY protocol header to an endpoint, stays as it is.
func endpoints(in []endpointConfiguration, before []model.Endpoint) []model.Endpoint {
	out := make([]model.Endpoint, len(in))
	for i, config := range in {
		e := model.Endpoint{ID: model.EndpointID(text(config.EndpointId)), Weight: model.DefaultWeight}
		if at := slices.IndexFunc(before, func(b model.Endpoint) bool { return b.ID == e.ID }); at >= 0 {
			e.ClientAddress = before[at].ClientAddress
		}
		if config.Weight != nil {
			e.Weight = uint8(*config.Weight)
		}
		switch keep := config.ClientIPPreservationEnabled; {
		case keep != nil && *keep:
			e.ClientAddress = model.ClientAddressTransparent
		case keep != nil && e.ClientAddress == model.ClientAddressTransparent:
			e.ClientAddress = model.ClientAddressNone
		}
		out[i] = e
	}
	return out
}

// apply changes what members name and leaves what they do not. An empty list is one that is named.
func (m *groupMembers) apply(g *model.EndpointGroup) error {
	if m.EndpointConfigurations != nil {
		g.Endpoints = endpoints(m.EndpointConfigurations, g.Endpoints)
	}
	if m.PortOverrides != nil {
		g.PortOverrides = nil
		for _, o := range m.PortOverrides {
			g.PortOverrides = append(g.PortOverrides,
				model.PortOverride{ListenerPort: port(o.ListenerPort), EndpointPort: port(o.EndpointPort)})
		}
	}
	set(&g.TrafficDial, m.TrafficDialPercentage)
	hc := &g.HealthCheck
	if m.HealthCheckPort != nil {
		hc.Port = uint16(*m.HealthCheckPort)
	}
	setWord(&hc.Protocol, healthChecks, m.HealthCheckProtocol)
	if text(m.HealthCheckPath) != "" { // clients send back the empty path that they read of a TCP check
		hc.Path = *m.HealthCheckPath
	}
	if m.ThresholdCount != nil {
		hc.HealthyThreshold, hc.UnhealthyThreshold = int(*m.ThresholdCount), int(*m.ThresholdCount)
	}
	if s := m.HealthCheckIntervalSeconds; s != nil {
		interval := time.Duration(*s) * time.Second
		// AWS's only two. Another one comes from our own API, and a client that sends back what it read
		// means no change.
		if *s != 10 && *s != 30 && interval != hc.Interval {
			return invalidf("HealthCheckIntervalSeconds is %d; it can be 10 or 30", *s)
		}
		hc.Interval = interval
		hc.Timeout = min(hc.Timeout, interval)
	}
	return nil
}

func (c call) createGroup(ctx context.Context, in *createGroup) (out groupAnswer, err error) {
	l, err := c.listener(ctx, in.ListenerArn)
	if err != nil {
		return out, err
	}
	g := model.EndpointGroup{
		Listener: l.ID, Region: model.RegionName(*in.EndpointGroupRegion), TrafficDial: model.DefaultTrafficDial,
		HealthCheck: model.HealthCheck{
			Path: model.DefaultHealthPath, Interval: model.DefaultHealthInterval, Timeout: model.DefaultHealthTimeout,
			HealthyThreshold: model.DefaultHealthThreshold, UnhealthyThreshold: model.DefaultHealthThreshold,
			ExpectedCodes: model.DefaultExpectedCodes,
		},
	}
	if err := in.apply(&g); err != nil {
		return out, err
	}
	if err := c.checkAttachments(ctx, l.Accelerator, in.EndpointConfigurations); err != nil {
		return out, err
	}
	g, err = c.cfg.Catalog.CreateGroup(ctx, g, catalog.Options{IdempotencyToken: *in.IdempotencyToken})
	if err != nil {
		return out, err
	}
	return groupAnswer{c.groupOut(l.Accelerator, g)}, nil
}

func (c call) describeGroup(ctx context.Context, in *groupRequest) (out groupAnswer, err error) {
	g, r, err := c.group(ctx, in.EndpointGroupArn)
	if err != nil {
		return out, err
	}
	return groupAnswer{c.groupOut(r.accelerator, g)}, nil
}

func (c call) listGroups(ctx context.Context, in *listGroups) (map[string]any, error) {
	l, err := c.listener(ctx, in.ListenerArn)
	if err != nil {
		return nil, err
	}
	p, err := page("groups", in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListGroups(ctx, l.ID, p)
	if err != nil {
		return nil, err
	}
	return pageAnswer("EndpointGroups", "groups", items, next,
		func(g model.EndpointGroup) groupOut { return c.groupOut(l.Accelerator, g) }), nil
}

func (c call) updateGroup(ctx context.Context, in *updateGroup) (out groupAnswer, err error) {
	g, r, err := c.group(ctx, in.EndpointGroupArn)
	if err != nil {
		return out, err
	}
	if err := c.checkAttachments(ctx, r.accelerator, in.EndpointConfigurations); err != nil {
		return out, err
	}
	// Forced: AWS's clients replace the whole list and mean it, also when it is empty.
	g, err = c.cfg.Catalog.UpdateGroup(ctx, g.ID, catalog.Options{Force: true}, in.apply)
	if err != nil {
		return out, err
	}
	return groupAnswer{c.groupOut(r.accelerator, g)}, nil
}

func (c call) deleteGroup(ctx context.Context, in *groupRequest) (none nothing, err error) {
	g, _, err := c.group(ctx, in.EndpointGroupArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteGroup(ctx, g.ID, catalog.Options{})
}

type endpointsAnswer struct {
	EndpointDescriptions []endpointOut
	EndpointGroupArn     string
}

func (c call) addEndpoints(ctx context.Context, in *addEndpoints) (out endpointsAnswer, err error) {
	g, r, err := c.group(ctx, in.EndpointGroupArn)
	if err != nil {
		return out, err
	}
	if err := c.checkAttachments(ctx, r.accelerator, in.EndpointConfigurations); err != nil {
		return out, err
	}
	list := endpoints(in.EndpointConfigurations, nil)
	if len(list) > 0 {
		if g, err = c.cfg.Catalog.AddEndpoints(ctx, g.ID, list, catalog.Options{}); err != nil {
			return out, err
		}
	}
	out = endpointsAnswer{[]endpointOut{}, groupARN(c.key.Account, r.accelerator, r.listener, r.group)}
	for _, e := range list {
		out.EndpointDescriptions = append(out.EndpointDescriptions, c.endpointOut(g.ID, e))
	}
	return out, nil
}

func (c call) removeEndpoints(ctx context.Context, in *removeEndpoints) (none nothing, err error) {
	g, _, err := c.group(ctx, in.EndpointGroupArn)
	if err != nil {
		return none, err
	}
	ids := make([]model.EndpointID, len(in.EndpointIdentifiers))
	for i, want := range in.EndpointIdentifiers {
		ids[i] = model.EndpointID(*want.EndpointId)
		for _, e := range g.Endpoints {
			kept := e.ClientAddress == model.ClientAddressTransparent
			if flag := want.ClientIPPreservationEnabled; e.ID == ids[i] && flag != nil && *flag != kept {
				return none, invalidf("endpoint %s with ClientIPPreservationEnabled=%v is not in the group", e.ID, *flag)
			}
		}
	}
	_, err = c.cfg.Catalog.RemoveEndpoints(ctx, g.ID, ids, catalog.Options{Force: true})
	return none, err
}
