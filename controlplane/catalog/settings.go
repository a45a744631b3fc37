package catalog

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"

	"github.com/nearcast/nearcast/proto/model"
)

// Settings returns the cluster's limits.
func (c *Catalog) Settings(ctx context.Context) (s model.Settings, err error) {
	err = c.read(ctx, func(o *objects) error {
		s = settingsKind.clone(o.settings())
		return nil
	})
	return s, err
}

// UpdateSettings lets edit alter all of them; see UpdateAccelerator. Lower quotas take nothing away
// that is there. The DNS suffix is fixed while there are accelerators, whose names end in it; networks
// that endpoints lie in stay allowed.
func (c *Catalog) UpdateSettings(ctx context.Context, o Options,
	edit func(*model.Settings) error) (model.Settings, error) {
	err := c.change(ctx, func(ch *change) error {
		before := ch.settings()
		if err := expect(o, settingsKind.name, settingsKey, before.Revision); err != nil {
			return err
		}
		s := settingsKind.clone(before)
		if err := edit(&s); err != nil {
			return err
		}
		// The zero of each means its default, which is written out, so that a later version's other
		// default does not change what operators see here.
		s, err := model.SettingsFromProto(model.SettingsToProto(s))
		if err != nil {
			return invalid(err)
		}
		if err := invalid(s.Validate()); err != nil {
			return err
		}
		if n := ch.accelerators.len(); n > 0 && canonical(s.DNSSuffix) != canonical(before.DNSSuffix) {
			return precondition(ReasonInUse, "%d accelerators have names under %s; delete them first",
				n, before.DNSSuffix)
		}
		if err := ch.checkAggregates(s.AnnounceAggregates); err != nil {
			return err
		}
		if err := put(ch, &ch.setting, s); err != nil {
			return err
		}
		for _, t := range inOrder(ch.targets.all(), targetKind.key) {
			if err := ch.hostAllowed(t.Host, nil); err != nil {
				return precondition(ReasonForbiddenEndpoint, "target %s stands against that: %v", t.Name, err)
			}
		}
		return ch.checkEndpointsWhere(func(netip.Addr) bool { return true })
	})
	if err != nil {
		return model.Settings{}, err
	}
	return c.Settings(ctx)
}

// Tags returns the tags of the accelerator, listener, group or target called id.
func (c *Catalog) Tags(ctx context.Context, id string) (tags map[string]string, err error) {
	err = c.read(ctx, func(o *objects) error {
		found, err := o.tagsOf(id)
		tags = maps.Clone(found)
		return err
	})
	return tags, err
}

// Tag sets tags on the accelerator, listener, group or target called id, keeping its other ones.
func (c *Catalog) Tag(ctx context.Context, id string, tags map[string]string) error {
	return c.retag(ctx, id, func(t map[string]string) { maps.Copy(t, tags) })
}

// Untag removes tags. Naming no key is InvalidArgument; a key that is not there is ignored.
func (c *Catalog) Untag(ctx context.Context, id string, keys []string) error {
	if len(keys) == 0 {
		return field(ReasonNone, "keys", "is empty; name at least one")
	}
	return c.retag(ctx, id, func(t map[string]string) {
		for _, k := range keys {
			delete(t, k)
		}
	})
}

func (c *Catalog) retag(ctx context.Context, id string, edit func(map[string]string)) error {
	var kind string
	err := c.read(ctx, func(o *objects) (err error) {
		kind, err = o.kindOf(id)
		return err
	})
	if err != nil {
		return err
	}
	tags := func(t *map[string]string) error {
		edited := maps.Clone(*t)
		if edited == nil {
			edited = map[string]string{}
		}
		edit(edited)
		*t = edited
		return nil
	}
	switch kind {
	case acceleratorKind.name:
		_, err = c.UpdateAccelerator(ctx, model.AcceleratorID(id), Options{},
			func(a *model.Accelerator) error { return tags(&a.Tags) })
	case listenerKind.name:
		_, err = c.UpdateListener(ctx, model.ListenerID(id), Options{},
			func(l *model.Listener) error { return tags(&l.Tags) })
	case subnetKind.name:
		_, err = c.UpdateSubnet(ctx, model.SubnetName(id), Options{},
			func(s *model.Subnet) error { return tags(&s.Tags) })
	case customGroupKind.name:
		_, err = c.updateCustomGroup(ctx, model.GroupID(id),
			func(_ *change, g *model.CustomRoutingGroup) error { return tags(&g.Tags) })
	case attachmentKind.name:
		_, err = c.UpdateAttachment(ctx, model.AttachmentID(id), Options{},
			func(a *model.Attachment) error { return tags(&a.Tags) })
	case groupKind.name:
		_, err = c.UpdateGroup(ctx, model.GroupID(id), Options{},
			func(g *model.EndpointGroup) error { return tags(&g.Tags) })
	default:
		_, err = c.UpdateTarget(ctx, id, Options{}, func(t *model.Target) error { return tags(&t.Tags) })
	}
	return err
}

// kindOf returns the kind of the object that can have tags and is called id. Their ids have different
// forms, and targets cannot take any of them.
func (o *objects) kindOf(id string) (string, error) {
	switch {
	case o.accelerators.get(model.AcceleratorID(id)) != nil:
		return acceleratorKind.name, nil
	case o.listeners.get(model.ListenerID(id)) != nil:
		return listenerKind.name, nil
	case o.groups.get(model.GroupID(id)) != nil:
		return groupKind.name, nil
	case o.customGroups.get(model.GroupID(id)) != nil:
		return customGroupKind.name, nil
	case o.attachments.get(model.AttachmentID(id)) != nil:
		return attachmentKind.name, nil
	case o.targets.get(id) != nil:
		return targetKind.name, nil
	case o.subnets.get(model.SubnetName(id)) != nil:
		return subnetKind.name, nil
	}
	return "", notFound(ReasonAcceleratorNotFound, "accelerator, listener, group, target, subnet or attachment", id)
}

func (o *objects) tagsOf(id string) (map[string]string, error) {
	kind, err := o.kindOf(id)
	switch kind {
	case acceleratorKind.name:
		return o.accelerators.get(model.AcceleratorID(id)).Tags, nil
	case listenerKind.name:
		return o.listeners.get(model.ListenerID(id)).Tags, nil
	case groupKind.name:
		return o.groups.get(model.GroupID(id)).Tags, nil
	case targetKind.name:
		return o.targets.get(id).Tags, nil
	case attachmentKind.name:
		return o.attachments.get(model.AttachmentID(id)).Tags, nil
	case customGroupKind.name:
		return o.customGroups.get(model.GroupID(id)).Tags, nil
	case subnetKind.name:
		return o.subnets.get(model.SubnetName(id)).Tags, nil
	}
	return nil, err
}

// SetGossipKeys replaces the keys that nodes encrypt their gossip with: 1–3 of 16, 24 or 32 bytes, the
// first one in use. To rotate without losing anybody: add the new one last, then move it first, then
// drop the old one, each once all nodes have applied the step before.
func (c *Catalog) SetGossipKeys(ctx context.Context, keys [][]byte) error {
	if len(keys) == 0 || len(keys) > gossipKeysMax {
		return field(ReasonNone, "gossip_keys", "has %d keys; give 1 to %d", len(keys), gossipKeysMax)
	}
	for i, k := range keys {
		if len(k) != 16 && len(k) != 24 && len(k) != 32 {
			return field(ReasonNone, fmt.Sprintf("gossip_keys[%d]", i), "has %d bytes; keys have 16, 24 or 32", len(k))
		}
	}
	return c.change(ctx, func(ch *change) error { return ch.putGossip(keys) })
}

// EnsureGossipKey makes a random key if there is none yet.
func (c *Catalog) EnsureGossipKey(ctx context.Context) error {
	return c.change(ctx, func(ch *change) error {
		if len(ch.gossip) > 0 {
			return nil
		}
		return ch.putGossip([][]byte{newSecret(32)})
	})
}

func (ch *change) putGossip(keys [][]byte) error { return ch.putJSON(gossipKey, keys) }

// putJSON stages what is no object of a kind.
func (ch *change) putJSON(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return &Error{Code: Internal, Err: err, Message: fmt.Sprintf("encode %s: %v", key, err)}
	}
	ch.stage(write{key: key, value: b})
	return nil
}

// newSecret returns random bytes.
func newSecret(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
