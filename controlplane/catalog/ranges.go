package catalog

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/controlplane/byoip"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Ranges that projects bring go this way:
//
//	provision ─▶ READY ─ advertise ─▶ ADVERTISING ─ withdraw ─▶ READY ─ deprovision ─▶ DEPROVISIONED
//
// From provision to deprovision a range is an anycast pool of its own zone, so that an accelerator can have one
// of its addresses and one of another pool. It is withheld from announcement unless it is advertised.

var rangeKind = &kind[string, model.BYOIPRange]{
	name: "range", prefix: "byoip-ranges/", missing: ReasonRangeNotFound,
	key:      func(r *model.BYOIPRange) string { return rangeKey(r.CIDR) },
	revision: func(r *model.BYOIPRange) *uint64 { return &r.Revision },
	clone:    func(r model.BYOIPRange) model.BYOIPRange { r.Events = slices.Clone(r.Events); return r },
	encode:   encoder(func(r model.BYOIPRange) *pb.ByoipRange { r.Revision = 0; return model.BYOIPRangeToProto(r) }),
	decode:   decoder(model.BYOIPRangeFromProto),
}

var recordKind = &kind[string, model.RangeRecord]{
	name: "range record", prefix: "range-records/", missing: ReasonRangeNotFound,
	key:      func(r *model.RangeRecord) string { return rangeKey(r.CIDR) },
	revision: func(r *model.RangeRecord) *uint64 { return &r.Revision },
	clone:    func(r model.RangeRecord) model.RangeRecord { return r },
	encode:   encoder(func(r model.RangeRecord) *pb.RangeRecord { r.Revision = 0; return model.RangeRecordToProto(r) }),
	decode:   decoder(model.RangeRecordFromProto),
}

// rangeKey writes a network so that it can be part of a key and of a pool's name.
func rangeKey(p netip.Prefix) string {
	return strings.NewReplacer("/", "-", ":", "_").Replace(p.String())
}

func rangesTable(o *objects) *table[string, model.BYOIPRange]   { return &o.ranges }
func recordsTable(o *objects) *table[string, model.RangeRecord] { return &o.records }

// SetRangeRecord makes a record of who may sign for a network, or replaces the one that there is.
func (c *Catalog) SetRangeRecord(ctx context.Context, r model.RangeRecord) (model.RangeRecord, error) {
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(model.CheckRange("record.cidr", r.CIDR)); err != nil {
			return err
		}
		if _, err := byoip.ParseDocument(r.Document, r.CIDR); err != nil {
			return field(ReasonNone, "record.document", "%v", err)
		}
		return put(ch, &ch.records, r)
	})
	if err != nil {
		return model.RangeRecord{}, err
	}
	return get(c, ctx, recordsTable, rangeKey(r.CIDR), plain(recordKind))
}

// ListRangeRecords returns a page.
func (c *Catalog) ListRangeRecords(ctx context.Context, p PageOptions) ([]model.RangeRecord, string, error) {
	return list(c, ctx, p, recordsTable, nil, plain(recordKind))
}

// DeleteRangeRecord removes a record. Ranges that were brought by it stay.
func (c *Catalog) DeleteRangeRecord(ctx context.Context, cidr netip.Prefix, o Options) error {
	return c.change(ctx, func(ch *change) error {
		r, err := ch.records.need(rangeKey(cidr))
		if err != nil {
			return err
		}
		if err := expect(o, recordKind.name, cidr.String(), r.Revision); err != nil {
			return err
		}
		remove(ch, &ch.records, rangeKey(cidr))
		return nil
	})
}

// ProvisionRange brings a range for a project, whose account r names. The record that says who may sign for it
// must be there.
func (c *Catalog) ProvisionRange(ctx context.Context, project string, r byoip.Request) (model.BYOIPRange, error) {
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(model.CheckRange("cidr", r.CIDR)); err != nil {
			return err
		}
		if before := ch.ranges.get(rangeKey(r.CIDR)); before != nil && before.State != model.BYOIPDeprovisioned {
			return precondition(ReasonRangeState, "range %v is provisioned already", r.CIDR)
		}
		if err := ch.checkAuthorized(r); err != nil {
			return err
		}
		n := 0
		for other := range ch.ranges.all() {
			if other.Project == project && other.State != model.BYOIPDeprovisioned {
				n++
			}
		}
		if s := ch.settings(); n >= s.BYOIPRangesMax {
			return limit("byoip_ranges_max", s.BYOIPRangesMax, "ranges that a project brings")
		}
		name := model.PoolName("byoip-" + rangeKey(r.CIDR))
		pool := model.Pool{Name: name, Kind: model.PoolAnycast, Zone: string(name), Prefixes: []netip.Prefix{r.CIDR},
			Project: project, Withheld: true}
		if err := invalid(pool.Validate()); err != nil {
			return err
		}
		if ch.pools.get(name) != nil {
			return exists(ReasonNone, "there is a pool %q already", name)
		}
		if err := ch.putPool(pool); err != nil {
			return err
		}
		return ch.putRange(model.BYOIPRange{CIDR: r.CIDR, Project: project, State: model.BYOIPReady, Pool: name},
			"provisioned: its owner has signed for account "+r.Account)
	})
	if err != nil {
		return model.BYOIPRange{}, err
	}
	return c.Range(ctx, r.CIDR)
}

// checkAuthorized looks for a record that holds the range, the longest one, and checks the message by it.
func (ch *change) checkAuthorized(r byoip.Request) error {
	var record *model.RangeRecord
	for candidate := range ch.records.all() {
		if candidate.CIDR.Overlaps(r.CIDR) && candidate.CIDR.Bits() <= r.CIDR.Bits() &&
			(record == nil || candidate.CIDR.Bits() > record.CIDR.Bits()) {
			record = candidate
		}
	}
	if record == nil {
		return field(ReasonNone, "cidr", "there is no record of who may sign for %v; an administrator gives it: "+
			"nearcast byoip record set", r.CIDR)
	}
	signers, err := byoip.ParseDocument(record.Document, record.CIDR)
	if err != nil {
		return &Error{Code: Internal, Err: err, Message: fmt.Sprintf("record of %v: %v", record.CIDR, err)}
	}
	switch err := signers.Verify(r, ch.now); {
	case err == nil:
		return nil
	case errors.Is(err, byoip.ErrSignature):
		return field(ReasonNone, "signature", "%v", err)
	default:
		return field(ReasonNone, "message", "%v", err)
	}
}

// putRange stages a range in a state that begins now.
func (ch *change) putRange(r model.BYOIPRange, event string) error {
	r = rangeKind.clone(r)
	r.Events = slices.Insert(r.Events, 0, model.BYOIPEvent{Time: ch.now, Message: event})
	r.Events = r.Events[:min(len(r.Events), model.BYOIPEventsMax)]
	return put(ch, &ch.ranges, r)
}

// AdvertiseRange has sites announce a range that is ready, and accelerators get its addresses.
func (c *Catalog) AdvertiseRange(ctx context.Context, project string, cidr netip.Prefix) (model.BYOIPRange, error) {
	return c.changeRange(ctx, project, cidr, model.BYOIPReady, func(ch *change, r *model.BYOIPRange) error {
		r.State = model.BYOIPAdvertising
		return ch.withhold(r, false, "advertised")
	})
}

// WithdrawRange has nobody announce a range that no accelerator uses.
func (c *Catalog) WithdrawRange(ctx context.Context, project string, cidr netip.Prefix) (model.BYOIPRange, error) {
	return c.changeRange(ctx, project, cidr, model.BYOIPAdvertising, func(ch *change, r *model.BYOIPRange) error {
		for _, a := range inOrder(ch.accelerators.all(), acceleratorKind.key) {
			if slices.Contains(a.Pools, r.Pool) {
				return precondition(ReasonRangeState, "accelerator %s has an address of range %v", a.ID, r.CIDR)
			}
		}
		r.State = model.BYOIPReady
		return ch.withhold(r, true, "withdrawn")
	})
}

func (ch *change) withhold(r *model.BYOIPRange, withheld bool, event string) error {
	p, err := ch.pools.need(r.Pool)
	if err != nil {
		return err
	}
	pool := poolKind.clone(*p)
	pool.Withheld = withheld
	if err := put(ch, &ch.pools, pool); err != nil {
		return err
	}
	return ch.putRange(*r, event)
}

// DeprovisionRange gives a range back that is not advertised.
func (c *Catalog) DeprovisionRange(ctx context.Context, project string, cidr netip.Prefix) (model.BYOIPRange, error) {
	return c.changeRange(ctx, project, cidr, model.BYOIPReady, func(ch *change, r *model.BYOIPRange) error {
		for _, a := range inOrder(ch.attachments.all(), attachmentKind.key) {
			for _, shared := range a.Resources {
				if shared.CIDR.IsValid() && shared.CIDR.Overlaps(r.CIDR) {
					return precondition(ReasonRangeState, "attachment %s shares %v; remove it there first", a.ID, shared.CIDR)
				}
			}
		}
		for _, s := range inOrder(ch.sites.all(), siteKind.key) {
			if s.BGP != nil && slices.Contains(s.BGP.Pools, r.Pool) {
				return precondition(ReasonInUse, "site %s announces pool %s", s.Name, r.Pool)
			}
		}
		remove(ch, &ch.pools, r.Pool)
		r.State, r.Pool = model.BYOIPDeprovisioned, ""
		if err := ch.putRange(*r, "deprovisioned"); err != nil {
			return err
		}
		return ch.forgetRanges(r.Project)
	})
}

// forgetRanges drops all but a project's newest records of ranges that were given back.
func (ch *change) forgetRanges(project string) error {
	var ended []*model.BYOIPRange
	for r := range ch.ranges.all() {
		if r.Project == project && r.State == model.BYOIPDeprovisioned {
			ended = append(ended, r)
		}
	}
	slices.SortFunc(ended, func(a, b *model.BYOIPRange) int { return b.Events[0].Time.Compare(a.Events[0].Time) })
	for _, r := range ended[min(len(ended), deprovisionedMax):] {
		remove(ch, &ch.ranges, rangeKey(r.CIDR))
	}
	return nil
}

// changeRange lets step take a range of a project from the state that it must be in to another one.
func (c *Catalog) changeRange(ctx context.Context, project string, cidr netip.Prefix, from model.BYOIPState,
	step func(*change, *model.BYOIPRange) error) (model.BYOIPRange, error) {
	words := map[model.BYOIPState]string{model.BYOIPReady: "READY", model.BYOIPAdvertising: "ADVERTISING",
		model.BYOIPDeprovisioned: "DEPROVISIONED"}
	err := c.change(ctx, func(ch *change) error {
		before := ch.ranges.get(rangeKey(cidr))
		switch {
		case before == nil || before.Project != project:
			return notFound(ReasonRangeNotFound, rangeKind.name, cidr.String())
		case before.State != from:
			return precondition(ReasonRangeState, "range %v is %s; it must be %s for that", cidr, words[before.State], words[from])
		}
		r := rangeKind.clone(*before)
		return step(ch, &r)
	})
	if err != nil {
		return model.BYOIPRange{}, err
	}
	return c.Range(ctx, cidr)
}

// Range returns one.
func (c *Catalog) Range(ctx context.Context, cidr netip.Prefix) (model.BYOIPRange, error) {
	return get(c, ctx, rangesTable, rangeKey(cidr), plain(rangeKind))
}

// ListRanges returns a page of a project's ranges, or of all with an empty name.
func (c *Catalog) ListRanges(ctx context.Context, project string, p PageOptions) ([]model.BYOIPRange, string, error) {
	keep := func(r *model.BYOIPRange) bool { return project == "" || r.Project == project }
	return list(c, ctx, p, rangesTable, keep, plain(rangeKind))
}

// rangeHolding returns the range, not given back, that holds all of a network, or nil.
func (o *objects) rangeHolding(p netip.Prefix) *model.BYOIPRange {
	for r := range o.ranges.all() {
		if r.State != model.BYOIPDeprovisioned && r.CIDR.Bits() <= p.Bits() && r.CIDR.Contains(p.Addr()) {
			return r
		}
	}
	return nil
}

// checkPoolAllowed checks that an accelerator may have addr, of pool p.
func (o *objects) checkPoolAllowed(a *model.Accelerator, p *model.Pool, addr netip.Addr, path string) error {
	if why := o.addressNotShared(a.Project, a.ID, p, addr); why != "" {
		return field(ReasonNotShared, path, "%s", why)
	}
	if p.Withheld {
		return field(ReasonRangeState, path, "%v is of a range that is not advertised; advertise it first", addr)
	}
	return nil
}
