package awsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
)

// operation is one of AWS's.
type operation struct {
	need access.Need
	run  func(context.Context, call, []byte) ([]byte, error)
	// exceptions are those of AWS's model beside InternalServiceErrorException and
	// InvalidArgumentException, which every operation has.
	exceptions []string
	request    any // a pointer to the request's struct, for tests
}

func (o *operation) changes() bool { return o.need > access.NeedViewer }

func (o *operation) models(exception string) bool {
	return exception == exInvalidArgument || exception == exInternal || slices.Contains(o.exceptions, exception)
}

// nothing is the answer of operations that have none: an empty body.
type nothing struct{}

// reads and writes make an operation of a method of call.
func reads[In, Out any](f func(call, context.Context, *In) (Out, error), exceptions ...string) *operation {
	return &operation{access.NeedViewer, runs(f), exceptions, new(In)}
}

func writes[In, Out any](f func(call, context.Context, *In) (Out, error), exceptions ...string) *operation {
	return &operation{access.NeedOperator, runs(f), exceptions, new(In)}
}

func runs[In, Out any](f func(call, context.Context, *In) (Out, error),
) func(context.Context, call, []byte) ([]byte, error) {
	return func(ctx context.Context, c call, body []byte) ([]byte, error) {
		in := new(In)
		if err := decode(body, in); err != nil {
			return nil, err
		}
		out, err := f(c, ctx, in)
		if err != nil {
			return nil, err
		}
		if _, none := any(out).(nothing); none {
			return nil, nil
		}
		return json.Marshal(out)
	}
}

const (
	targetPrefix  = "GlobalAccelerator_V20180706."
	taggingTarget = "ResourceGroupsTaggingAPI_20170126.GetResources"
)

// operations is every operation of AWS Global Accelerator by its X-Amz-Target, and GetResources, with
// which some clients read tags. It is never written to.
var operations = func() map[string]*operation {
	all := map[string]*operation{
		"CreateAccelerator":   writes(call.createAccelerator, exLimit, exDenied, exInProgress),
		"DescribeAccelerator": reads(call.describeAccelerator, exAccelerator),
		"ListAccelerators":    reads(call.listAccelerators, exInvalidToken),
		"UpdateAccelerator":   writes(call.updateAccelerator, exAccelerator, exDenied, exInProgress, exConflict),
		"DeleteAccelerator": writes(call.deleteAccelerator, exAccelerator, exNotDisabled, exHasListeners,
			exInProgress),
		"DescribeAcceleratorAttributes": reads(call.describeAttributes, exAccelerator),
		"UpdateAcceleratorAttributes":   writes(call.updateAttributes, exAccelerator, exDenied, exInProgress),

		"CreateListener":   writes(call.createListener, exAccelerator, exInvalidPorts, exLimit),
		"DescribeListener": reads(call.describeListener, exListener),
		"ListListeners":    reads(call.listListeners, exAccelerator, exInvalidToken),
		"UpdateListener":   writes(call.updateListener, exInvalidPorts, exListener, exLimit),
		"DeleteListener":   writes(call.deleteListener, exListener, exHasGroups),

		"CreateEndpointGroup":   writes(call.createGroup, exAccelerator, exGroupExists, exListener, exLimit, exDenied),
		"DescribeEndpointGroup": reads(call.describeGroup, exGroup),
		"ListEndpointGroups":    reads(call.listGroups, exListener, exInvalidToken),
		"UpdateEndpointGroup":   writes(call.updateGroup, exGroup, exLimit, exDenied),
		"DeleteEndpointGroup":   writes(call.deleteGroup, exGroup),
		"AddEndpoints":          writes(call.addEndpoints, exInProgress, exGroup, exLimit, exDenied),
		"RemoveEndpoints":       writes(call.removeEndpoints, exGroup, exDenied, exInProgress),

		"TagResource":         writes(call.tagResource, exAccelerator),
		"UntagResource":       writes(call.untagResource, exAccelerator),
		"ListTagsForResource": reads(call.listTags, exAccelerator, exAttachment, exGroup, exListener),

		"CreateCustomRoutingAccelerator":   writes(call.createCustomAccelerator, exLimit, exDenied, exInProgress),
		"DescribeCustomRoutingAccelerator": reads(call.describeCustomAccelerator, exAccelerator),
		"ListCustomRoutingAccelerators":    reads(call.listCustomAccelerators, exInvalidToken),
		"UpdateCustomRoutingAccelerator": writes(call.updateCustomAccelerator, exAccelerator, exInProgress,
			exConflict),
		"DeleteCustomRoutingAccelerator": writes(call.deleteCustomAccelerator, exAccelerator, exNotDisabled,
			exHasListeners, exInProgress),
		"DescribeCustomRoutingAcceleratorAttributes": reads(call.describeCustomAttributes, exAccelerator),
		"UpdateCustomRoutingAcceleratorAttributes": writes(call.updateCustomAttributes, exAccelerator, exDenied,
			exInProgress),
		"CreateCustomRoutingListener":   writes(call.createCustomListener, exAccelerator, exInvalidPorts, exLimit),
		"DescribeCustomRoutingListener": reads(call.describeCustomListener, exListener),
		"ListCustomRoutingListeners":    reads(call.listCustomListeners, exAccelerator, exInvalidToken),
		"UpdateCustomRoutingListener":   writes(call.updateCustomListener, exInvalidPorts, exListener, exLimit),
		"DeleteCustomRoutingListener":   writes(call.deleteCustomListener, exListener, exHasGroups),
		"CreateCustomRoutingEndpointGroup": writes(call.createCustomGroup, exAccelerator, exGroupExists, exListener,
			exInvalidPorts, exLimit, exDenied),
		"DescribeCustomRoutingEndpointGroup": reads(call.describeCustomGroup, exGroup),
		"ListCustomRoutingEndpointGroups":    reads(call.listCustomGroups, exListener, exInvalidToken),
		"DeleteCustomRoutingEndpointGroup":   writes(call.deleteCustomGroup, exGroup),
		"AddCustomRoutingEndpoints": writes(call.addCustomEndpoints, exEndpointExists, exGroup, exLimit, exDenied,
			exConflict),
		"RemoveCustomRoutingEndpoints":  writes(call.removeCustomEndpoints, exGroup, exEndpoint, exDenied, exConflict),
		"AllowCustomRoutingTraffic":     writes(call.allowTraffic, exGroup),
		"DenyCustomRoutingTraffic":      writes(call.denyTraffic, exGroup),
		"ListCustomRoutingPortMappings": reads(call.listMappings, exInvalidToken, exGroup, exAccelerator),
		"ListCustomRoutingPortMappingsByDestination": reads(call.listMappingsByDestination, exInvalidToken,
			exEndpoint),

		"ProvisionByoipCidr":   writes(call.provisionCidr, exLimit, exDenied, exCidrState),
		"AdvertiseByoipCidr":   writes(call.advertiseCidr, exDenied, exCidr, exCidrState),
		"WithdrawByoipCidr":    writes(call.withdrawCidr, exDenied, exCidr, exCidrState),
		"DeprovisionByoipCidr": writes(call.deprovisionCidr, exDenied, exCidr, exCidrState),
		"ListByoipCidrs":       reads(call.listCidrs, exDenied, exInvalidToken),

		"CreateCrossAccountAttachment":     writes(call.createAttachment, exLimit, exDenied, exInProgress),
		"DescribeCrossAccountAttachment":   reads(call.describeAttachment, exAttachment, exDenied),
		"ListCrossAccountAttachments":      reads(call.listAttachments, exDenied, exInvalidToken),
		"UpdateCrossAccountAttachment":     writes(call.updateAttachment, exAttachment, exDenied, exLimit, exInProgress),
		"DeleteCrossAccountAttachment":     writes(call.deleteAttachment, exAttachment, exDenied, exInProgress),
		"ListCrossAccountResourceAccounts": reads(call.listResourceAccounts, exDenied),
		"ListCrossAccountResources":        reads(call.listResources, exInvalidToken, exDenied, exAccelerator),
	}
	byTarget := map[string]*operation{taggingTarget: reads(call.getResources)}
	for name, op := range all {
		byTarget[targetPrefix+name] = op
	}
	return byTarget
}()

// page reads MaxResults and NextToken. The token of one listing is not one of another: listing says
// which it is.
func page(listing string, maxResults *int64, token *string) (catalog.PageOptions, error) {
	p := catalog.PageOptions{Size: pageSizeDefault}
	if maxResults != nil {
		p.Size = int(*maxResults)
	}
	if token == nil {
		return p, nil
	}
	rest, ok := strings.CutPrefix(*token, listing+"-")
	if !ok || rest == "" || len(*token) > tokenBytesMax {
		return p, faultf(exInvalidToken, "the token is not one that this listing gave")
	}
	p.Token = rest
	return p, nil
}

// pageAnswer is a list's answer; the last page has no token at all.
func pageAnswer[M, T any](member, listing string, items []M, next string, out func(M) T) map[string]any {
	list := make([]T, len(items))
	for i, m := range items {
		list[i] = out(m)
	}
	answer := map[string]any{member: list}
	if next != "" {
		answer["NextToken"] = fmt.Sprintf("%s-%s", listing, next)
	}
	return answer
}
