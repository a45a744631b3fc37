package catalog

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

var attachmentKind = &kind[model.AttachmentID, model.Attachment]{
	name: "attachment", prefix: "attachments/", missing: ReasonAttachmentNotFound,
	key:      func(a *model.Attachment) model.AttachmentID { return a.ID },
	revision: func(a *model.Attachment) *uint64 { return &a.Revision },
	clone: func(a model.Attachment) model.Attachment {
		a.Projects, a.Accelerators = slices.Clone(a.Projects), slices.Clone(a.Accelerators)
		a.Resources, a.Tags = slices.Clone(a.Resources), maps.Clone(a.Tags)
		return a
	},
	encode: encoder(func(a model.Attachment) *pb.Attachment { a.Revision = 0; return model.AttachmentToProto(a) }),
	decode: decoder(model.AttachmentFromProto),
}

func attachmentsTable(o *objects) *table[model.AttachmentID, model.Attachment] { return &o.attachments }

// CreateAttachment lets others use resources of a.Project: targets and subnets that are its own or
// everybody's, and networks within ranges that it brought.
func (c *Catalog) CreateAttachment(ctx context.Context, a model.Attachment, o Options) (model.Attachment, error) {
	a = attachmentKind.clone(a)
	if a.Project == "" {
		a.Project = model.DefaultProject
	}
	a.ID, a.Revision = "", 0
	a.Created, a.Modified = time.Time{}, time.Time{}
	id := model.AttachmentID(uuid.NewString())
	err := c.change(ctx, func(ch *change) error {
		a := attachmentKind.clone(a)
		if err := invalid(a.Validate()); err != nil {
			return err
		}
		request, err := attachmentKind.encode(a)
		if err != nil {
			return err
		}
		if made, err := ch.once(o, attachmentKind.name, a.Project, string(id), request); err != nil {
			return err
		} else if made != "" {
			id = model.AttachmentID(made)
			return nil
		}
		n := 0
		for other := range ch.attachments.all() {
			if other.Project == a.Project {
				n++
			}
		}
		if s := ch.settings(); n >= s.AttachmentsMax {
			return limit("attachments_max", s.AttachmentsMax, "attachments of a project")
		}
		a.ID, a.Created, a.Modified = id, ch.now, ch.now
		return ch.putAttachment(a)
	})
	if err != nil {
		return model.Attachment{}, err
	}
	return c.Attachment(ctx, id)
}

// putAttachment stages a valid attachment and takes away what it does not grant any more.
func (ch *change) putAttachment(a model.Attachment) error {
	s := ch.settings()
	if err := checkTagCount(s, a.Tags); err != nil {
		return err
	}
	if len(a.Projects)+len(a.Accelerators) > s.PrincipalsPerAttachmentMax {
		return limit("principals_per_attachment_max", s.PrincipalsPerAttachmentMax, "principals of an attachment")
	}
	for i := range a.Resources {
		if why := ch.cannotShare(a.Project, &a.Resources[i]); why != "" {
			return field(ReasonNone, fmt.Sprintf("attachment.resources[%d]", i), "%s", why)
		}
	}
	if err := put(ch, &ch.attachments, a); err != nil {
		return err
	}
	return ch.takeBack()
}

// cannotShare says why a project cannot share a resource, or "".
func (o *objects) cannotShare(project string, r *model.SharedResource) string {
	if r.CIDR.IsValid() {
		b := o.rangeHolding(r.CIDR)
		if b == nil || b.Project != project {
			return fmt.Sprintf("%v is in no range that project %s has brought", r.CIDR, project)
		}
		return ""
	}
	owner, region, ok := o.ownerOf(string(r.Endpoint))
	switch {
	case !ok:
		return fmt.Sprintf("there is no target or subnet %q; declare it first", r.Endpoint)
	case owner != "" && owner != project:
		return fmt.Sprintf("%q belongs to another project", r.Endpoint)
	case r.Region != "" && region != "" && r.Region != region:
		return fmt.Sprintf("%q is in region %s, not %s", r.Endpoint, region, r.Region)
	}
	return ""
}

// ownerOf returns whose the target or subnet of a name is, "" being everybody's.
func (o *objects) ownerOf(name string) (project string, region model.RegionName, ok bool) {
	if t := o.targets.get(name); t != nil {
		return t.Project, t.Region, true
	}
	if s := o.subnets.get(model.SubnetName(name)); s != nil {
		return s.Project, s.Region, true
	}
	return "", "", false
}

// notShared says why the accelerator id of a project may not use the target or subnet of a name, or "".
func (o *objects) notShared(project string, id model.AcceleratorID, name string) string {
	owner, _, ok := o.ownerOf(name)
	if !ok || owner == "" || owner == project {
		return ""
	}
	for a := range o.attachments.all() {
		if a.Project == owner && a.Grants(project, id) && slices.ContainsFunc(a.Resources,
			func(r model.SharedResource) bool { return string(r.Endpoint) == name }) {
			return ""
		}
	}
	return fmt.Sprintf("%q belongs to another project, and no attachment of that project lets this accelerator use it", name)
}

// addressNotShared is notShared for an address of a pool that somebody brought.
func (o *objects) addressNotShared(project string, id model.AcceleratorID, p *model.Pool, addr netip.Addr) string {
	if p.Project == "" || p.Project == project {
		return ""
	}
	for a := range o.attachments.all() {
		if a.Project == p.Project && a.Grants(project, id) && slices.ContainsFunc(a.Resources,
			func(r model.SharedResource) bool { return r.CIDR.IsValid() && r.CIDR.Contains(addr) }) {
			return ""
		}
	}
	return fmt.Sprintf("%v is of a range that another project brought, and no attachment of that project lets this "+
		"accelerator use it", addr)
}

// takeBack removes endpoints that their accelerators may not use any more, as AWS does, and refuses the
// change if an accelerator would lose an address.
func (ch *change) takeBack() error {
	for _, a := range inOrder(ch.accelerators.all(), acceleratorKind.key) {
		for _, addr := range a.Addresses {
			if p := ch.poolHolding(addr); p != nil && ch.addressNotShared(a.Project, a.ID, p, addr) != "" {
				return precondition(ReasonInUse, "accelerator %s of project %s has %v; its owner must give it back first",
					a.ID, a.Project, addr)
			}
		}
	}
	lost := func(l model.ListenerID, name string) bool {
		a := ch.accelerators.get(ch.listeners.get(l).Accelerator)
		return ch.notShared(a.Project, a.ID, name) != ""
	}
	for _, g := range inOrder(ch.groups.all(), groupKind.key) {
		kept := groupKind.clone(*g)
		kept.Endpoints = slices.DeleteFunc(kept.Endpoints, func(e model.Endpoint) bool { return lost(g.Listener, string(e.ID)) })
		if len(kept.Endpoints) < len(g.Endpoints) {
			if err := ch.putGroup(kept); err != nil {
				return err
			}
		}
	}
	for _, g := range inOrder(ch.customGroups.all(), customGroupKind.key) {
		kept := customGroupKind.clone(*g)
		kept.Endpoints = slices.DeleteFunc(kept.Endpoints,
			func(e model.CustomRoutingEndpoint) bool { return lost(g.Listener, string(e.Subnet)) })
		if len(kept.Endpoints) < len(g.Endpoints) {
			if err := ch.putCustomGroup(kept); err != nil {
				return err
			}
		}
	}
	return nil
}

// sharedBy returns an attachment that shares a target or subnet, or nil.
func (o *objects) sharedBy(name string) *model.Attachment {
	for _, a := range inOrder(o.attachments.all(), attachmentKind.key) {
		if slices.ContainsFunc(a.Resources, func(r model.SharedResource) bool { return string(r.Endpoint) == name }) {
			return a
		}
	}
	return nil
}

// Attachment returns one.
func (c *Catalog) Attachment(ctx context.Context, id model.AttachmentID) (model.Attachment, error) {
	return get(c, ctx, attachmentsTable, id, plain(attachmentKind))
}

// ListAttachments returns a page of a project's attachments, or of all with an empty name.
func (c *Catalog) ListAttachments(ctx context.Context, project string,
	p PageOptions) ([]model.Attachment, string, error) {
	keep := func(a *model.Attachment) bool { return project == "" || a.Project == project }
	return list(c, ctx, p, attachmentsTable, keep, plain(attachmentKind))
}

// UpdateAttachment lets edit alter everything but ID, Project and the times; see UpdateAccelerator.
// Endpoints that their accelerators may not use any more are removed.
func (c *Catalog) UpdateAttachment(ctx context.Context, id model.AttachmentID, o Options,
	edit func(*model.Attachment) error) (model.Attachment, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.attachments.need(id)
		if err != nil {
			return err
		}
		a, changed, err := update(&ch.attachments, id, before.Revision, o, edit, attachmentFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(a.Validate()); err != nil {
			return err
		}
		a.Modified = ch.now
		return ch.putAttachment(a)
	})
	if err != nil {
		return model.Attachment{}, err
	}
	return c.Attachment(ctx, id)
}

var attachmentFixed = map[string]func(a, b *model.Attachment) bool{
	"attachment.id":           func(a, b *model.Attachment) bool { return a.ID == b.ID },
	"attachment.project":      func(a, b *model.Attachment) bool { return a.Project == b.Project },
	"attachment.created_time": func(a, b *model.Attachment) bool { return a.Created.Equal(b.Created) },
}

// DeleteAttachment removes an attachment, and endpoints that it alone allowed.
func (c *Catalog) DeleteAttachment(ctx context.Context, id model.AttachmentID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		a, err := ch.attachments.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, attachmentKind.name, string(id), a.Revision); err != nil {
			return err
		}
		remove(ch, &ch.attachments, id)
		return ch.takeBack()
	})
}

// Grants reports whether an attachment lets an accelerator use the target or subnet of a name.
func (c *Catalog) Grants(ctx context.Context, id model.AttachmentID, to model.AcceleratorID,
	name string) (grants bool, err error) {
	err = c.read(ctx, func(o *objects) error {
		a, err := o.attachments.need(id)
		if err != nil {
			return err
		}
		of, err := o.accelerators.need(to)
		if err != nil {
			return err
		}
		grants = a.Grants(of.Project, of.ID) && slices.ContainsFunc(a.Resources,
			func(r model.SharedResource) bool { return string(r.Endpoint) == name })
		return nil
	})
	return grants, err
}

// Shared is a resource of Owner that somebody may use by an attachment.
type Shared struct {
	model.SharedResource
	Owner      string
	Attachment model.AttachmentID
}

// SharedWith returns what other projects share with the accelerators of a project, or with the one
// accelerator that is named, in the order of attachments.
func (c *Catalog) SharedWith(ctx context.Context, project string, id model.AcceleratorID) (all []Shared, err error) {
	err = c.read(ctx, func(o *objects) error {
		own := map[model.AcceleratorID]bool{}
		for a := range o.accelerators.all() {
			own[a.ID] = a.Project == project && (id == "" || a.ID == id)
		}
		for _, a := range inOrder(o.attachments.all(), attachmentKind.key) {
			if a.Project == project || !a.Grants(project, "") &&
				!slices.ContainsFunc(a.Accelerators, func(id model.AcceleratorID) bool { return own[id] }) {
				continue
			}
			for _, r := range a.Resources {
				all = append(all, Shared{r, a.Project, a.ID})
			}
		}
		return nil
	})
	return all, err
}
