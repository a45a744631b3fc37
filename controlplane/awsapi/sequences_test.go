package awsapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// step is one call of a client's recorded sequence: what it is, and what it must be answered.
type step struct {
	what string
	call func() (any, error)
	want string // the error's code, or a text in the answer's JSON; "": any answer
	fail bool   // want is an error's code
}

func play(t *testing.T, steps []step) {
	t.Helper()
	for i, s := range steps {
		out, err := s.call()
		switch {
		case s.fail:
			wantCode(t, fmt.Sprintf("step %d, %s", i, s.what), err, s.want)
		case err != nil:
			t.Fatalf("step %d, %s: %v", i, s.what, err)
		case s.want != "" && !strings.Contains(jsonOf(t, out), s.want):
			t.Errorf("step %d, %s: no %s in %s", i, s.what, s.want, jsonOf(t, out))
		}
	}
}

// TestCloudFormation plays what CloudFormation's handlers do with a stack of an accelerator, a listener, a group
// and an attachment: the token is its request's, weights are 100 and ports -1 where the template is silent, an
// attachment is changed in two calls whose lists may be empty, and everything goes in the order of references.
func TestCloudFormation(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	must[model.Target](t)(w.catalog.CreateTarget(ctx, model.Target{Name: sharedARN, Host: "10.0.0.9", Project: "default"}, catalog.Options{}))
	c := w.operator()
	w.client(v1.Role_ROLE_VIEWER, "consumer", consumer)
	w.set(func() { w.deployed = true })
	const token = "console-CreateStack-5f2c8f0e"
	var a, l, g, s string
	tags := []types.Tag{{Key: aws.String("aws-cdk"), Value: aws.String("x")}}
	create := func() (any, error) {
		out, err := c.CreateAccelerator(ctx, &ga.CreateAcceleratorInput{Name: aws.String("stack"), Enabled: aws.Bool(true),
			IpAddressType: types.IpAddressTypeIpv4, IdempotencyToken: aws.String(token), Tags: tags})
		if err == nil {
			a = *out.Accelerator.AcceleratorArn
		}
		return out, err
	}
	describe := func() (any, error) {
		return c.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: &a})
	}
	attach := func(in ga.UpdateCrossAccountAttachmentInput) func() (any, error) {
		return func() (any, error) { in.AttachmentArn = &s; return c.UpdateCrossAccountAttachment(ctx, &in) }
	}
	play(t, []step{
		{"accelerator", create, "IN_PROGRESS", false},
		{"accelerator, the handler called again", create, "", false},
		{"wait", describe, "DEPLOYED", false},
		{"read", func() (any, error) { return c.ListTagsForResource(ctx, &ga.ListTagsForResourceInput{ResourceArn: &a}) }, "aws-cdk", false},
		{"only one was made", func() (any, error) { return c.ListAccelerators(ctx, &ga.ListAcceleratorsInput{}) }, `"NextToken":null`, false},
		{"listener", func() (any, error) {
			out, err := c.CreateListener(ctx, &ga.CreateListenerInput{AcceleratorArn: &a, Protocol: types.ProtocolTcp,
				IdempotencyToken: aws.String(token), PortRanges: ports(80, 80, 443, 443), ClientAffinity: types.ClientAffinitySourceIp})
			if err == nil {
				l = *out.Listener.ListenerArn
			}
			return out, err
		}, "SOURCE_IP", false},
		{"wait", describe, "DEPLOYED", false},
		{"the group's listener", func() (any, error) { return c.DescribeListener(ctx, &ga.DescribeListenerInput{ListenerArn: &l}) }, "", false},
		{"group", func() (any, error) {
			out, err := c.CreateEndpointGroup(ctx, &ga.CreateEndpointGroupInput{ListenerArn: &l, IdempotencyToken: aws.String(token),
				EndpointGroupRegion: aws.String("us-east-1"), TrafficDialPercentage: aws.Float32(100),
				HealthCheckProtocol: types.HealthCheckProtocolTcp, HealthCheckIntervalSeconds: aws.Int32(30),
				ThresholdCount: aws.Int32(3), PortOverrides: []types.PortOverride{}, EndpointConfigurations: []types.EndpointConfiguration{
					{EndpointId: aws.String(sharedARN), Weight: aws.Int32(100)}}})
			if err == nil {
				g = *out.EndpointGroup.EndpointGroupArn
			}
			return out, err
		}, `"HealthCheckPort":80`, false},
		{"group of the same region", func() (any, error) {
			return c.CreateEndpointGroup(ctx, &ga.CreateEndpointGroupInput{ListenerArn: &l, EndpointGroupRegion: aws.String("us-east-1")})
		}, "EndpointGroupAlreadyExistsException", true},
		{"update of the group", func() (any, error) {
			return c.UpdateEndpointGroup(ctx, &ga.UpdateEndpointGroupInput{EndpointGroupArn: &g, TrafficDialPercentage: aws.Float32(50),
				PortOverrides: []types.PortOverride{}, EndpointConfigurations: []types.EndpointConfiguration{
					{EndpointId: aws.String(sharedARN), Weight: aws.Int32(0)}}})
		}, `"Weight":0`, false},
		{"update of the listener", func() (any, error) {
			return c.UpdateListener(ctx, &ga.UpdateListenerInput{ListenerArn: &l, PortRanges: ports(443, 443), Protocol: types.ProtocolTcp,
				ClientAffinity: types.ClientAffinityNone})
		}, "NONE", false},
		{"read of the group: its port follows", func() (any, error) {
			return c.DescribeEndpointGroup(ctx, &ga.DescribeEndpointGroupInput{EndpointGroupArn: &g})
		}, `"HealthCheckPort":443`, false},
		{"list of groups", func() (any, error) { return c.ListEndpointGroups(ctx, &ga.ListEndpointGroupsInput{ListenerArn: &l}) }, "us-east-1", false},
		{"update of tags", func() (any, error) {
			return c.UntagResource(ctx, &ga.UntagResourceInput{ResourceArn: &a, TagKeys: []string{"aws-cdk"}})
		}, "", false},
		{"attachment", func() (any, error) {
			out, err := c.CreateCrossAccountAttachment(ctx, &ga.CreateCrossAccountAttachmentInput{Name: aws.String("stack"),
				IdempotencyToken: aws.String(token), Principals: []string{consumer}, Resources: []types.Resource{}})
			if err == nil {
				s = *out.CrossAccountAttachment.AttachmentArn
			}
			return out, err
		}, consumer, false},
		{"its principals", func() (any, error) {
			return c.UpdateCrossAccountAttachment(ctx, &ga.UpdateCrossAccountAttachmentInput{AttachmentArn: &s,
				Name: aws.String("stack"), AddPrincipals: []string{a}, RemovePrincipals: []string{consumer}})
		}, "accelerator/", false},
		{"its resources", attach(ga.UpdateCrossAccountAttachmentInput{AddResources: []types.Resource{{EndpointId: aws.String(sharedARN)}},
			RemoveResources: []types.Resource{}}), sharedARN, false},
		{"delete in the wrong order", func() (any, error) { return c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: &l}) },
			"AssociatedEndpointGroupFoundException", true},
		{"delete of the group", func() (any, error) {
			return c.DeleteEndpointGroup(ctx, &ga.DeleteEndpointGroupInput{EndpointGroupArn: &g})
		}, "", false},
		{"delete of a group that is gone", func() (any, error) {
			return c.DeleteEndpointGroup(ctx, &ga.DeleteEndpointGroupInput{EndpointGroupArn: &g})
		}, "EndpointGroupNotFoundException", true},
		{"delete of the listener", func() (any, error) { return c.DeleteListener(ctx, &ga.DeleteListenerInput{ListenerArn: &l}) }, "", false},
		{"disable", func() (any, error) {
			return c.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: &a, Enabled: aws.Bool(false)})
		}, "", false},
		{"delete", func() (any, error) { return c.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: &a}) }, "", false},
		{"read of what is gone", describe, "AcceleratorNotFoundException", true},
		{"delete of the attachment", func() (any, error) {
			return c.DeleteCrossAccountAttachment(ctx, &ga.DeleteCrossAccountAttachmentInput{AttachmentArn: &s})
		}, "", false},
		{"read of the attachment", func() (any, error) {
			return c.DescribeCrossAccountAttachment(ctx, &ga.DescribeCrossAccountAttachmentInput{AttachmentArn: &s})
		}, "AttachmentNotFoundException", true},
	})
}

// TestTerraformCustomRouting plays Terraform's three resources of custom routing: the first update of attributes goes
// to the operation of standard accelerators, groups are made empty and filled.
func TestTerraformCustomRouting(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	must[model.Subnet](t)(w.catalog.CreateSubnet(ctx, model.Subnet{Name: "subnet-0a1b", Region: "us-east-1",
		Prefix: prefixes("10.9.0.0/28")[0]}, catalog.Options{}))
	c := w.operator()
	w.set(func() { w.deployed = true })
	var a, l, g string
	play(t, []step{
		{"accelerator", func() (any, error) {
			out, err := c.CreateCustomRoutingAccelerator(ctx, &ga.CreateCustomRoutingAcceleratorInput{Name: aws.String("tf"),
				IdempotencyToken: aws.String("terraform-1"), Enabled: aws.Bool(true), IpAddressType: types.IpAddressTypeIpv4})
			if err == nil {
				a = *out.Accelerator.AcceleratorArn
			}
			return out, err
		}, "IN_PROGRESS", false},
		{"wait", func() (any, error) {
			return c.DescribeCustomRoutingAccelerator(ctx, &ga.DescribeCustomRoutingAcceleratorInput{AcceleratorArn: &a})
		}, "DEPLOYED", false},
		{"attributes, by the standard operation", func() (any, error) {
			return c.UpdateAcceleratorAttributes(ctx, &ga.UpdateAcceleratorAttributesInput{AcceleratorArn: &a,
				FlowLogsEnabled: aws.Bool(true), FlowLogsS3Bucket: aws.String("logs"), FlowLogsS3Prefix: aws.String("p/")})
		}, "logs", false},
		{"read of attributes", func() (any, error) {
			return c.DescribeCustomRoutingAcceleratorAttributes(ctx, &ga.DescribeCustomRoutingAcceleratorAttributesInput{AcceleratorArn: &a})
		}, "logs", false},
		{"listener", func() (any, error) {
			out, err := c.CreateCustomRoutingListener(ctx, &ga.CreateCustomRoutingListenerInput{AcceleratorArn: &a,
				IdempotencyToken: aws.String("terraform-2"), PortRanges: ports(10000, 10099)})
			if err == nil {
				l = *out.Listener.ListenerArn
			}
			return out, err
		}, "10099", false},
		{"group", func() (any, error) {
			out, err := c.CreateCustomRoutingEndpointGroup(ctx, &ga.CreateCustomRoutingEndpointGroupInput{ListenerArn: &l,
				IdempotencyToken: aws.String("terraform-3"), EndpointGroupRegion: aws.String("us-east-1"),
				DestinationConfigurations: []types.CustomRoutingDestinationConfiguration{{FromPort: aws.Int32(80), ToPort: aws.Int32(81),
					Protocols: []types.CustomRoutingProtocol{types.CustomRoutingProtocolTcp}}}})
			if err == nil {
				g = *out.EndpointGroup.EndpointGroupArn
			}
			return out, err
		}, "", false},
		{"its subnet", func() (any, error) {
			return c.AddCustomRoutingEndpoints(ctx, &ga.AddCustomRoutingEndpointsInput{EndpointGroupArn: &g,
				EndpointConfigurations: []types.CustomRoutingEndpointConfiguration{{EndpointId: aws.String("subnet-0a1b")}}})
		}, "subnet-0a1b", false},
		{"read", func() (any, error) {
			return c.DescribeCustomRoutingEndpointGroup(ctx, &ga.DescribeCustomRoutingEndpointGroupInput{EndpointGroupArn: &g})
		}, "subnet-0a1b", false},
		{"delete of the group", func() (any, error) {
			return c.DeleteCustomRoutingEndpointGroup(ctx, &ga.DeleteCustomRoutingEndpointGroupInput{EndpointGroupArn: &g})
		}, "", false},
		{"delete of the listener", func() (any, error) {
			return c.DeleteCustomRoutingListener(ctx, &ga.DeleteCustomRoutingListenerInput{ListenerArn: &l})
		}, "", false},
		{"disable", func() (any, error) {
			return c.UpdateCustomRoutingAccelerator(ctx, &ga.UpdateCustomRoutingAcceleratorInput{AcceleratorArn: &a, Enabled: aws.Bool(false)})
		}, "", false},
		{"delete", func() (any, error) {
			return c.DeleteCustomRoutingAccelerator(ctx, &ga.DeleteCustomRoutingAcceleratorInput{AcceleratorArn: &a})
		}, "", false},
		{"read of what is gone", func() (any, error) {
			return c.DescribeCustomRoutingAccelerator(ctx, &ga.DescribeCustomRoutingAcceleratorInput{AcceleratorArn: &a})
		}, "AcceleratorNotFoundException", true},
	})
}
