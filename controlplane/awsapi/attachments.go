package awsapi

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// AWS's accounts are projects here: what the owner of an attachment names by account is kept by project.

type sharedResource struct {
	EndpointId *string `shape:"len=0..255"`
	Cidr       *string `shape:"len=0..255"`
	Region     *string `shape:"len=0..255"`
}

type createAttachment struct {
	Name             *string  `shape:"required,len=0..64"`
	Principals       []string `shape:"each=0..256"`
	Resources        []sharedResource
	IdempotencyToken *string `shape:"required,len=0..255"`
	Tags             []tag
}

type attachmentRequest struct {
	AttachmentArn *string `shape:"required,len=0..255"`
}

type updateAttachment struct {
	AttachmentArn    *string  `shape:"required,len=0..255"`
	Name             *string  `shape:"len=0..64"`
	AddPrincipals    []string `shape:"each=0..256"`
	RemovePrincipals []string `shape:"each=0..256"`
	AddResources     []sharedResource
	RemoveResources  []sharedResource
}

type sharedResourceOut struct {
	EndpointId string `json:",omitempty"`
	Cidr       string `json:",omitempty"`
	Region     string `json:",omitempty"`
}

type attachmentOut struct {
	AttachmentArn    string
	Name             string
	Principals       []string
	Resources        []sharedResourceOut
	LastModifiedTime epoch
	CreatedTime      epoch
}

type attachmentAnswer struct{ CrossAccountAttachment attachmentOut }

func attachmentARN(account string, id model.AttachmentID) string {
	return arnPrefix + account + ":attachment/" + string(id)
}

// attachment returns the caller's attachment that an ARN names.
func (c call) attachment(ctx context.Context, arn *string) (model.Attachment, error) {
	r, ok := parseARN(text(arn))
	if !ok || r.attachment == "" {
		return model.Attachment{}, invalidf("'%s' is not a valid attachment ARN", shorten(text(arn)))
	}
	gone := faultf(exAttachment, "Attachment %s does not exist", shorten(text(arn)))
	if r.account != c.key.Account {
		return model.Attachment{}, gone
	}
	a, err := c.cfg.Catalog.Attachment(ctx, model.AttachmentID(r.attachment))
	if err != nil && catalog.CodeOf(err) == catalog.NotFound || err == nil && a.Project != c.key.Project {
		return a, gone
	}
	return a, err
}

// principals is who may use something: projects and accelerators.
type principals struct {
	projects     []string
	accelerators []model.AcceleratorID
}

func (c call) principals(ctx context.Context, list []string) (p principals, err error) {
	for _, s := range list {
		if r, ok := parseARN(s); ok && r.accelerator != "" && r.listener == "" {
			p.accelerators = append(p.accelerators, r.accelerator)
			continue
		}
		project, err := c.cfg.Project(ctx, s)
		if errors.Is(err, access.ErrUnknown) {
			return p, invalidf("'%s' is neither the ARN of an accelerator nor an account id that a project has: "+
				"its first access key gives it one", shorten(s))
		}
		if err != nil {
			return p, err
		}
		p.projects = append(p.projects, project)
	}
	return p, nil
}

func resources(list []sharedResource) (out []model.SharedResource, err error) {
	for _, r := range list {
		shared := model.SharedResource{Endpoint: model.EndpointID(text(r.EndpointId)), Region: model.RegionName(text(r.Region))}
		if text(r.Cidr) != "" {
			if shared.CIDR, err = cidr(r.Cidr); err != nil {
				return nil, err
			}
		}
		out = append(out, shared)
	}
	return out, nil
}

func cidr(s *string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text(s))
	if err != nil {
		return p, invalidf("'%s' is not a network in CIDR notation, like 192.0.2.0/24", shorten(text(s)))
	}
	return p, nil
}

func (c call) attachmentOut(ctx context.Context, a model.Attachment) (out attachmentOut, err error) {
	out = attachmentOut{AttachmentArn: attachmentARN(c.key.Account, a.ID), Name: a.Name, Principals: []string{},
		Resources: []sharedResourceOut{}, CreatedTime: epoch(a.Created), LastModifiedTime: epoch(a.Modified)}
	for _, project := range a.Projects {
		account, err := c.cfg.Account(ctx, project)
		if err != nil {
			return out, err
		}
		out.Principals = append(out.Principals, account)
	}
	for _, id := range a.Accelerators {
		of, err := c.cfg.Catalog.Accelerator(ctx, id)
		if err != nil {
			continue // it was deleted, and means nobody now
		}
		account, err := c.cfg.Account(ctx, of.Project)
		if err != nil {
			return out, err
		}
		out.Principals = append(out.Principals, acceleratorARN(account, id))
	}
	for _, r := range a.Resources {
		out.Resources = append(out.Resources, resourceOut(r))
	}
	return out, nil
}

func resourceOut(r model.SharedResource) sharedResourceOut {
	out := sharedResourceOut{EndpointId: string(r.Endpoint), Region: string(r.Region)}
	if r.CIDR.IsValid() {
		out.Cidr = r.CIDR.String()
	}
	return out
}

func (c call) attached(ctx context.Context, a model.Attachment, err error) (out attachmentAnswer, _ error) {
	if err != nil {
		return out, err
	}
	out.CrossAccountAttachment, err = c.attachmentOut(ctx, a)
	return out, err
}

func (c call) createAttachment(ctx context.Context, in *createAttachment) (out attachmentAnswer, err error) {
	a := model.Attachment{Project: c.key.Project, Name: *in.Name}
	who, err := c.principals(ctx, in.Principals)
	if err != nil {
		return out, err
	}
	a.Projects, a.Accelerators = who.projects, who.accelerators
	if a.Resources, err = resources(in.Resources); err != nil {
		return out, err
	}
	if a.Tags, err = tagsFrom(in.Tags); err != nil {
		return out, err
	}
	a, err = c.cfg.Catalog.CreateAttachment(ctx, a, catalog.Options{IdempotencyToken: *in.IdempotencyToken})
	return c.attached(ctx, a, err)
}

func (c call) describeAttachment(ctx context.Context, in *attachmentRequest) (attachmentAnswer, error) {
	a, err := c.attachment(ctx, in.AttachmentArn)
	return c.attached(ctx, a, err)
}

// updateAttachment adds what is not there and removes what is there; clients also send empty lists.
func (c call) updateAttachment(ctx context.Context, in *updateAttachment) (out attachmentAnswer, err error) {
	a, err := c.attachment(ctx, in.AttachmentArn)
	if err != nil {
		return out, err
	}
	add, err := c.principals(ctx, in.AddPrincipals)
	if err != nil {
		return out, err
	}
	drop, err := c.principals(ctx, in.RemovePrincipals)
	if err != nil {
		return out, err
	}
	more, err := resources(in.AddResources)
	if err != nil {
		return out, err
	}
	less, err := resources(in.RemoveResources)
	if err != nil {
		return out, err
	}
	a, err = c.cfg.Catalog.UpdateAttachment(ctx, a.ID, catalog.Options{}, func(a *model.Attachment) error {
		set(&a.Name, in.Name)
		a.Projects = edited(a.Projects, add.projects, drop.projects)
		a.Accelerators = edited(a.Accelerators, add.accelerators, drop.accelerators)
		a.Resources = edited(a.Resources, more, less)
		return nil
	})
	return c.attached(ctx, a, err)
}

// edited returns a list with some elements more and some less.
func edited[T comparable](list, add, drop []T) []T {
	list = slices.DeleteFunc(slices.Clone(list), func(v T) bool { return slices.Contains(drop, v) })
	for _, v := range add {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

func (c call) deleteAttachment(ctx context.Context, in *attachmentRequest) (none nothing, err error) {
	a, err := c.attachment(ctx, in.AttachmentArn)
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.DeleteAttachment(ctx, a.ID, catalog.Options{})
}

func (c call) listAttachments(ctx context.Context, in *listRequest) (map[string]any, error) {
	const listing = "attachments"
	p, err := page(listing, in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	items, next, err := c.cfg.Catalog.ListAttachments(ctx, c.key.Project, p)
	if err != nil {
		return nil, err
	}
	answer := pageAnswer("CrossAccountAttachments", listing, items, next, func(a model.Attachment) attachmentOut {
		out, failed := c.attachmentOut(ctx, a)
		err = errors.Join(err, failed)
		return out
	})
	return answer, err
}

func (c call) listResourceAccounts(ctx context.Context, _ *struct{}) (map[string][]string, error) {
	all, err := c.cfg.Catalog.SharedWith(ctx, c.key.Project, "")
	if err != nil {
		return nil, err
	}
	accounts := []string{}
	for _, s := range all {
		account, err := c.cfg.Account(ctx, s.Owner)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(accounts, account) {
			accounts = append(accounts, account)
		}
	}
	slices.Sort(accounts)
	return map[string][]string{"ResourceOwnerAwsAccountIds": accounts}, nil
}

type crossAccountResourceOut struct {
	EndpointId    string `json:",omitempty"`
	Cidr          string `json:",omitempty"`
	AttachmentArn string
}

// listResources is what Terraform asks for when it reads groups whose endpoints are ARNs.
func (c call) listResources(ctx context.Context, in *listCrossAccountResources) (map[string]any, error) {
	var id model.AcceleratorID
	if in.AcceleratorArn != nil {
		a, err := c.acceleratorOf(ctx, in.AcceleratorArn)
		if err != nil {
			return nil, err
		}
		id = a.ID
	}
	const listing = "resources"
	p, err := page(listing, in.MaxResults, in.NextToken)
	if err != nil {
		return nil, err
	}
	from := 0
	if p.Token != "" {
		if from, err = strconv.Atoi(p.Token); err != nil || from < 1 {
			return nil, faultf(exInvalidToken, "the token is not one that this listing gave")
		}
	}
	owner, err := c.cfg.Project(ctx, *in.ResourceOwnerAwsAccountId)
	if err != nil && !errors.Is(err, access.ErrUnknown) {
		return nil, err
	}
	all, err := c.cfg.Catalog.SharedWith(ctx, c.key.Project, id)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s catalog.Shared) bool { return s.Owner != owner })
	all = all[min(from, len(all)):]
	next := ""
	if len(all) > p.Size {
		all, next = all[:p.Size], strconv.Itoa(from+p.Size)
	}
	return pageAnswer("CrossAccountResources", listing, all, next, func(s catalog.Shared) crossAccountResourceOut {
		r := resourceOut(s.SharedResource)
		return crossAccountResourceOut{r.EndpointId, r.Cidr, attachmentARN(*in.ResourceOwnerAwsAccountId, s.Attachment)}
	}), nil
}

// checkAttachment checks that the attachment that a client names, if it names one, lets an accelerator use an
// endpoint. Whether it may at all is the catalog's to say.
func (c call) checkAttachment(ctx context.Context, a model.AcceleratorID, arn, endpoint *string) error {
	if text(arn) == "" {
		return nil
	}
	r, ok := parseARN(text(arn))
	if !ok || r.attachment == "" {
		return invalidf("'%s' is not a valid attachment ARN", shorten(text(arn)))
	}
	grants, err := c.cfg.Catalog.Grants(ctx, model.AttachmentID(r.attachment), a, text(endpoint))
	if err == nil && !grants {
		err = faultf(exDenied, "Attachment %s does not let this accelerator use %s", shorten(text(arn)), shorten(text(endpoint)))
	}
	return err
}

func (c call) checkAttachments(ctx context.Context, a model.AcceleratorID, list []endpointConfiguration) error {
	for _, e := range list {
		if err := c.checkAttachment(ctx, a, e.AttachmentArn, e.EndpointId); err != nil {
			return err
		}
	}
	return nil
}
