package awsapi

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
)

// conversation plays what a client does, call by call, and waits after each change as it does.
type conversation struct {
	*world
	*ga.Client
	accelerator *string
}

// deployed waits as pollers do: the change shows as in progress, then as deployed.
func (c *conversation) deployed(t *testing.T) {
	t.Helper()
	for _, want := range []types.AcceleratorStatus{types.AcceleratorStatusInProgress, types.AcceleratorStatusDeployed} {
		c.set(func() { c.world.deployed = want == types.AcceleratorStatusDeployed })
		a := must[*ga.DescribeAcceleratorOutput](t)(c.DescribeAccelerator(t.Context(),
			&ga.DescribeAcceleratorInput{AcceleratorArn: c.accelerator})).Accelerator
		if a.Status != want {
			t.Fatalf("status %s, want %s", a.Status, want)
		}
	}
}

// TestTerraform plays what Terraform's provider does for an accelerator, a listener and a group: create,
// read, read again, update, read, delete. What is read after an update is what was sent, so that a plan
// finds nothing to do.
func TestTerraform(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	must[model.Target](t)(w.catalog.CreateTarget(ctx, model.Target{Name: albARN, Host: "10.0.0.1"}, catalog.Options{}))
	c := &conversation{world: w, Client: w.operator()}
	c.accelerator = must[*ga.CreateAcceleratorOutput](t)(c.CreateAccelerator(ctx, &ga.CreateAcceleratorInput{
		Name: aws.String("tf"), Enabled: aws.Bool(true), IpAddressType: types.IpAddressTypeIpv4,
		IdempotencyToken: aws.String("terraform-20260701000000000000000001"),
		Tags:             []types.Tag{{Key: aws.String("Name"), Value: aws.String("tf")}}})).Accelerator.AcceleratorArn
	c.deployed(t)
	attributes := func(enabled bool, bucket, prefix string) {
		must[any](t)(c.UpdateAcceleratorAttributes(ctx, &ga.UpdateAcceleratorAttributesInput{AcceleratorArn: c.accelerator,
			FlowLogsEnabled: &enabled, FlowLogsS3Bucket: &bucket, FlowLogsS3Prefix: &prefix}))
		c.deployed(t)
		got := must[*ga.DescribeAcceleratorAttributesOutput](t)(c.DescribeAcceleratorAttributes(ctx,
			&ga.DescribeAcceleratorAttributesInput{AcceleratorArn: c.accelerator})).AcceleratorAttributes
		if *got.FlowLogsEnabled != enabled || aws.ToString(got.FlowLogsS3Bucket) != bucket {
			t.Errorf("attributes read %+v", got)
		}
	}
	attributes(true, "logs", "a/")
	attributes(false, "logs", "a/") // a changed bucket is two updates
	attributes(true, "logs2", "a/")
	must[any](t)(c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: c.accelerator}))

	l := w.listener(c.Client, c.accelerator, types.ProtocolTcp, 443, 443).ListenerArn
	c.deployed(t)
	config := func(weight int32) []types.EndpointConfiguration { // both are always sent
		return []types.EndpointConfiguration{{EndpointId: aws.String(albARN), Weight: &weight,
			ClientIPPreservationEnabled: aws.Bool(false)}}
	}
	g := must[*ga.CreateEndpointGroupOutput](t)(c.CreateEndpointGroup(ctx, &ga.CreateEndpointGroupInput{ListenerArn: l,
		EndpointGroupRegion: aws.String("us-east-1"), EndpointConfigurations: config(0)})).EndpointGroup.EndpointGroupArn
	c.deployed(t)
	read := func() *types.EndpointGroup {
		got := must[*ga.DescribeEndpointGroupOutput](t)(c.DescribeEndpointGroup(ctx,
			&ga.DescribeEndpointGroupInput{EndpointGroupArn: g})).EndpointGroup
		must[any](t)(c.ListCrossAccountResources(ctx, &ga.ListCrossAccountResourcesInput{
			ResourceOwnerAwsAccountId: aws.String("123456789012")}))
		return got
	}
	first := read()
	if diff := jsonOf(t, read()); diff != jsonOf(t, first) || *first.EndpointDescriptions[0].Weight != 0 {
		t.Errorf("read %s, then %s", jsonOf(t, first), diff)
	}
	in := &ga.UpdateEndpointGroupInput{EndpointGroupArn: g, EndpointConfigurations: config(20),
		HealthCheckPort: first.HealthCheckPort, HealthCheckPath: aws.String(""),
		HealthCheckProtocol: first.HealthCheckProtocol, HealthCheckIntervalSeconds: aws.Int32(10),
		ThresholdCount: aws.Int32(5), TrafficDialPercentage: aws.Float32(70.5),
		PortOverrides: []types.PortOverride{{ListenerPort: aws.Int32(443), EndpointPort: aws.Int32(8443)}}}
	must[any](t)(c.UpdateEndpointGroup(ctx, in))
	c.deployed(t)
	got := read()
	sent := []any{in.HealthCheckPort, in.HealthCheckProtocol, in.HealthCheckIntervalSeconds, in.ThresholdCount,
		in.TrafficDialPercentage, in.PortOverrides, *in.EndpointConfigurations[0].Weight}
	back := []any{got.HealthCheckPort, got.HealthCheckProtocol, got.HealthCheckIntervalSeconds, got.ThresholdCount,
		got.TrafficDialPercentage, got.PortOverrides, *got.EndpointDescriptions[0].Weight}
	if jsonOf(t, sent) != jsonOf(t, back) || *got.EndpointDescriptions[0].EndpointId != albARN ||
		*got.EndpointDescriptions[0].ClientIPPreservationEnabled {
		t.Errorf("sent %s, read %s", jsonOf(t, sent), jsonOf(t, back))
	}

	// Destroying in a wrong order says what is left.
	_, err := c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: l})
	wantCode(t, "listener first", err, "AssociatedEndpointGroupFoundException")
	must[any](t)(c.DeleteEndpointGroup(ctx, &ga.DeleteEndpointGroupInput{EndpointGroupArn: g}))
	c.deployed(t)
	must[any](t)(c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: l}))
	c.deployed(t)
	must[any](t)(c.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: c.accelerator,
		Enabled: aws.Bool(false)}))
	c.deployed(t)
	must[any](t)(c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: c.accelerator}))
	_, err = c.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: c.accelerator})
	wantCode(t, "read after the end", err, "AcceleratorNotFoundException")
}

// TestLoadBalancerController plays what the AWS Load Balancer Controller does: the token is its object's
// UID, groups are made empty and filled, and a full group is emptied before it is filled.
func TestLoadBalancerController(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := &conversation{world: w, Client: w.operator()}
	create := &ga.CreateAcceleratorInput{Name: aws.String("k8s-app"), IpAddressType: types.IpAddressTypeDualStack,
		IdempotencyToken: aws.String("3f0c9a51-9ad7-4c2d-9c2d-1f6c0e5b7a10"),
		Tags:             []types.Tag{{Key: aws.String("aga.k8s.aws/cluster"), Value: aws.String("c1")}}}
	a := must[*ga.CreateAcceleratorOutput](t)(c.CreateAccelerator(ctx, create)).Accelerator
	c.accelerator = a.AcceleratorArn
	if a.DnsName == nil || a.DualStackDnsName == nil || a.Name == nil || a.Enabled == nil || len(a.IpSets) != 2 {
		t.Errorf("made %s", jsonOf(t, a))
	}
	c.deployed(t)
	l := w.listener(c.Client, c.accelerator, types.ProtocolTcp, 80, 80).ListenerArn
	g := w.group(c.Client, l, "us-east-1").EndpointGroupArn
	add := func(ids ...string) error {
		in := &ga.AddEndpointsInput{EndpointGroupArn: g}
		for _, id := range ids {
			in.EndpointConfigurations = append(in.EndpointConfigurations, types.EndpointConfiguration{EndpointId: &id})
		}
		return second(c.AddEndpoints(ctx, in))
	}
	var ids []string
	var all []types.EndpointIdentifier
	for i := range 10 {
		ids = append(ids, fmt.Sprintf("10.0.1.%d", i+1))
		all = append(all, types.EndpointIdentifier{EndpointId: &ids[i]})
	}
	if err := add(ids...); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "one too many", add("10.0.2.1"), "LimitExceededException")
	must[any](t)(c.RemoveEndpoints(ctx, &ga.RemoveEndpointsInput{EndpointGroupArn: g, EndpointIdentifiers: all}))
	if err := add("10.0.2.1"); err != nil {
		t.Fatal(err)
	}
	list := must[*ga.ListEndpointGroupsOutput](t)(c.ListEndpointGroups(ctx, &ga.ListEndpointGroupsInput{ListenerArn: l}))
	if len(list.EndpointGroups) != 1 || len(list.EndpointGroups[0].EndpointDescriptions) != 1 {
		t.Errorf("groups %s", jsonOf(t, list))
	}
	// It deletes in order, and takes an accelerator that is not disabled yet for one to try again.
	_, err := c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: c.accelerator})
	wantCode(t, "delete while enabled", err, "AcceleratorNotDisabledException")
}
