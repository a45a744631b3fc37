package awsapi

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, f := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

func codeOf(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

func wantCode(t *testing.T, what string, err error, code string) {
	t.Helper()
	if got := codeOf(err); got != code {
		t.Errorf("%s: %s (%v), want %s", what, got, err, code)
	}
}

// ports makes port ranges of pairs.
func ports(p ...int32) (out []types.PortRange) {
	for i := 0; i < len(p); i += 2 {
		out = append(out, types.PortRange{FromPort: &p[i], ToPort: &p[i+1]})
	}
	return out
}

func (w *world) accelerator(c *ga.Client, name string) *types.Accelerator {
	w.t.Helper()
	return must[*ga.CreateAcceleratorOutput](w.t)(c.CreateAccelerator(w.t.Context(),
		&ga.CreateAcceleratorInput{Name: &name})).Accelerator
}

func (w *world) listener(c *ga.Client, accelerator *string, p types.Protocol, ranges ...int32) *types.Listener {
	w.t.Helper()
	return must[*ga.CreateListenerOutput](w.t)(c.CreateListener(w.t.Context(), &ga.CreateListenerInput{
		AcceleratorArn: accelerator, Protocol: p, PortRanges: ports(ranges...)})).Listener
}

func (w *world) group(c *ga.Client, listener *string, region string, ids ...string) *types.EndpointGroup {
	w.t.Helper()
	in := &ga.CreateEndpointGroupInput{ListenerArn: listener, EndpointGroupRegion: &region}
	for _, id := range ids {
		in.EndpointConfigurations = append(in.EndpointConfigurations, types.EndpointConfiguration{EndpointId: &id})
	}
	return must[*ga.CreateEndpointGroupOutput](w.t)(c.CreateEndpointGroup(w.t.Context(), in)).EndpointGroup
}

func TestAccelerators(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	token := aws.String("token-1")
	create := &ga.CreateAcceleratorInput{Name: aws.String("web"), IdempotencyToken: token,
		Tags: []types.Tag{{Key: aws.String("env"), Value: aws.String("prod")}}}
	a := must[*ga.CreateAcceleratorOutput](t)(c.CreateAccelerator(ctx, create)).Accelerator
	if *a.Name != "web" || !*a.Enabled || a.IpAddressType != types.IpAddressTypeIpv4 || len(a.IpSets) != 1 ||
		len(a.IpSets[0].IpAddresses) != 2 || *a.IpSets[0].IpFamily != "IPv4" ||
		a.IpSets[0].IpAddressFamily != types.IpAddressFamilyIPv4 ||
		a.Status != types.AcceleratorStatusInProgress || *a.DnsName == "" || a.DualStackDnsName != nil ||
		time.Since(*a.CreatedTime) > time.Minute || a.LastModifiedTime == nil ||
		!strings.HasPrefix(*a.AcceleratorArn, "arn:aws:globalaccelerator::"+account+":accelerator/") {
		t.Errorf("created %+v", a)
	}
	again := must[*ga.CreateAcceleratorOutput](t)(c.CreateAccelerator(ctx, create)).Accelerator
	if *again.AcceleratorArn != *a.AcceleratorArn {
		t.Error("the same token made another accelerator")
	}
	create.Name = aws.String("other")
	_, err := c.CreateAccelerator(ctx, create)
	wantCode(t, "the same token for another request", err, "InvalidArgumentException")

	w.set(func() { w.deployed = true })
	arn := a.AcceleratorArn
	got := must[*ga.DescribeAcceleratorOutput](t)(c.DescribeAccelerator(ctx,
		&ga.DescribeAcceleratorInput{AcceleratorArn: arn})).Accelerator
	if got.Status != types.AcceleratorStatusDeployed {
		t.Errorf("status %s, want DEPLOYED", got.Status)
	}
	dual := must[*ga.UpdateAcceleratorOutput](t)(c.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{
		AcceleratorArn: arn, IpAddressType: types.IpAddressTypeDualStack})).Accelerator
	if len(dual.IpSets) != 2 || dual.DualStackDnsName == nil || *dual.Name != "web" || !*dual.Enabled {
		t.Errorf("made dual-stack: %+v", dual)
	}
	_, err = c.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: arn, IpAddresses: []string{"192.0.2.1"}})
	wantCode(t, "other addresses", err, "ConflictException")

	_, err = c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: arn})
	wantCode(t, "delete while enabled", err, "AcceleratorNotDisabledException")
	must[*ga.UpdateAcceleratorOutput](t)(c.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: arn,
		Enabled: aws.Bool(false)}))
	l := w.listener(c, arn, types.ProtocolTcp, 80, 80)
	_, err = c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: arn})
	wantCode(t, "delete with listeners", err, "AssociatedListenerFoundException")
	must[*ga.DeleteListenerOutput](t)(c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: l.ListenerArn}))
	must[*ga.DeleteAcceleratorOutput](t)(c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: arn}))
	for what, err := range map[string]error{
		"Describe": second(c.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: arn})),
		"Update":   second(c.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: arn})),
		"Delete":   second(c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: arn})),
		"DescribeAttributes": second(c.DescribeAcceleratorAttributes(ctx,
			&ga.DescribeAcceleratorAttributesInput{AcceleratorArn: arn})),
		"UpdateAttributes": second(c.UpdateAcceleratorAttributes(ctx,
			&ga.UpdateAcceleratorAttributesInput{AcceleratorArn: arn})),
		"ListListeners":  second(c.ListListeners(ctx, &ga.ListListenersInput{AcceleratorArn: arn})),
		"CreateListener": second(c.CreateListener(ctx, &ga.CreateListenerInput{AcceleratorArn: arn, Protocol: "TCP", PortRanges: ports(1, 2)})),
		"ListTags":       second(c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: arn})),
		"TagResource":    second(c.TagResource(ctx, &ga.TagResourceInput{ResourceArn: arn, Tags: []types.Tag{}})),
	} {
		wantCode(t, what+" of what is gone", err, "AcceleratorNotFoundException")
	}
	create.Name = aws.String("web")
	reborn := must[*ga.CreateAcceleratorOutput](t)(c.CreateAccelerator(ctx, create)).Accelerator
	if *reborn.AcceleratorArn == *arn {
		t.Error("the token of a deleted accelerator returns it")
	}
	w.set(func() {
		if len(w.audited) < 8 {
			t.Errorf("%d calls were audited", len(w.audited))
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestAttributes(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	arn := w.accelerator(c, "web").AcceleratorArn
	got := must[*ga.DescribeAcceleratorAttributesOutput](t)(c.DescribeAcceleratorAttributes(ctx,
		&ga.DescribeAcceleratorAttributesInput{AcceleratorArn: arn})).AcceleratorAttributes
	if *got.FlowLogsEnabled || got.FlowLogsS3Bucket != nil || got.FlowLogsS3Prefix != nil {
		t.Errorf("attributes at first: %+v", got)
	}
	_, err := c.UpdateAcceleratorAttributes(ctx, &ga.UpdateAcceleratorAttributesInput{AcceleratorArn: arn,
		FlowLogsEnabled: aws.Bool(true)})
	wantCode(t, "enabled without a bucket", err, "InvalidArgumentException")
	must[any](t)(c.UpdateAcceleratorAttributes(ctx, &ga.UpdateAcceleratorAttributesInput{AcceleratorArn: arn,
		FlowLogsS3Bucket: aws.String("b"), FlowLogsS3Prefix: aws.String("p/")}))
	must[any](t)(c.UpdateAcceleratorAttributes(ctx, &ga.UpdateAcceleratorAttributesInput{AcceleratorArn: arn,
		FlowLogsEnabled: aws.Bool(true)}))
	got = must[*ga.DescribeAcceleratorAttributesOutput](t)(c.DescribeAcceleratorAttributes(ctx,
		&ga.DescribeAcceleratorAttributesInput{AcceleratorArn: arn})).AcceleratorAttributes
	if !*got.FlowLogsEnabled || *got.FlowLogsS3Bucket != "b" || *got.FlowLogsS3Prefix != "p/" {
		t.Errorf("attributes: %+v", got)
	}
}

func TestListeners(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	a := w.accelerator(c, "web").AcceleratorArn
	l := w.listener(c, a, types.ProtocolTcp, 443, 443, 8000, 8010)
	if l.ClientAffinity != types.ClientAffinityNone || l.Protocol != types.ProtocolTcp || len(l.PortRanges) != 2 ||
		!strings.HasPrefix(*l.ListenerArn, *a+"/listener/") {
		t.Errorf("created %+v", l)
	}
	_, err := c.CreateListener(ctx, &ga.CreateListenerInput{AcceleratorArn: a, Protocol: "TCP", PortRanges: ports(443, 443)})
	wantCode(t, "ports that are taken", err, "InvalidPortRangeException")
	want := "Invalid port range PortRange(fromPort=443, toPort=443), which overlaps with port range " +
		"PortRange(fromPort=443, toPort=443) taken by listener " + *l.ListenerArn
	var e *types.InvalidPortRangeException
	if !errors.As(err, &e) || e.ErrorMessage() != want {
		t.Errorf("message %q, want %q", err, want)
	}
	_, err = c.CreateListener(ctx, &ga.CreateListenerInput{AcceleratorArn: a, Protocol: "TCP", PortRanges: ports(90, 80)})
	wantCode(t, "a range that runs backwards", err, "InvalidPortRangeException")
	w.listener(c, a, types.ProtocolUdp, 443, 443)
	for what, in := range map[string]*ga.CreateListenerInput{
		"port 0":     {AcceleratorArn: a, Protocol: "TCP", PortRanges: ports(0, 1)},
		"no range":   {AcceleratorArn: a, Protocol: "TCP", PortRanges: []types.PortRange{}},
		"11 ranges":  {AcceleratorArn: a, Protocol: "TCP", PortRanges: make([]types.PortRange, 11)},
		"a protocol": {AcceleratorArn: a, Protocol: "ICMP", PortRanges: ports(1, 1)},
		"affinity":   {AcceleratorArn: a, Protocol: "TCP", PortRanges: ports(1, 1), ClientAffinity: "STRONG"},
		"an ARN":     {AcceleratorArn: l.ListenerArn, Protocol: "TCP", PortRanges: ports(1, 1)},
	} {
		_, err := c.CreateListener(ctx, in)
		wantCode(t, what, err, "InvalidArgumentException")
	}
	u := must[*ga.UpdateListenerOutput](t)(c.UpdateListener(ctx, &ga.UpdateListenerInput{ListenerArn: l.ListenerArn,
		ClientAffinity: types.ClientAffinitySourceIp})).Listener
	got := must[*ga.DescribeListenerOutput](t)(c.DescribeListener(ctx,
		&ga.DescribeListenerInput{ListenerArn: l.ListenerArn})).Listener
	if u.ClientAffinity != types.ClientAffinitySourceIp || len(got.PortRanges) != 2 || got.ClientAffinity != u.ClientAffinity {
		t.Errorf("updated %+v, read %+v", u, got)
	}
	g := w.group(c, l.ListenerArn, "us-east-1")
	_, err = c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: l.ListenerArn})
	wantCode(t, "delete with groups", err, "AssociatedEndpointGroupFoundException")
	must[any](t)(c.DeleteEndpointGroup(ctx, &ga.DeleteEndpointGroupInput{EndpointGroupArn: g.EndpointGroupArn}))
	must[any](t)(c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: l.ListenerArn}))
	for what, err := range map[string]error{
		"Describe":    second(c.DescribeListener(ctx, &ga.DescribeListenerInput{ListenerArn: l.ListenerArn})),
		"Update":      second(c.UpdateListener(ctx, &ga.UpdateListenerInput{ListenerArn: l.ListenerArn})),
		"Delete":      second(c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: l.ListenerArn})),
		"ListGroups":  second(c.ListEndpointGroups(ctx, &ga.ListEndpointGroupsInput{ListenerArn: l.ListenerArn})),
		"ListTags":    second(c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: l.ListenerArn})),
		"CreateGroup": second(c.CreateEndpointGroup(ctx, &ga.CreateEndpointGroupInput{ListenerArn: l.ListenerArn, EndpointGroupRegion: aws.String("us-east-1")})),
	} {
		wantCode(t, what+" of what is gone", err, "ListenerNotFoundException")
	}
	for i := range int32(9) {
		w.listener(c, a, types.ProtocolTcp, 1000+i, 1000+i)
	}
	_, err = c.CreateListener(ctx, &ga.CreateListenerInput{AcceleratorArn: a, Protocol: "TCP", PortRanges: ports(9, 9)})
	wantCode(t, "the 11th listener", err, "LimitExceededException")
}

const albARN = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/my-alb/abc123"

func TestGroups(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	for name, host := range map[string]string{albARN: "10.0.0.1", "i-0abc": "10.0.0.2", "eipalloc-1": "10.0.0.3"} {
		must[model.Target](t)(w.catalog.CreateTarget(ctx, model.Target{Name: name, Host: host, Region: "us-east-1"},
			catalog.Options{}))
	}
	a := w.accelerator(c, "web").AcceleratorArn
	l := w.listener(c, a, types.ProtocolTcp, 443, 443).ListenerArn
	g := w.group(c, l, "us-east-1", albARN)
	want := &types.EndpointGroup{
		EndpointGroupArn: g.EndpointGroupArn, EndpointGroupRegion: aws.String("us-east-1"),
		EndpointDescriptions: []types.EndpointDescription{{EndpointId: aws.String(albARN), Weight: aws.Int32(128),
			HealthState: types.HealthStateInitial, ClientIPPreservationEnabled: aws.Bool(false)}},
		HealthCheckIntervalSeconds: aws.Int32(30), HealthCheckPort: aws.Int32(443),
		HealthCheckProtocol: types.HealthCheckProtocolTcp, PortOverrides: []types.PortOverride{},
		ThresholdCount: aws.Int32(3), TrafficDialPercentage: aws.Float32(100),
	}
	if diff := cmp.Diff(jsonOf(t, want), jsonOf(t, g)); diff != "" {
		t.Errorf("created: %s", diff)
	}
	_, err := c.CreateEndpointGroup(ctx, &ga.CreateEndpointGroupInput{ListenerArn: l, EndpointGroupRegion: aws.String("us-east-1")})
	wantCode(t, "a second group of the region", err, "EndpointGroupAlreadyExistsException")

	added := must[*ga.AddEndpointsOutput](t)(c.AddEndpoints(ctx, &ga.AddEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
		EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("i-0abc"), Weight: aws.Int32(0),
			ClientIPPreservationEnabled: aws.Bool(true)}, {EndpointId: aws.String("app.example.com")}}}))
	if len(added.EndpointDescriptions) != 2 || *added.EndpointDescriptions[0].Weight != 0 ||
		!*added.EndpointDescriptions[0].ClientIPPreservationEnabled || *added.EndpointGroupArn != *g.EndpointGroupArn {
		t.Errorf("added %+v", added)
	}
	_, err = c.AddEndpoints(ctx, &ga.AddEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
		EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("i-0abc")}}})
	wantCode(t, "an endpoint that is there", err, "InvalidArgumentException")
	must[any](t)(c.AddEndpoints(ctx, &ga.AddEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
		EndpointConfigurations: []types.EndpointConfiguration{}}))

	w.set(func() { w.health = model.HealthHealthy })
	describe := func() *types.EndpointGroup {
		return must[*ga.DescribeEndpointGroupOutput](t)(c.DescribeEndpointGroup(ctx,
			&ga.DescribeEndpointGroupInput{EndpointGroupArn: g.EndpointGroupArn})).EndpointGroup
	}
	if got := describe(); len(got.EndpointDescriptions) != 3 || got.EndpointDescriptions[0].HealthState != "HEALTHY" {
		t.Errorf("described %+v", got)
	}
	update := func(in ga.UpdateEndpointGroupInput) error {
		in.EndpointGroupArn = g.EndpointGroupArn
		return second(c.UpdateEndpointGroup(ctx, &in))
	}
	for what, in := range map[string]ga.UpdateEndpointGroupInput{
		"dial":       {TrafficDialPercentage: aws.Float32(100.5)},
		"interval":   {HealthCheckIntervalSeconds: aws.Int32(15)},
		"interval 9": {HealthCheckIntervalSeconds: aws.Int32(9)},
		"path":       {HealthCheckPath: aws.String("noslash")},
		"threshold":  {ThresholdCount: aws.Int32(11)},
		"weight":     {EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("10.9.9.9"), Weight: aws.Int32(256)}}},
		"no id":      {EndpointConfigurations: []types.EndpointConfiguration{{}}},
		"unknown":    {EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("i-unknown")}}},
		"override":   {PortOverrides: []types.PortOverride{{ListenerPort: aws.Int32(80), EndpointPort: aws.Int32(8080)}}},
		"attachment": {EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("10.9.9.9"), AttachmentArn: aws.String("arn:x")}}},
	} {
		wantCode(t, what, update(in), "InvalidArgumentException")
	}
	if err := update(ga.UpdateEndpointGroupInput{TrafficDialPercentage: aws.Float32(33.3),
		PortOverrides:       []types.PortOverride{{ListenerPort: aws.Int32(443), EndpointPort: aws.Int32(8443)}},
		HealthCheckProtocol: types.HealthCheckProtocolHttp, HealthCheckIntervalSeconds: aws.Int32(10)}); err != nil {
		t.Fatal(err)
	}
	got := describe()
	if *got.TrafficDialPercentage != 33.3 || len(got.EndpointDescriptions) != 3 || len(got.PortOverrides) != 1 ||
		*got.HealthCheckPath != "/" || *got.HealthCheckIntervalSeconds != 10 || *got.ThresholdCount != 3 {
		t.Errorf("after the update %s", jsonOf(t, got))
	}
	must[any](t)(c.RemoveEndpoints(ctx, &ga.RemoveEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
		EndpointIdentifiers: []types.EndpointIdentifier{{EndpointId: aws.String("i-0abc")}, {EndpointId: aws.String("app.example.com")}}}))
	_, err = c.RemoveEndpoints(ctx, &ga.RemoveEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
		EndpointIdentifiers: []types.EndpointIdentifier{{EndpointId: aws.String("i-0abc")}}})
	wantCode(t, "remove twice", err, "InvalidArgumentException")
	if err := update(ga.UpdateEndpointGroupInput{EndpointConfigurations: []types.EndpointConfiguration{},
		PortOverrides: []types.PortOverride{}}); err != nil {
		t.Fatal(err)
	}
	if got := describe(); len(got.EndpointDescriptions) != 0 || len(got.PortOverrides) != 0 {
		t.Errorf("empty lists left %+v", got)
	}
	many := make([]types.EndpointConfiguration, 11)
	wantCode(t, "11 endpoints", update(ga.UpdateEndpointGroupInput{EndpointConfigurations: many}), "InvalidArgumentException")
	for i := range 10 {
		must[any](t)(c.AddEndpoints(ctx, &ga.AddEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
			EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String(fmt.Sprintf("10.1.1.%d", i+1))}}}))
	}
	_, err = c.AddEndpoints(ctx, &ga.AddEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
		EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("10.1.1.99")}}})
	wantCode(t, "the 11th endpoint", err, "LimitExceededException")

	must[any](t)(c.DeleteEndpointGroup(ctx, &ga.DeleteEndpointGroupInput{EndpointGroupArn: g.EndpointGroupArn}))
	for what, err := range map[string]error{
		"Describe": second(c.DescribeEndpointGroup(ctx, &ga.DescribeEndpointGroupInput{EndpointGroupArn: g.EndpointGroupArn})),
		"Update":   update(ga.UpdateEndpointGroupInput{}),
		"Delete":   second(c.DeleteEndpointGroup(ctx, &ga.DeleteEndpointGroupInput{EndpointGroupArn: g.EndpointGroupArn})),
		"Add": second(c.AddEndpoints(ctx, &ga.AddEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
			EndpointConfigurations: []types.EndpointConfiguration{}})),
		"Remove": second(c.RemoveEndpoints(ctx, &ga.RemoveEndpointsInput{EndpointGroupArn: g.EndpointGroupArn,
			EndpointIdentifiers: []types.EndpointIdentifier{{EndpointId: aws.String("x")}}})),
		"ListTags": second(c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: g.EndpointGroupArn})),
	} {
		wantCode(t, what+" of what is gone", err, "EndpointGroupNotFoundException")
	}
}

func TestTags(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	arn := w.accelerator(c, "web").AcceleratorArn
	tags := func(kv ...string) (out []types.Tag) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, types.Tag{Key: &kv[i], Value: &kv[i+1]})
		}
		return out
	}
	must[any](t)(c.TagResource(ctx, &ga.TagResourceInput{ResourceArn: arn, Tags: tags("b", "1", "a", "")}))
	must[any](t)(c.TagResource(ctx, &ga.TagResourceInput{ResourceArn: arn, Tags: tags("b", "2")}))
	must[any](t)(c.UntagResource(ctx, &ga.UntagResourceInput{ResourceArn: arn, TagKeys: []string{"c"}}))
	got := must[*ga.ListTagsForResourceOutput](t)(c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: arn}))
	if jsonOf(t, got.Tags) != jsonOf(t, tags("a", "", "b", "2")) {
		t.Errorf("tags %s", jsonOf(t, got.Tags))
	}
	for what, in := range map[string][]types.Tag{"reserved": tags("aws:x", "1"), "twice": tags("x", "1", "x", "2"),
		"empty key": tags("", "1"), "long": tags(strings.Repeat("k", 129), "")} {
		_, err := c.TagResource(ctx, &ga.TagResourceInput{ResourceArn: arn, Tags: in})
		wantCode(t, what, err, "InvalidArgumentException")
	}
	gone := aws.String(*arn + "0")
	must[any](t)(c.UntagResource(ctx, &ga.UntagResourceInput{ResourceArn: gone, TagKeys: []string{"c"}}))
	_, err := c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: aws.String(
		"arn:aws:globalaccelerator::" + account + ":attachment/x")})
	wantCode(t, "an attachment", err, "AttachmentNotFoundException")
}

func TestPages(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	var made, listed []string
	for i := range 12 {
		made = append(made, *w.accelerator(c, fmt.Sprintf("a%02d", i)).AcceleratorArn)
	}
	first := must[*ga.ListAcceleratorsOutput](t)(c.ListAccelerators(ctx, &ga.ListAcceleratorsInput{}))
	if len(first.Accelerators) != 10 || first.NextToken == nil {
		t.Errorf("the default page has %d, token %v", len(first.Accelerators), first.NextToken)
	}
	pages := ga.NewListAcceleratorsPaginator(c, &ga.ListAcceleratorsInput{MaxResults: aws.Int32(5)})
	for pages.HasMorePages() {
		p := must[*ga.ListAcceleratorsOutput](t)(pages.NextPage(ctx))
		for _, a := range p.Accelerators {
			listed = append(listed, *a.AcceleratorArn)
		}
	}
	if !slices.Equal(made, listed) {
		t.Errorf("listed %v, want %v", listed, made)
	}
	for _, token := range []string{"", "x", "accelerators-", "accelerators-!", "listeners-1", strings.Repeat("a", 255)} {
		_, err := c.ListAccelerators(ctx, &ga.ListAcceleratorsInput{NextToken: &token})
		wantCode(t, fmt.Sprintf("token %.20q", token), err, "InvalidNextTokenException")
	}
	for _, n := range []int32{0, 101} {
		_, err := c.ListAccelerators(ctx, &ga.ListAcceleratorsInput{MaxResults: &n})
		wantCode(t, fmt.Sprint(n, " a page"), err, "InvalidArgumentException")
	}
	l := w.listener(c, &made[0], types.ProtocolTcp, 1, 1).ListenerArn
	_, err := c.ListListeners(ctx, &ga.ListListenersInput{AcceleratorArn: &made[0], NextToken: first.NextToken})
	wantCode(t, "another listing's token", err, "InvalidNextTokenException")
	_, err = c.ListEndpointGroups(ctx, &ga.ListEndpointGroupsInput{ListenerArn: l, NextToken: first.NextToken})
	wantCode(t, "another listing's token", err, "InvalidNextTokenException")
	for i := range 8 {
		w.accelerator(c, fmt.Sprintf("b%d", i))
	}
	_, err = c.CreateAccelerator(ctx, &ga.CreateAcceleratorInput{Name: aws.String("c")})
	wantCode(t, "the 21st accelerator", err, "LimitExceededException")
}

func TestProjectsAndRoles(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ours, others := w.operator(), w.client(v1.Role_ROLE_OPERATOR, "other", "210987654321")
	viewer := w.client(v1.Role_ROLE_VIEWER, "default", "")
	arn := w.accelerator(ours, "web").AcceleratorArn
	for _, a := range []string{*arn, strings.Replace(*arn, account, "210987654321", 1)} {
		_, err := others.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: &a})
		wantCode(t, "another project's accelerator", err, "AcceleratorNotFoundException")
	}
	if got := must[*ga.ListAcceleratorsOutput](t)(others.ListAccelerators(ctx, nil)); len(got.Accelerators) != 0 {
		t.Errorf("another project sees %v", got.Accelerators)
	}
	must[any](t)(viewer.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: arn}))
	_, err := viewer.CreateAccelerator(ctx, &ga.CreateAcceleratorInput{Name: aws.String("x")})
	wantCode(t, "a viewer that makes", err, "AccessDeniedException")
	_, err = viewer.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: arn})
	wantCode(t, "a viewer that deletes", err, "AccessDeniedException")
	must[any](t)(ours.ListCustomRoutingAccelerators(ctx, &ga.ListCustomRoutingAcceleratorsInput{}))
	must[any](t)(ours.ListByoipCidrs(ctx, &ga.ListByoipCidrsInput{}))
	must[any](t)(ours.ListCrossAccountAttachments(ctx, &ga.ListCrossAccountAttachmentsInput{}))
	must[any](t)(ours.ListCrossAccountResourceAccounts(ctx, &ga.ListCrossAccountResourceAccountsInput{}))
	must[any](t)(ours.ListCrossAccountResources(ctx, &ga.ListCrossAccountResourcesInput{
		ResourceOwnerAwsAccountId: aws.String(account)}))
}
