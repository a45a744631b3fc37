package awsapi

import (
	"context"
	"net/netip"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// The requests and answers of custom routing; see shapes.go.

type createCustomListener struct {
	AcceleratorArn   *string     `shape:"required,len=0..255"`
	PortRanges       []portRange `shape:"required,items=1..10"`
	IdempotencyToken *string     `shape:"required,len=0..255"`
}

type updateCustomListener struct {
	ListenerArn *string     `shape:"required,len=0..255"`
	PortRanges  []portRange `shape:"required,items=1..10"`
}

type destinationConfiguration struct {
	FromPort  *int64   `shape:"required,range=1..65535"`
	ToPort    *int64   `shape:"required,range=1..65535"`
	Protocols []string `shape:"required,items=1..2,enum=TCP|UDP"`
}

type createCustomGroup struct {
	ListenerArn               *string                    `shape:"required,len=0..255"`
	EndpointGroupRegion       *string                    `shape:"required,len=0..255"`
	DestinationConfigurations []destinationConfiguration `shape:"required,items=1..100"`
	IdempotencyToken          *string                    `shape:"required,len=0..255"`
}

type customEndpointConfiguration struct {
	EndpointId    *string `shape:"len=0..255"`
	AttachmentArn *string `shape:"len=0..255"`
}

type addCustomEndpoints struct {
	EndpointConfigurations []customEndpointConfiguration `shape:"required,items=1..20"`
	EndpointGroupArn       *string                       `shape:"required,len=0..255"`
}

type removeCustomEndpoints struct {
	EndpointIds      []string `shape:"required,each=0..255"`
	EndpointGroupArn *string  `shape:"required,len=0..255"`
}

type destinations struct {
	EndpointGroupArn     *string  `shape:"required,len=0..255"`
	EndpointId           *string  `shape:"required,len=0..255"`
	DestinationAddresses []string `shape:"items=0..100,each=0..45"`
	DestinationPorts     []int64  `shape:"items=0..100,each=1..65535"`
}

type allowTraffic struct {
	destinations
	AllowAllTrafficToEndpoint *bool
}

type denyTraffic struct {
	destinations
	DenyAllTrafficToEndpoint *bool
}

type listMappings struct {
	AcceleratorArn   *string `shape:"required,len=0..255"`
	EndpointGroupArn *string `shape:"len=0..255"`
	MaxResults       *int64  `shape:"range=1..20000"`
	NextToken        *string `shape:"len=0..255"`
}

type listMappingsByDestination struct {
	EndpointId         *string `shape:"required,len=0..255"`
	DestinationAddress *string `shape:"required,len=0..255"`
	MaxResults         *int64  `shape:"range=1..20000"`
	NextToken          *string `shape:"len=0..255"`
}

type customListenerOut struct {
	ListenerArn string
	PortRanges  []portRangeOut
}

type destinationOut struct {
	FromPort, ToPort uint16
	Protocols        []string
}

type customEndpointOut struct{ EndpointId string }

type customGroupOut struct {
	EndpointGroupArn        string
	EndpointGroupRegion     string
	DestinationDescriptions []destinationOut
	EndpointDescriptions    []customEndpointOut
}

type socketAddress struct {
	IpAddress string
	Port      uint16
}

type portMappingOut struct {
	AcceleratorPort          uint16
	EndpointGroupArn         string
	EndpointId               string
	DestinationSocketAddress socketAddress
	Protocols                []string
	DestinationTrafficState  string
}

type destinationMappingOut struct {
	AcceleratorArn             string
	AcceleratorSocketAddresses []socketAddress
	EndpointGroupArn           string
	EndpointId                 string
	EndpointGroupRegion        string
	DestinationSocketAddress   socketAddress
	IpAddressType              string
	DestinationTrafficState    string
}

func protocolWords(p model.Protocol) (words []string) {
	for _, q := range []model.Protocol{model.TCP, model.UDP} {
		if p.Has(q) {
			words = append(words, q.String())
		}
	}
	return words
}

func trafficState(allowed bool) string {
	if allowed {
		return "ALLOW"
	}
	return "DENY"
}

// customAccelerator is accelerator for those of custom routing.
func (c call) customAccelerator(ctx context.Context, arn *string) (model.Accelerator, error) {
	return c.acceleratorOf(ctx, arn, model.CustomRouting)
}

func (c call) createCustomAccelerator(ctx context.Context, in *createAccelerator) (acceleratorAnswer, error) {
	return c.makeAccelerator(ctx, in, model.CustomRouting)
}

func (c call) describeCustomAccelerator(ctx context.Context, in *acceleratorRequest) (out acceleratorAnswer,
	err error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	return acceleratorAnswer{c.acceleratorOut(a)}, nil
}

func (c call) listCustomAccelerators(ctx context.Context, in *listRequest) (map[string]any, error) {
	return c.acceleratorPage(ctx, in, "custom-accelerators", model.CustomRouting)
}

func (c call) updateCustomAccelerator(ctx context.Context, in *updateAccelerator) (out acceleratorAnswer,
	err error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	return c.changeAccelerator(ctx, a, in)
}

func (c call) deleteCustomAccelerator(ctx context.Context, in *acceleratorRequest) (none nothing, err error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteAccelerator(ctx, a.ID, catalog.Options{})
}

func (c call) describeCustomAttributes(ctx context.Context, in *acceleratorRequest) (out attributesAnswer,
	err error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	return attributesOf(a), err
}

func (c call) updateCustomAttributes(ctx context.Context, in *updateAttributes) (out attributesAnswer, err error) {
	if _, err := c.customAccelerator(ctx, in.AcceleratorArn); err != nil {
		return out, err
	}
	return c.updateAttributes(ctx, in)
}

type customListenerAnswer struct{ Listener customListenerOut }

func (c call) customListenerOut(l model.Listener) customListenerOut {
	full := c.listenerOut(l)
	return customListenerOut{full.ListenerArn, full.PortRanges}
}

func (c call) customListener(ctx context.Context, arn *string) (model.Listener, error) {
	return c.listenerOf(ctx, arn, model.CustomRouting)
}

func (c call) createCustomListener(ctx context.Context, in *createCustomListener) (out customListenerAnswer,
	err error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	l, err := c.cfg.Catalog.CreateListener(ctx, model.Listener{
		Accelerator: a.ID, Protocol: model.TCPUDP, PortRanges: portRanges(in.PortRanges),
		TCPIdleTimeout: model.DefaultTCPIdleTimeout, UDPIdleTimeout: model.DefaultUDPIdleTimeout,
	}, catalog.Options{IdempotencyToken: *in.IdempotencyToken})
	if err != nil {
		return out, err
	}
	return customListenerAnswer{c.customListenerOut(l)}, nil
}

func (c call) describeCustomListener(ctx context.Context, in *listenerRequest) (out customListenerAnswer,
	err error) {
	l, err := c.customListener(ctx, in.ListenerArn)
	if err != nil {
		return out, err
	}
	return customListenerAnswer{c.customListenerOut(l)}, nil
}

func (c call) listCustomListeners(ctx context.Context, in *listListeners) (map[string]any, error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return nil, err
	}
	p, err := page("custom-listeners", in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListListeners(ctx, a.ID, p)
	if err != nil {
		return nil, err
	}
	return pageAnswer("Listeners", "custom-listeners", items, next, c.customListenerOut), nil
}

func (c call) updateCustomListener(ctx context.Context, in *updateCustomListener) (out customListenerAnswer,
	err error) {
	l, err := c.customListener(ctx, in.ListenerArn)
	if err != nil {
		return out, err
	}
	l, err = c.cfg.Catalog.UpdateListener(ctx, l.ID, catalog.Options{}, func(l *model.Listener) error {
		l.PortRanges = portRanges(in.PortRanges)
		return nil
	})
	if err != nil {
		return out, err
	}
	return customListenerAnswer{c.customListenerOut(l)}, nil
}

func (c call) deleteCustomListener(ctx context.Context, in *listenerRequest) (none nothing, err error) {
	l, err := c.customListener(ctx, in.ListenerArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteListener(ctx, l.ID, catalog.Options{})
}

// addressesOf are the socket addresses of one port of an accelerator.
func addressesOf(a model.Accelerator, port uint16) []socketAddress {
	out := []socketAddress{}
	for _, addr := range a.Addresses {
		out = append(out, socketAddress{addr.String(), port})
	}
	return out
}

func (c call) listMappings(ctx context.Context, in *listMappings) (map[string]any, error) {
	a, err := c.customAccelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return nil, err
	}
	var group model.GroupID
	if in.EndpointGroupArn != nil {
		g, r, err := c.customGroup(ctx, in.EndpointGroupArn)
		if err != nil {
			return nil, err
		}
		if r.accelerator != a.ID {
			return nil, faultf(exGroup, "Endpoint group %s is not of the accelerator", shorten(*in.EndpointGroupArn))
		}
		group = g.ID
	}
	p, err := page("mappings", in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListPortMappings(ctx, a.ID, group, p)
	if err != nil {
		return nil, err
	}
	return pageAnswer("PortMappings", "mappings", items, next, func(m catalog.RoutedPort) portMappingOut {
		return portMappingOut{AcceleratorPort: m.Port,
			EndpointGroupArn: groupARN(c.key.Account, a.ID, m.Listener, m.Group), EndpointId: string(m.Subnet),
			DestinationSocketAddress: socketAddress{m.Destination.Addr().String(), m.Destination.Port()},
			Protocols:                protocolWords(m.Protocol), DestinationTrafficState: trafficState(m.Allowed)}
	}), nil
}

func (c call) listMappingsByDestination(ctx context.Context,
	in *listMappingsByDestination) (map[string]any, error) {
	addr, err := netip.ParseAddr(*in.DestinationAddress)
	if err != nil {
		return nil, invalidf("'%s' is not an IP address", shorten(*in.DestinationAddress))
	}
	p, err := page("destinations", in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListPortMappingsOf(ctx, c.key.Project, model.SubnetName(*in.EndpointId),
		addr, p)
	if err != nil {
		return nil, err
	}
	accelerators := map[model.AcceleratorID]model.Accelerator{}
	for _, m := range items {
		if _, known := accelerators[m.Accelerator]; !known {
			if accelerators[m.Accelerator], err = c.cfg.Catalog.Accelerator(ctx, m.Accelerator); err != nil {
				return nil, err
			}
		}
	}
	return pageAnswer("DestinationPortMappings", "destinations", items, next,
		func(m catalog.RoutedPort) destinationMappingOut {
			return destinationMappingOut{
				AcceleratorArn:             acceleratorARN(c.key.Account, m.Accelerator),
				AcceleratorSocketAddresses: addressesOf(accelerators[m.Accelerator], m.Port),
				EndpointGroupArn:           groupARN(c.key.Account, m.Accelerator, m.Listener, m.Group),
				EndpointId:                 string(m.Subnet), EndpointGroupRegion: string(m.Region),
				DestinationSocketAddress: socketAddress{m.Destination.Addr().String(), m.Destination.Port()},
				IpAddressType:            "IPV4", DestinationTrafficState: trafficState(m.Allowed)}
		}), nil
}
