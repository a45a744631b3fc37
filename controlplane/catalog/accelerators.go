package catalog

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/nearcast/nearcast/proto/model"
)

// CreateAccelerator makes an accelerator: id, addresses, DNS name and times are given here. Addresses
// may ask for certain free ones of its pools, at most one a pool and family; the others are chosen.
// Pools left empty are those of the addresses asked for, filled up with the oldest anycast pools of
// other zones, or the only node pool where there is no pair of anycast pools.
func (c *Catalog) CreateAccelerator(ctx context.Context, a model.Accelerator,
	o Options) (model.Accelerator, error) {
	a = acceleratorKind.clone(a)
	a.ID, a.DNSName, a.Status, a.Revision = "", "", model.InProgress, 0
	if a.Project == "" {
		a.Project = model.DefaultProject
	}
	a.Created, a.Modified = time.Time{}, time.Time{}
	id := model.AcceleratorID(uuid.NewString())
	err := c.change(ctx, func(ch *change) error {
		a := acceleratorKind.clone(a)
		if err := invalid(a.Validate()); err != nil {
			return err
		}
		request, err := acceleratorKind.encode(a)
		if err != nil {
			return err
		}
		if made, err := ch.once(o, acceleratorKind.name, a.Project, string(id), request); err != nil {
			return err
		} else if made != "" {
			id = model.AcceleratorID(made)
			return nil
		}
		s := ch.settings()
		if err := ch.checkAcceleratorCount(s, a.Type); err != nil {
			return err
		}
		if err := checkTagCount(s, a.Tags); err != nil {
			return err
		}
		a.ID = id
		if err := ch.choosePools(&a); err != nil {
			return err
		}
		if err := ch.allocate(&a); err != nil {
			return err
		}
		a.DNSName = ch.newDNSName(s.DNSSuffix)
		a.Created, a.Modified = ch.now, ch.now
		if err := put(ch, &ch.accelerators, a); err != nil {
			return err
		}
		return ch.checkEndpointsAt(a.Addresses)
	})
	if err != nil {
		return model.Accelerator{}, err
	}
	return c.Accelerator(ctx, id)
}

// checkAcceleratorCount checks that there may be one more accelerator of a type.
func (ch *change) checkAcceleratorCount(s model.Settings, of model.AcceleratorType) error {
	n := 0
	for a := range ch.accelerators.all() {
		if a.Type == of {
			n++
		}
	}
	if of == model.CustomRouting && n >= s.CustomRoutingAcceleratorsMax {
		return limit("custom_routing_accelerators_max", s.CustomRoutingAcceleratorsMax, "custom routing accelerators")
	}
	if of == model.Standard && n >= s.AcceleratorsMax {
		return limit("accelerators_max", s.AcceleratorsMax, "accelerators")
	}
	return nil
}

func (o *objects) newDNSName(suffix string) string {
	suffix = strings.TrimSuffix(suffix, ".")
	name := func(hex string) string { return "a" + hex + "." + suffix }
	return name(newID(16, func(hex string) bool {
		for a := range o.accelerators.all() {
			if a.DNSName == name(hex) {
				return true
			}
		}
		return false
	}))
}

// Accelerator returns one.
func (c *Catalog) Accelerator(ctx context.Context, id model.AcceleratorID) (model.Accelerator, error) {
	return get(c, ctx, acceleratorsOf, id, (*objects).acceleratorOut)
}

// ListAccelerators returns a page and the token of the next, empty after the last.
func (c *Catalog) ListAccelerators(ctx context.Context, p PageOptions) ([]model.Accelerator, string, error) {
	return c.listAccelerators(ctx, p, nil)
}

// ListAcceleratorsOf is ListAccelerators for one project and the types named, or all types if none is.
func (c *Catalog) ListAcceleratorsOf(ctx context.Context, project string, p PageOptions,
	types ...model.AcceleratorType) ([]model.Accelerator, string, error) {
	return c.listAccelerators(ctx, p, func(a *model.Accelerator) bool {
		return a.Project == project && (len(types) == 0 || slices.Contains(types, a.Type))
	})
}

func (c *Catalog) listAccelerators(ctx context.Context, p PageOptions,
	keep func(*model.Accelerator) bool) ([]model.Accelerator, string, error) {
	var revisions map[model.AcceleratorID]uint64
	out := func(o *objects, a *model.Accelerator) model.Accelerator { // acceleratorOut, for many
		if revisions == nil {
			revisions = o.targetRevisions()
		}
		shown := acceleratorKind.clone(*a)
		shown.Revision = max(shown.Revision, revisions[a.ID])
		return shown
	}
	return list(c, ctx, p, acceleratorsOf, keep, out)
}

func acceleratorsOf(o *objects) *table[model.AcceleratorID, model.Accelerator] {
	return &o.accelerators
}

// UpdateAccelerator lets edit alter the accelerator's name, Enabled, IPAddressType and tags. edit gets
// a copy of what is stored and may be called more than once; an error of its own is returned as it is.
// An edit that changes nothing changes no revision.
func (c *Catalog) UpdateAccelerator(ctx context.Context, id model.AcceleratorID, o Options,
	edit func(*model.Accelerator) error) (model.Accelerator, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.accelerators.need(id)
		if err != nil {
			return err
		}
		a, changed, err := update(&ch.accelerators, id, ch.acceleratorOut(before).Revision, o, edit,
			acceleratorFixed)
		if err != nil || !changed {
			return err
		}
		a.Addresses = onlyFamilies(a) // going back to IPv4 gives the IPv6 addresses back
		if err := invalid(a.Validate()); err != nil {
			return err
		}
		if err := checkTagCount(ch.settings(), a.Tags); err != nil {
			return err
		}
		if a.IPAddressType != before.IPAddressType {
			if err := ch.allocate(&a); err != nil {
				return err
			}
		}
		a.Modified = ch.now
		if err := put(ch, &ch.accelerators, a); err != nil {
			return err
		}
		return ch.checkEndpointsAt(a.Addresses)
	})
	if err != nil {
		return model.Accelerator{}, err
	}
	return c.Accelerator(ctx, id)
}

var acceleratorFixed = map[string]func(a, b *model.Accelerator) bool{
	"accelerator.id":    func(a, b *model.Accelerator) bool { return a.ID == b.ID },
	"accelerator.pools": func(a, b *model.Accelerator) bool { return slices.Equal(a.Pools, b.Pools) },
	"accelerator.addresses": func(a, b *model.Accelerator) bool {
		return slices.Equal(a.Addresses, b.Addresses)
	},
	"accelerator.dns_name":     func(a, b *model.Accelerator) bool { return a.DNSName == b.DNSName },
	"accelerator.type":         func(a, b *model.Accelerator) bool { return a.Type == b.Type },
	"accelerator.project":      func(a, b *model.Accelerator) bool { return a.Project == b.Project },
	"accelerator.created_time": func(a, b *model.Accelerator) bool { return a.Created.Equal(b.Created) },
}

// DeleteAccelerator removes a disabled accelerator without listeners.
func (c *Catalog) DeleteAccelerator(ctx context.Context, id model.AcceleratorID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		a, err := ch.accelerators.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, acceleratorKind.name, string(id), ch.acceleratorOut(a).Revision); err != nil {
			return err
		}
		if a.Enabled {
			return precondition(ReasonNotDisabled, "accelerator %s is enabled; disable it first", id)
		}
		n := 0
		for range ch.listenersOf(id) {
			n++
		}
		if n > 0 {
			return precondition(ReasonHasListeners, "accelerator %s has %d listeners; delete them first", id, n)
		}
		if err := ch.acceleratorAliased(id); err != nil {
			return err
		}
		remove(ch, &ch.accelerators, id)
		return nil
	})
}

// choosePools fills a.Pools where the caller left that open, and checks them.
func (ch *change) choosePools(a *model.Accelerator) error {
	if len(a.Pools) == 0 {
		pools, err := ch.defaultPools(a)
		if err != nil {
			return err
		}
		a.Pools = pools
	}
	var pools []*model.Pool
	for i, name := range a.Pools {
		p := ch.pools.get(name)
		if p == nil {
			e := notFound(ReasonPoolNotFound, poolKind.name, string(name))
			e.Fields = model.FieldErrors{{
				Field: fmt.Sprintf("accelerator.pools[%d]", i), Message: "there is no such pool"}}
			return e
		}
		pools = append(pools, p)
	}
	switch {
	case len(pools) == 1 && pools[0].Kind == model.PoolNode:
		if len(a.Addresses) > 0 {
			return field(ReasonNone, "accelerator.addresses",
				"is for anycast pools; pool %s serves on each node's own addresses, leave it out", pools[0].Name)
		}
	case len(pools) == 1:
		return field(ReasonNone, "accelerator.pools",
			"names one anycast pool; the two addresses come from two pools of different zones, name both")
	case pools[0].Kind != model.PoolAnycast || pools[1].Kind != model.PoolAnycast:
		return field(ReasonNone, "accelerator.pools", "mixes kinds; name two anycast pools or one node pool")
	case pools[0].Zone == pools[1].Zone:
		return field(ReasonNone, "accelerator.pools",
			"names %s and %s, which are both of zone %s; the two addresses come from different zones",
			pools[0].Name, pools[1].Name, pools[0].Zone)
	}
	return nil
}

// defaultPools chooses pools for an accelerator that names none.
func (ch *change) defaultPools(a *model.Accelerator) ([]model.PoolName, error) {
	var anycast, node []*entry[model.Pool]
	for e := range ch.pools.entries() {
		switch {
		case e.value.Kind == model.PoolNode:
			node = append(node, e)
		case e.value.Project == "": // what a project brought is used when it is asked for
			anycast = append(anycast, e)
		}
	}
	slices.SortFunc(anycast, func(x, y *entry[model.Pool]) int { return cmp.Compare(x.created, y.created) })
	var names []model.PoolName
	zones := map[string]bool{}
	take := func(p *model.Pool) {
		if len(names) < 2 && !slices.Contains(names, p.Name) && !zones[p.Zone] {
			names, zones[p.Zone] = append(names, p.Name), true
		}
	}
	for i, addr := range a.Addresses {
		p := ch.poolHolding(addr)
		if p == nil {
			return nil, field(ReasonNone, fmt.Sprintf("accelerator.addresses[%d]", i),
				"%v is in no pool; ask for an address of an anycast pool, or for none", addr)
		}
		take(p)
	}
	for _, e := range anycast { // first those with addresses left
		if ch.hasFree(&e.value, a) {
			take(&e.value)
		}
	}
	for _, e := range anycast {
		take(&e.value)
	}
	switch {
	case len(names) == 2:
		return names, nil
	case len(a.Addresses) == 0 && len(node) == 1:
		return []model.PoolName{node[0].value.Name}, nil
	case len(node) > 1:
		return nil, field(ReasonNone, "accelerator.pools",
			"is empty, and there are %d node pools; name one", len(node))
	}
	return nil, precondition(ReasonPoolNotFound,
		"there is neither a pair of anycast pools of different zones nor a node pool; create one")
}
