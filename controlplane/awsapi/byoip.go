package awsapi

import (
	"context"
	"net/netip"

	"github.com/nearcast/nearcast/controlplane/byoip"
	"github.com/nearcast/nearcast/proto/model"
)

type cidrAuthorization struct {
	Message *string `shape:"required,len=0..255"`
	// AWS's model says 255, and its guide's signature of an RSA key of 2,048 bits has 344 characters.
	Signature *string `shape:"required,len=0..1024"`
}

type provisionCidr struct {
	Cidr                     *string            `shape:"required,len=0..255"`
	CidrAuthorizationContext *cidrAuthorization `shape:"required"`
}

type cidrRequest struct {
	Cidr *string `shape:"required,len=0..255"`
}

type byoipEventOut struct {
	Message   string
	Timestamp epoch
}

type byoipOut struct {
	Cidr   string
	State  string
	Events []byoipEventOut
}

type byoipAnswer struct{ ByoipCidr byoipOut }

// rangeOut tells a range's state. While not every node knows it, it is pending.
func rangeOut(r model.BYOIPRange, applied bool) byoipOut {
	out := byoipOut{Cidr: r.CIDR.String(), Events: []byoipEventOut{}}
	pending := ""
	switch {
	case r.State == model.BYOIPAdvertising:
		out.State, pending = "ADVERTISING", "PENDING_ADVERTISING"
	case r.State == model.BYOIPDeprovisioned:
		out.State, pending = "DEPROVISIONED", "PENDING_DEPROVISIONING"
	case r.Withdrawn():
		out.State, pending = "READY", "PENDING_WITHDRAWING"
	default:
		out.State, pending = "READY", "PENDING_PROVISIONING"
	}
	if !applied {
		out.State = pending
	}
	for _, e := range r.Events {
		out.Events = append(out.Events, byoipEventOut{e.Message, epoch(e.Time)})
	}
	return out
}

// changed answers a change: it is pending, however fast the nodes were, as clients expect.
func changed(r model.BYOIPRange, err error) (out byoipAnswer, _ error) {
	if err != nil {
		return out, err
	}
	return byoipAnswer{rangeOut(r, false)}, nil
}

func (c call) provisionCidr(ctx context.Context, in *provisionCidr) (out byoipAnswer, err error) {
	r := byoip.Request{Account: c.key.Account, Message: *in.CidrAuthorizationContext.Message,
		Signature: *in.CidrAuthorizationContext.Signature}
	if r.CIDR, err = cidr(in.Cidr); err != nil {
		return out, err
	}
	return changed(c.cfg.Catalog.ProvisionRange(ctx, c.key.Project, r))
}

// changeCidr makes an operation of one of the catalog's.
func (c call) changeCidr(ctx context.Context, in *cidrRequest,
	change func(context.Context, string, netip.Prefix) (model.BYOIPRange, error)) (out byoipAnswer, err error) {
	p, err := cidr(in.Cidr)
	if err != nil {
		return out, err
	}
	return changed(change(ctx, c.key.Project, p))
}

func (c call) advertiseCidr(ctx context.Context, in *cidrRequest) (byoipAnswer, error) {
	return c.changeCidr(ctx, in, c.cfg.Catalog.AdvertiseRange)
}

func (c call) withdrawCidr(ctx context.Context, in *cidrRequest) (byoipAnswer, error) {
	return c.changeCidr(ctx, in, c.cfg.Catalog.WithdrawRange)
}

func (c call) deprovisionCidr(ctx context.Context, in *cidrRequest) (byoipAnswer, error) {
	return c.changeCidr(ctx, in, c.cfg.Catalog.DeprovisionRange)
}

func (c call) listCidrs(ctx context.Context, in *listRequest) (map[string]any, error) {
	const listing = "ranges"
	p, err := page(listing, in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListRanges(ctx, c.key.Project, p)
	if err != nil {
		return nil, err
	}
	return pageAnswer("ByoipCidrs", listing, items, next,
		func(r model.BYOIPRange) byoipOut { return rangeOut(r, c.cfg.Applied(r.Revision)) }), nil
}
