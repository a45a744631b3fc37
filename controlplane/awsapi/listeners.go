package awsapi

import (
	"context"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// listener returns the listener that an ARN names, if it is the caller's.
func (c call) listener(ctx context.Context, arn *string) (model.Listener, error) {
	return c.listenerOf(ctx, arn, model.Standard)
}

func (c call) listenerOf(ctx context.Context, arn *string, types ...model.AcceleratorType) (model.Listener, error) {
	r, ok := parseARN(text(arn))
	if !ok || r.listener == "" || r.group != "" {
		return model.Listener{}, invalidf("'%s' is not a valid listener ARN", shorten(text(arn)))
	}
	return c.ownListener(ctx, r, types...)
}

func (c call) ownListener(ctx context.Context, r resource, types ...model.AcceleratorType) (model.Listener, error) {
	notFound := faultf(exListener, "Listener %s does not exist", listenerARN(r.account, r.accelerator, r.listener))
	if _, err := c.ownAccelerator(ctx, r, types...); err != nil {
		if f, ok := err.(*fault); ok && f.code == exAccelerator {
			return model.Listener{}, notFound
		}
		return model.Listener{}, err
	}
	l, err := c.cfg.Catalog.Listener(ctx, r.listener)
	if err != nil && catalog.CodeOf(err) == catalog.NotFound || err == nil && l.Accelerator != r.accelerator {
		return model.Listener{}, notFound
	}
	return l, err
}

type listenerAnswer struct{ Listener listenerOut }

func (c call) listenerOut(l model.Listener) listenerOut {
	out := listenerOut{
		ListenerArn: listenerARN(c.key.Account, l.Accelerator, l.ID), Protocol: l.Protocol.String(),
		ClientAffinity: word(affinities, l.Affinity),
	}
	for _, r := range l.PortRanges {
		out.PortRanges = append(out.PortRanges, portRangeOut{r.From, r.To})
	}
	return out
}

// portRanges converts ranges whose ports are known to be ports; one that is left out is 0, which the
// catalog refuses.
func portRanges(in []portRange) (out []model.PortRange) {
	for _, r := range in {
		out = append(out, model.PortRange{From: port(r.FromPort), To: port(r.ToPort)})
	}
	return out
}

func port(p *int64) uint16 {
	if p == nil {
		return 0
	}
	return uint16(*p)
}

func (c call) createListener(ctx context.Context, in *createListener) (out listenerAnswer, err error) {
	a, err := c.accelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	l := model.Listener{
		Accelerator: a.ID, Protocol: protocols[*in.Protocol], PortRanges: portRanges(in.PortRanges),
		TCPIdleTimeout: model.DefaultTCPIdleTimeout, UDPIdleTimeout: model.DefaultUDPIdleTimeout,
	}
	setWord(&l.Affinity, affinities, in.ClientAffinity)
	l, err = c.cfg.Catalog.CreateListener(ctx, l, catalog.Options{IdempotencyToken: *in.IdempotencyToken})
	if err != nil {
		return out, err
	}
	return listenerAnswer{c.listenerOut(l)}, nil
}

func (c call) describeListener(ctx context.Context, in *listenerRequest) (out listenerAnswer, err error) {
	l, err := c.listener(ctx, in.ListenerArn)
	if err != nil {
		return out, err
	}
	return listenerAnswer{c.listenerOut(l)}, nil
}

func (c call) listListeners(ctx context.Context, in *listListeners) (map[string]any, error) {
	a, err := c.accelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return nil, err
	}
	p, err := page("listeners", in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListListeners(ctx, a.ID, p)
	if err != nil {
		return nil, err
	}
	return pageAnswer("Listeners", "listeners", items, next, c.listenerOut), nil
}

func (c call) updateListener(ctx context.Context, in *updateListener) (out listenerAnswer, err error) {
	l, err := c.listener(ctx, in.ListenerArn)
	if err != nil {
		return out, err
	}
	l, err = c.cfg.Catalog.UpdateListener(ctx, l.ID, catalog.Options{}, func(l *model.Listener) error {
		if in.PortRanges != nil {
			l.PortRanges = portRanges(in.PortRanges)
		}
		setWord(&l.Protocol, protocols, in.Protocol)
		setWord(&l.Affinity, affinities, in.ClientAffinity)
		return nil
	})
	if err != nil {
		return out, err
	}
	return listenerAnswer{c.listenerOut(l)}, nil
}

func (c call) deleteListener(ctx context.Context, in *listenerRequest) (none nothing, err error) {
	l, err := c.listener(ctx, in.ListenerArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteListener(ctx, l.ID, catalog.Options{})
}
