package awsapi

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// tagsFrom converts tags. Keys that begin with "aws:" are AWS's own there, so clients do not expect to
// be able to set them.
func tagsFrom(in []tag) (map[string]string, error) {
	if in == nil {
		return nil, nil
	}
	tags := map[string]string{}
	for _, t := range in {
		switch _, twice := tags[*t.Key]; {
		case twice:
			return nil, invalidf("tag key '%s' is there twice", *t.Key)
		case strings.HasPrefix(strings.ToLower(*t.Key), tagKeysReserved):
			return nil, invalidf("tag key '%s' begins with 'aws:', which is reserved", *t.Key)
		}
		tags[*t.Key] = *t.Value
	}
	return tags, nil
}

func tagsTo(tags map[string]string) []tagOut {
	out := []tagOut{}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, tagOut{k, tags[k]})
	}
	return out
}

// tagged returns the id and the tags of what an ARN names: an accelerator, a listener or a group.
func (c call) tagged(ctx context.Context, arn *string) (id string, tags map[string]string, err error) {
	r, ok := parseARN(text(arn))
	switch {
	case !ok:
		return "", nil, invalidf("'%s' is not a valid ARN of this service", shorten(text(arn)))
	case r.attachment != "":
		a, err := c.attachment(ctx, arn)
		return string(a.ID), a.Tags, err
	case r.group != "":
		if g, _, err := c.customGroup(ctx, arn); err == nil {
			return string(g.ID), g.Tags, nil
		}
		g, _, err := c.group(ctx, arn)
		return string(g.ID), g.Tags, err
	case r.listener != "":
		l, err := c.listenerOf(ctx, arn)
		return string(l.ID), l.Tags, err
	}
	a, err := c.acceleratorOf(ctx, arn)
	return string(a.ID), a.Tags, err
}

// asAccelerator makes errors of operations that know no other resources than accelerators be about them.
func asAccelerator(err error) error {
	if f, ok := err.(*fault); ok && has([]string{exListener, exGroup, exAttachment}, f.code) {
		return faultf(exAccelerator, "%s", f.message)
	}
	return err
}

func (c call) tagResource(ctx context.Context, in *tagResource) (none nothing, err error) {
	tags, err := tagsFrom(in.Tags)
	if err != nil {
		return none, err
	}
	id, _, err := c.tagged(ctx, in.ResourceArn)
	if err != nil || len(tags) == 0 {
		return none, asAccelerator(err)
	}
	return none, c.cfg.Catalog.Tag(ctx, id, tags)
}

// untagResource succeeds also on what does not exist (any more), as AWS does.
func (c call) untagResource(ctx context.Context, in *untagResource) (none nothing, err error) {
	id, _, err := c.tagged(ctx, in.ResourceArn)
	if f, ok := err.(*fault); ok && f.code != exInvalidArgument || len(in.TagKeys) == 0 {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	return none, c.cfg.Catalog.Untag(ctx, id, in.TagKeys)
}

type tagsAnswer struct{ Tags []tagOut }

func (c call) listTags(ctx context.Context, in *listTags) (out tagsAnswer, err error) {
	_, tags, err := c.tagged(ctx, in.ResourceArn)
	return tagsAnswer{tagsTo(tags)}, err
}

// getResources is the Resource Groups Tagging API's, for accelerators: the AWS Load Balancer Controller
// reads tags with it.
type getResources struct {
	ResourceARNList     []string    `shape:"items=1..100,each=1..1011"`
	ResourceTypeFilters []string    `shape:"items=0..100,each=0..256"`
	TagFilters          []tagFilter `shape:"items=0..50"`
	ResourcesPerPage    *int64      `shape:"range=1..100"`
	PaginationToken     *string     `shape:"len=0..2048"`
}

type tagFilter struct {
	Key    *string  `shape:"len=1..128"`
	Values []string `shape:"items=0..20,each=0..256"`
}

type resourceTags struct {
	ResourceARN string
	Tags        []tagOut
}

type resourcesAnswer struct {
	PaginationToken        string // empty on the last page
	ResourceTagMappingList []resourceTags
}

func (f *tagFilter) matches(tags map[string]string) bool {
	value, there := tags[text(f.Key)]
	return there && (len(f.Values) == 0 || slices.Contains(f.Values, value))
}

func (in *getResources) matches(arn string, a model.Accelerator) bool {
	if len(in.ResourceARNList) > 0 && !slices.Contains(in.ResourceARNList, arn) {
		return false
	}
	if len(in.ResourceARNList) == 0 && len(a.Tags) == 0 {
		return false // never tagged: not among the resources of that API
	}
	return !slices.ContainsFunc(in.TagFilters, func(f tagFilter) bool { return !f.matches(a.Tags) })
}

func (c call) getResources(ctx context.Context, in *getResources) (out resourcesAnswer, err error) {
	out.ResourceTagMappingList = []resourceTags{}
	isOurs := func(t string) bool { return t == "globalaccelerator" || t == "globalaccelerator:accelerator" }
	if len(in.ResourceTypeFilters) > 0 && !slices.ContainsFunc(in.ResourceTypeFilters, isOurs) {
		return out, nil
	}
	token := in.PaginationToken
	if text(token) == "" {
		token = nil
	}
	p, err := page("resources", in.ResourcesPerPage, token)
	if err != nil {
		return out, faultf("PaginationTokenExpiredException", "the token is not one that this listing gave")
	}
	if in.ResourcesPerPage == nil {
		p.Size = resourcesPerPage
	}
	for want := p.Size; len(out.ResourceTagMappingList) < want; {
		items, next, err := c.cfg.Catalog.ListAcceleratorsOf(ctx, c.key.Project,
			catalog.PageOptions{Size: want - len(out.ResourceTagMappingList), Token: p.Token})
		if err != nil {
			return out, err
		}
		for _, a := range items {
			if arn := acceleratorARN(c.key.Account, a.ID); in.matches(arn, a) {
				out.ResourceTagMappingList = append(out.ResourceTagMappingList, resourceTags{arn, tagsTo(a.Tags)})
			}
		}
		if p.Token = next; next == "" {
			return out, nil
		}
	}
	out.PaginationToken = "resources-" + p.Token
	return out, nil
}
