package awsapi

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

func (w *world) subnet(name, region, prefix string) {
	w.t.Helper()
	must[model.Subnet](w.t)(w.catalog.CreateSubnet(w.t.Context(), model.Subnet{Name: model.SubnetName(name),
		Region: model.RegionName(region), Prefix: netip.MustParsePrefix(prefix)}, catalog.Options{}))
}

// custom makes an accelerator of custom routing with a listener of a range of ports and a group of a region
// that leads to ports 80 and 81 by TCP and 90 by both.
func (w *world) custom(c *ga.Client, name, region string, from, to int32) (a, l, g *string) {
	w.t.Helper()
	ctx := w.t.Context()
	a = must[*ga.CreateCustomRoutingAcceleratorOutput](w.t)(c.CreateCustomRoutingAccelerator(ctx,
		&ga.CreateCustomRoutingAcceleratorInput{Name: &name})).Accelerator.AcceleratorArn
	l = must[*ga.CreateCustomRoutingListenerOutput](w.t)(c.CreateCustomRoutingListener(ctx,
		&ga.CreateCustomRoutingListenerInput{AcceleratorArn: a, PortRanges: ports(from, to)})).Listener.ListenerArn
	g = must[*ga.CreateCustomRoutingEndpointGroupOutput](w.t)(c.CreateCustomRoutingEndpointGroup(ctx,
		&ga.CreateCustomRoutingEndpointGroupInput{ListenerArn: l, EndpointGroupRegion: &region,
			DestinationConfigurations: []types.CustomRoutingDestinationConfiguration{
				{FromPort: aws.Int32(80), ToPort: aws.Int32(81), Protocols: []types.CustomRoutingProtocol{"TCP"}},
				{FromPort: aws.Int32(90), ToPort: aws.Int32(90), Protocols: []types.CustomRoutingProtocol{"TCP", "UDP"}},
			}})).EndpointGroup.EndpointGroupArn
	return a, l, g
}

func customEndpoints(ids ...string) (out []types.CustomRoutingEndpointConfiguration) {
	for _, id := range ids {
		out = append(out, types.CustomRoutingEndpointConfiguration{EndpointId: &id})
	}
	return out
}

// TestCustomRouting plays what Terraform does for custom routing and a game's backend with it.
func TestCustomRouting(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	w.subnet("subnet-1", "us-east-1", "10.7.0.0/28")
	w.subnet("subnet-2", "us-east-1", "10.8.0.0/28")
	w.subnet("subnet-eu", "eu-west-1", "10.9.0.0/28")
	a, l, g := w.custom(c, "game", "us-east-1", 10000, 10049)
	add := func(ids ...string) error {
		return second(c.AddCustomRoutingEndpoints(ctx, &ga.AddCustomRoutingEndpointsInput{EndpointGroupArn: g,
			EndpointConfigurations: customEndpoints(ids...)}))
	}
	if err := add("subnet-1"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "twice", add("subnet-1"), "EndpointAlreadyExistsException")
	wantCode(t, "too few ports", add("subnet-2"), "LimitExceededException")
	wantCode(t, "another region", add("subnet-eu"), "InvalidArgumentException")
	wantCode(t, "no such subnet", add("subnet-9"), "InvalidArgumentException")
	got := must[*ga.DescribeCustomRoutingEndpointGroupOutput](t)(c.DescribeCustomRoutingEndpointGroup(ctx,
		&ga.DescribeCustomRoutingEndpointGroupInput{EndpointGroupArn: g})).EndpointGroup
	if len(got.DestinationDescriptions) != 2 || len(got.EndpointDescriptions) != 1 ||
		*got.EndpointDescriptions[0].EndpointId != "subnet-1" || *got.EndpointGroupRegion != "us-east-1" ||
		len(got.DestinationDescriptions[1].Protocols) != 2 {
		t.Errorf("group %s", jsonOf(t, got))
	}
	allow := &ga.AllowCustomRoutingTrafficInput{EndpointGroupArn: g, EndpointId: aws.String("subnet-1"),
		DestinationAddresses: []string{"10.7.0.5"}, DestinationPorts: []int32{81}}
	must[any](t)(c.AllowCustomRoutingTraffic(ctx, allow))
	var all []types.PortMapping
	pages := ga.NewListCustomRoutingPortMappingsPaginator(c, &ga.ListCustomRoutingPortMappingsInput{
		AcceleratorArn: a, EndpointGroupArn: g})
	for pages.HasMorePages() {
		all = append(all, must[*ga.ListCustomRoutingPortMappingsOutput](t)(pages.NextPage(ctx)).PortMappings...)
	}
	if len(all) != 33 { // 11 machines × 3 ports
		t.Fatalf("%d mappings", len(all))
	}
	allowed := 0
	for i, m := range all {
		if *m.AcceleratorPort != int32(10000+i) || *m.EndpointGroupArn != *g {
			t.Errorf("mapping %d: %s", i, jsonOf(t, m))
		}
		if m.DestinationTrafficState == types.CustomRoutingDestinationTrafficStateAllow {
			allowed++
			if *m.DestinationSocketAddress.IpAddress != "10.7.0.5" || *m.DestinationSocketAddress.Port != 81 {
				t.Errorf("allowed: %s", jsonOf(t, m))
			}
		}
	}
	if allowed != 1 {
		t.Errorf("%d are allowed", allowed)
	}
	to := must[*ga.ListCustomRoutingPortMappingsByDestinationOutput](t)(c.ListCustomRoutingPortMappingsByDestination(
		ctx, &ga.ListCustomRoutingPortMappingsByDestinationInput{EndpointId: aws.String("subnet-1"),
			DestinationAddress: aws.String("10.7.0.5")})).DestinationPortMappings
	if len(to) != 3 || len(to[0].AcceleratorSocketAddresses) != 2 || to[0].IpAddressType != "IPV4" ||
		*to[1].AcceleratorSocketAddresses[0].Port != 10004 || to[1].DestinationTrafficState != "ALLOW" {
		t.Errorf("to 10.7.0.5: %s", jsonOf(t, to))
	}
	must[any](t)(c.DenyCustomRoutingTraffic(ctx, &ga.DenyCustomRoutingTrafficInput{EndpointGroupArn: g,
		EndpointId: aws.String("subnet-1"), DenyAllTrafficToEndpoint: aws.Bool(true)}))

	// Terraform writes the attributes of a custom routing accelerator with the operation of standard ones.
	must[any](t)(c.UpdateAcceleratorAttributes(ctx, &ga.UpdateAcceleratorAttributesInput{AcceleratorArn: a,
		FlowLogsEnabled: aws.Bool(true), FlowLogsS3Bucket: aws.String("b"), FlowLogsS3Prefix: aws.String("p")}))
	attributes := must[*ga.DescribeCustomRoutingAcceleratorAttributesOutput](t)(
		c.DescribeCustomRoutingAcceleratorAttributes(ctx,
			&ga.DescribeCustomRoutingAcceleratorAttributesInput{AcceleratorArn: a})).AcceleratorAttributes
	if !*attributes.FlowLogsEnabled {
		t.Error("flow logs are not enabled")
	}
	must[any](t)(c.UpdateCustomRoutingAcceleratorAttributes(ctx, &ga.UpdateCustomRoutingAcceleratorAttributesInput{
		AcceleratorArn: a, FlowLogsEnabled: aws.Bool(false)}))
	must[any](t)(c.TagResource(ctx, &ga.TagResourceInput{ResourceArn: g,
		Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}))
	tags := must[*ga.ListTagsForResourceOutput](t)(c.ListTagsForResource(ctx,
		&ga.ListTagsForResourceInput{ResourceArn: g})).Tags
	if len(tags) != 1 {
		t.Errorf("tags %s", jsonOf(t, tags))
	}
	customTypes(t, w, c, a, l, g)

	wantCode(t, "remove what is not there", second(c.RemoveCustomRoutingEndpoints(ctx,
		&ga.RemoveCustomRoutingEndpointsInput{EndpointGroupArn: g, EndpointIds: []string{"subnet-2"}})),
		"EndpointNotFoundException")
	wantCode(t, "delete while enabled", second(c.DeleteCustomRoutingAccelerator(ctx,
		&ga.DeleteCustomRoutingAcceleratorInput{AcceleratorArn: a})), "AcceleratorNotDisabledException")
	wantCode(t, "delete with groups", second(c.DeleteCustomRoutingListener(ctx,
		&ga.DeleteCustomRoutingListenerInput{ListenerArn: l})), "AssociatedEndpointGroupFoundException")
	must[any](t)(c.RemoveCustomRoutingEndpoints(ctx, &ga.RemoveCustomRoutingEndpointsInput{EndpointGroupArn: g,
		EndpointIds: []string{"subnet-1"}}))
	must[any](t)(c.DeleteCustomRoutingEndpointGroup(ctx, &ga.DeleteCustomRoutingEndpointGroupInput{EndpointGroupArn: g}))
	off := must[*ga.UpdateCustomRoutingAcceleratorOutput](t)(c.UpdateCustomRoutingAccelerator(ctx,
		&ga.UpdateCustomRoutingAcceleratorInput{AcceleratorArn: a, Enabled: aws.Bool(false)})).Accelerator
	if *off.Enabled {
		t.Error("it is still enabled")
	}
	wantCode(t, "delete with listeners", second(c.DeleteCustomRoutingAccelerator(ctx,
		&ga.DeleteCustomRoutingAcceleratorInput{AcceleratorArn: a})), "AssociatedListenerFoundException")
	must[any](t)(c.DeleteCustomRoutingListener(ctx, &ga.DeleteCustomRoutingListenerInput{ListenerArn: l}))
	must[any](t)(c.DeleteCustomRoutingAccelerator(ctx, &ga.DeleteCustomRoutingAcceleratorInput{AcceleratorArn: a}))
	wantCode(t, "describe what is gone", second(c.DescribeCustomRoutingAccelerator(ctx,
		&ga.DescribeCustomRoutingAcceleratorInput{AcceleratorArn: a})), "AcceleratorNotFoundException")
}

// customTypes shows that the operations on standard accelerators do not see those of custom routing, nor
// the other way, and what listeners refuse.
func customTypes(t *testing.T, w *world, c *ga.Client, a, l, g *string) {
	ctx := t.Context()
	standard := w.accelerator(c, "web").AcceleratorArn
	if list := must[*ga.ListAcceleratorsOutput](t)(c.ListAccelerators(ctx, &ga.ListAcceleratorsInput{})).Accelerators; len(list) != 1 {
		t.Errorf("%d standard accelerators", len(list))
	}
	if list := must[*ga.ListCustomRoutingAcceleratorsOutput](t)(c.ListCustomRoutingAccelerators(ctx,
		&ga.ListCustomRoutingAcceleratorsInput{})).Accelerators; len(list) != 1 || *list[0].AcceleratorArn != *a {
		t.Errorf("custom routing accelerators %s", jsonOf(t, list))
	}
	if list := must[*ga.ListCustomRoutingListenersOutput](t)(c.ListCustomRoutingListeners(ctx,
		&ga.ListCustomRoutingListenersInput{AcceleratorArn: a})).Listeners; len(list) != 1 || *list[0].ListenerArn != *l {
		t.Errorf("custom routing listeners %s", jsonOf(t, list))
	}
	if list := must[*ga.ListCustomRoutingEndpointGroupsOutput](t)(c.ListCustomRoutingEndpointGroups(ctx,
		&ga.ListCustomRoutingEndpointGroupsInput{ListenerArn: l})).EndpointGroups; len(list) != 1 {
		t.Errorf("custom routing groups %s", jsonOf(t, list))
	}
	must[any](t)(c.DescribeCustomRoutingListener(ctx, &ga.DescribeCustomRoutingListenerInput{ListenerArn: l}))
	for what, x := range map[string]struct {
		err  error
		code string
	}{
		"describe custom as standard": {second(c.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{
			AcceleratorArn: a})), "AcceleratorNotFoundException"},
		"describe standard as custom": {second(c.DescribeCustomRoutingAccelerator(ctx,
			&ga.DescribeCustomRoutingAcceleratorInput{AcceleratorArn: standard})), "AcceleratorNotFoundException"},
		"standard listener": {second(c.DescribeListener(ctx, &ga.DescribeListenerInput{ListenerArn: l})),
			"ListenerNotFoundException"},
		"standard group": {second(c.DescribeEndpointGroup(ctx, &ga.DescribeEndpointGroupInput{EndpointGroupArn: g})),
			"EndpointGroupNotFoundException"},
		"dual stack": {second(c.CreateCustomRoutingAccelerator(ctx, &ga.CreateCustomRoutingAcceleratorInput{
			Name: aws.String("x"), IpAddressType: types.IpAddressTypeDualStack})), "InvalidArgumentException"},
		"shrunk": {second(c.UpdateCustomRoutingListener(ctx, &ga.UpdateCustomRoutingListenerInput{ListenerArn: l,
			PortRanges: ports(10000, 10040)})), "InvalidPortRangeException"},
		"narrow": {second(c.CreateCustomRoutingListener(ctx, &ga.CreateCustomRoutingListenerInput{AcceleratorArn: a,
			PortRanges: ports(20000, 20014)})), "InvalidPortRangeException"},
		"second group": {second(c.CreateCustomRoutingEndpointGroup(ctx, &ga.CreateCustomRoutingEndpointGroupInput{
			ListenerArn: l, EndpointGroupRegion: aws.String("us-east-1"),
			DestinationConfigurations: []types.CustomRoutingDestinationConfiguration{{FromPort: aws.Int32(1),
				ToPort: aws.Int32(1), Protocols: []types.CustomRoutingProtocol{"TCP"}}}})),
			"EndpointGroupAlreadyExistsException"},
		"bad destination": {second(c.CreateCustomRoutingEndpointGroup(ctx, &ga.CreateCustomRoutingEndpointGroupInput{
			ListenerArn: l, EndpointGroupRegion: aws.String("eu-west-1"),
			DestinationConfigurations: []types.CustomRoutingDestinationConfiguration{{FromPort: aws.Int32(9),
				ToPort: aws.Int32(1), Protocols: []types.CustomRoutingProtocol{"TCP"}}}})), "InvalidPortRangeException"},
		"bad protocol": {second(c.CreateCustomRoutingEndpointGroup(ctx, &ga.CreateCustomRoutingEndpointGroupInput{
			ListenerArn: l, EndpointGroupRegion: aws.String("eu-west-1"),
			DestinationConfigurations: []types.CustomRoutingDestinationConfiguration{{FromPort: aws.Int32(1),
				ToPort: aws.Int32(1), Protocols: []types.CustomRoutingProtocol{"ICMP"}}}})), "InvalidArgumentException"},
		"bad token": {second(c.ListCustomRoutingPortMappings(ctx, &ga.ListCustomRoutingPortMappingsInput{
			AcceleratorArn: a, NextToken: aws.String("mappings-x")})), "InvalidNextTokenException"},
		"to no subnet": {second(c.ListCustomRoutingPortMappingsByDestination(ctx,
			&ga.ListCustomRoutingPortMappingsByDestinationInput{EndpointId: aws.String("subnet-9"),
				DestinationAddress: aws.String("10.7.0.5")})), "EndpointNotFoundException"},
		"allow all and some": {second(c.AllowCustomRoutingTraffic(ctx, &ga.AllowCustomRoutingTrafficInput{
			EndpointGroupArn: g, EndpointId: aws.String("subnet-1"), AllowAllTrafficToEndpoint: aws.Bool(true),
			DestinationAddresses: []string{"10.7.0.5"}})), "InvalidArgumentException"},
		"allow nothing": {second(c.AllowCustomRoutingTraffic(ctx, &ga.AllowCustomRoutingTrafficInput{
			EndpointGroupArn: g, EndpointId: aws.String("subnet-1")})), "InvalidArgumentException"},
	} {
		wantCode(t, what, x.err, x.code)
	}
	must[any](t)(c.UpdateCustomRoutingListener(ctx, &ga.UpdateCustomRoutingListenerInput{ListenerArn: l,
		PortRanges: ports(10000, 10049, 20000, 20015)}))
}

// BenchmarkPortMappings asks for pages of 20,000 of accelerators with 65,000 mappings each and prints how
// many mappings there are and what one page takes, over HTTP with the SDK's decoding.
func BenchmarkPortMappings(b *testing.B) {
	w := newWorld(b)
	c, ctx := w.operator(), b.Context()
	must[model.Settings](b)(w.catalog.UpdateSettings(ctx, catalog.Options{}, func(s *model.Settings) error {
		s.CustomRoutingAcceleratorsMax = 100
		return nil
	}))
	const accelerators = 22
	var arns []*string
	for i := range accelerators {
		name := fmt.Sprintf("subnet-%d", i)
		w.subnet(name, "us-east-1", fmt.Sprintf("10.%d.0.0/18", i+1))
		a, _, g := w.custom(c, name, "us-east-1", 1, 65535)
		must[any](b)(c.AddCustomRoutingEndpoints(ctx, &ga.AddCustomRoutingEndpointsInput{EndpointGroupArn: g,
			EndpointConfigurations: customEndpoints(name)}))
		must[any](b)(c.AllowCustomRoutingTraffic(ctx, &ga.AllowCustomRoutingTrafficInput{EndpointGroupArn: g,
			EndpointId: &name, AllowAllTrafficToEndpoint: aws.Bool(true)}))
		arns = append(arns, a)
	}
	began, n := time.Now(), 0
	for i := 0; b.Loop(); i++ {
		page := must[*ga.ListCustomRoutingPortMappingsOutput](b)(c.ListCustomRoutingPortMappings(ctx,
			&ga.ListCustomRoutingPortMappingsInput{AcceleratorArn: arns[i%accelerators], MaxResults: aws.Int32(20000)}))
		n += len(page.PortMappings)
	}
	b.ReportMetric(float64(n)/time.Since(began).Seconds(), "mappings/s")
	b.ReportMetric(accelerators*(1<<14-5)*3, "mappings")
}
