package awsapi

import (
	"context"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

var (
	addressTypes = map[string]model.IPAddressType{"IPV4": model.IPv4, "DUAL_STACK": model.DualStack}
	affinities   = map[string]model.Affinity{"NONE": model.AffinityNone, "SOURCE_IP": model.AffinitySourceIP}
	protocols    = map[string]model.Protocol{"TCP": model.TCP, "UDP": model.UDP}
	healthChecks = map[string]model.HealthProtocol{
		"TCP": model.HealthTCP, "HTTP": model.HealthHTTP, "HTTPS": model.HealthHTTPS}
)

// word is the inverse of such a table.
func word[E comparable](table map[string]E, value E) string {
	for w, v := range table {
		if v == value {
			return w
		}
	}
	return ""
}

// set changes what a request names and leaves what it does not.
func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// setWord is set for enums.
func setWord[E any](to *E, table map[string]E, from *string) {
	if from != nil {
		*to = table[*from]
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// accelerator returns the standard accelerator that an ARN names, if it is the caller's.
func (c call) accelerator(ctx context.Context, arn *string) (model.Accelerator, error) {
	return c.acceleratorOf(ctx, arn, model.Standard)
}

// acceleratorOf is accelerator for certain types, or for all if none is named.
func (c call) acceleratorOf(ctx context.Context, arn *string,
	types ...model.AcceleratorType) (model.Accelerator, error) {
	r, ok := parseARN(text(arn))
	if !ok || r.accelerator == "" || r.listener != "" {
		return model.Accelerator{}, invalidf("'%s' is not a valid accelerator ARN", shorten(text(arn)))
	}
	return c.ownAccelerator(ctx, r, types...)
}

// ownAccelerator returns the accelerator of r. What belongs to others does not exist for the caller.
func (c call) ownAccelerator(ctx context.Context, r resource,
	types ...model.AcceleratorType) (model.Accelerator, error) {
	notFound := faultf(exAccelerator, "Accelerator %s does not exist", acceleratorARN(r.account, r.accelerator))
	if r.account != c.key.Account {
		return model.Accelerator{}, notFound
	}
	a, err := c.cfg.Catalog.Accelerator(ctx, r.accelerator)
	if catalog.CodeOf(err) == catalog.NotFound && err != nil || err == nil && a.Project != c.key.Project {
		return model.Accelerator{}, notFound
	}
	if err == nil && len(types) > 0 && !slices.Contains(types, a.Type) {
		return model.Accelerator{}, notFound // operations on one type do not see the other
	}
	return a, err
}

type acceleratorAnswer struct{ Accelerator acceleratorOut }

func (c call) acceleratorOut(a model.Accelerator) acceleratorOut {
	out := acceleratorOut{
		AcceleratorArn: acceleratorARN(c.key.Account, a.ID), Name: a.Name, Enabled: a.Enabled,
		IpAddressType: word(addressTypes, a.IPAddressType), IpSets: []ipSet{}, DnsName: a.DNSName,
		Status: "IN_PROGRESS", CreatedTime: epoch(a.Created), LastModifiedTime: epoch(a.Modified),
	}
	if c.cfg.Deployed(a) {
		out.Status = "DEPLOYED"
	}
	if a.IPAddressType == model.DualStack {
		out.DualStackDnsName = a.DNSName
	}
	for _, family := range []struct {
		name string
		of   func(netip.Addr) bool
	}{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}} {
		set := ipSet{IpFamily: family.name, IpAddressFamily: family.name}
		for _, addr := range a.Addresses {
			if family.of(addr) {
				set.IpAddresses = append(set.IpAddresses, addr.String())
			}
		}
		if len(set.IpAddresses) > 0 {
			out.IpSets = append(out.IpSets, set)
		}
	}
	return out
}

func addresses(list []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range list {
		addr, err := netip.ParseAddr(s)
		if err != nil || !addr.Is4() {
			return nil, invalidf("'%s' in IpAddresses is not an IPv4 address", shorten(s))
		}
		out = append(out, addr)
	}
	return out, nil
}

func (c call) createAccelerator(ctx context.Context, in *createAccelerator) (acceleratorAnswer, error) {
	return c.makeAccelerator(ctx, in, model.Standard)
}

func (c call) makeAccelerator(ctx context.Context, in *createAccelerator,
	of model.AcceleratorType) (out acceleratorAnswer, err error) {
	a := model.Accelerator{Name: *in.Name, Enabled: true, Project: c.key.Project, Type: of}
	set(&a.Enabled, in.Enabled)
	setWord(&a.IPAddressType, addressTypes, in.IpAddressType)
	if a.Addresses, err = addresses(in.IpAddresses); err != nil {
		return out, err
	}
	if a.Tags, err = tagsFrom(in.Tags); err != nil {
		return out, err
	}
	a, err = c.cfg.Catalog.CreateAccelerator(ctx, a, catalog.Options{IdempotencyToken: *in.IdempotencyToken})
	if err != nil {
		return out, err
	}
	out.Accelerator = c.acceleratorOut(a)
	out.Accelerator.Status = "IN_PROGRESS" // whatever the fleet did meanwhile: clients expect it here
	return out, nil
}

func (c call) describeAccelerator(ctx context.Context, in *acceleratorRequest) (out acceleratorAnswer, err error) {
	a, err := c.accelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	out.Accelerator = c.acceleratorOut(a)
	return out, nil
}

func (c call) listAccelerators(ctx context.Context, in *listRequest) (map[string]any, error) {
	return c.acceleratorPage(ctx, in, "accelerators", model.Standard)
}

func (c call) acceleratorPage(ctx context.Context, in *listRequest, listing string,
	of model.AcceleratorType) (map[string]any, error) {
	p, err := page(listing, in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListAcceleratorsOf(ctx, c.key.Project, p, of)
	if err != nil {
		return nil, err
	}
	return pageAnswer("Accelerators", listing, items, next, c.acceleratorOut), nil
}

func (c call) updateAccelerator(ctx context.Context, in *updateAccelerator) (out acceleratorAnswer, err error) {
	a, err := c.accelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	return c.changeAccelerator(ctx, a, in)
}

func (c call) changeAccelerator(ctx context.Context, a model.Accelerator,
	in *updateAccelerator) (out acceleratorAnswer, err error) {
	want, err := addresses(in.IpAddresses)
	if err != nil {
		return out, err
	}
	a, err = c.cfg.Catalog.UpdateAccelerator(ctx, a.ID, catalog.Options{}, func(a *model.Accelerator) error {
		set(&a.Name, in.Name)
		set(&a.Enabled, in.Enabled)
		setWord(&a.IPAddressType, addressTypes, in.IpAddressType)
		for _, addr := range want {
			if !slices.Contains(a.Addresses, addr) {
				return faultf(exConflict, "the accelerator does not have the address %v, and its addresses are "+
					"not exchanged while it exists", addr)
			}
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	out.Accelerator = c.acceleratorOut(a)
	return out, nil
}

func (c call) deleteAccelerator(ctx context.Context, in *acceleratorRequest) (none nothing, err error) {
	a, err := c.accelerator(ctx, in.AcceleratorArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteAccelerator(ctx, a.ID, catalog.Options{})
}

type attributesAnswer struct{ AcceleratorAttributes attributesOut }

func attributesOf(a model.Accelerator) attributesAnswer {
	f := a.FlowLogs
	return attributesAnswer{attributesOut{f.Enabled, f.Bucket, f.Prefix}}
}

// describeAttributes is for both types: Terraform asks for those of custom routing accelerators so.
func (c call) describeAttributes(ctx context.Context, in *acceleratorRequest) (out attributesAnswer, err error) {
	a, err := c.acceleratorOf(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	return attributesOf(a), nil
}

func (c call) updateAttributes(ctx context.Context, in *updateAttributes) (out attributesAnswer, err error) {
	a, err := c.acceleratorOf(ctx, in.AcceleratorArn)
	if err != nil {
		return out, err
	}
	a, err = c.cfg.Catalog.UpdateAccelerator(ctx, a.ID, catalog.Options{}, func(a *model.Accelerator) error {
		set(&a.FlowLogs.Enabled, in.FlowLogsEnabled)
		set(&a.FlowLogs.Bucket, in.FlowLogsS3Bucket)
		set(&a.FlowLogs.Prefix, in.FlowLogsS3Prefix)
		return nil
	})
	if err != nil {
		return out, err
	}
	return attributesOf(a), nil
}
