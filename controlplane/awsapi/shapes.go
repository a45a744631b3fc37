package awsapi

import (
	"fmt"
	"time"
)

// The members of requests and answers, under AWS's names. What their values may be is in the tags, which
// checkShape reads: required; len, of text; range, of numbers; items, of lists; each, the length of a
// list's texts; enum. A nil pointer or slice is a member that was left out.

type portRange struct {
	FromPort *int64 `shape:"range=1..65535"`
	ToPort   *int64 `shape:"range=1..65535"`
}

type portOverride struct {
	ListenerPort *int64 `shape:"range=1..65535"`
	EndpointPort *int64 `shape:"range=1..65535"`
}

type tag struct {
	Key   *string `shape:"required,len=1..128"`
	Value *string `shape:"required,len=0..256"`
}

type createAccelerator struct {
	Name             *string  `shape:"required,len=0..255"`
	IpAddressType    *string  `shape:"enum=IPV4|DUAL_STACK"`
	IpAddresses      []string `shape:"items=0..2,each=0..45"`
	Enabled          *bool
	IdempotencyToken *string `shape:"required,len=0..255"`
	Tags             []tag
}

type acceleratorRequest struct {
	AcceleratorArn *string `shape:"required,len=0..255"`
}

type updateAccelerator struct {
	AcceleratorArn *string  `shape:"required,len=0..255"`
	Name           *string  `shape:"len=0..255"`
	IpAddressType  *string  `shape:"enum=IPV4|DUAL_STACK"`
	IpAddresses    []string `shape:"items=0..2,each=0..45"`
	Enabled        *bool
}

type updateAttributes struct {
	AcceleratorArn   *string `shape:"required,len=0..255"`
	FlowLogsEnabled  *bool
	FlowLogsS3Bucket *string `shape:"len=0..255"`
	FlowLogsS3Prefix *string `shape:"len=0..255"`
}

type listRequest struct {
	MaxResults *int64  `shape:"range=1..100"`
	NextToken  *string `shape:"len=0..255"`
}

type listListeners struct {
	AcceleratorArn *string `shape:"required,len=0..255"`
	MaxResults     *int64  `shape:"range=1..100"`
	NextToken      *string `shape:"len=0..255"`
}

type createListener struct {
	AcceleratorArn   *string     `shape:"required,len=0..255"`
	PortRanges       []portRange `shape:"required,items=1..10"`
	Protocol         *string     `shape:"required,enum=TCP|UDP"`
	ClientAffinity   *string     `shape:"enum=NONE|SOURCE_IP"`
	IdempotencyToken *string     `shape:"required,len=0..255"`
}

type listenerRequest struct {
	ListenerArn *string `shape:"required,len=0..255"`
}

type updateListener struct {
	ListenerArn    *string     `shape:"required,len=0..255"`
	PortRanges     []portRange `shape:"items=1..10"`
	Protocol       *string     `shape:"enum=TCP|UDP"`
	ClientAffinity *string     `shape:"enum=NONE|SOURCE_IP"`
}

type listGroups struct {
	ListenerArn *string `shape:"required,len=0..255"`
	MaxResults  *int64  `shape:"range=1..100"`
	NextToken   *string `shape:"len=0..255"`
}

type endpointConfiguration struct {
	EndpointId                  *string `shape:"len=0..255"`
	Weight                      *int64  `shape:"range=0..255"`
	ClientIPPreservationEnabled *bool
	AttachmentArn               *string `shape:"len=0..255"`
}

type groupMembers struct {
	EndpointConfigurations     []endpointConfiguration `shape:"items=0..10"`
	TrafficDialPercentage      *float32                `shape:"range=0..100"`
	HealthCheckPort            *int64                  `shape:"range=1..65535"`
	HealthCheckProtocol        *string                 `shape:"enum=TCP|HTTP|HTTPS"`
	HealthCheckPath            *string                 `shape:"len=0..255"`
	HealthCheckIntervalSeconds *int64                  `shape:"range=10..30"`
	ThresholdCount             *int64                  `shape:"range=1..10"`
	PortOverrides              []portOverride          `shape:"items=0..10"`
}

type createGroup struct {
	ListenerArn         *string `shape:"required,len=0..255"`
	EndpointGroupRegion *string `shape:"required,len=0..255"`
	groupMembers
	IdempotencyToken *string `shape:"required,len=0..255"`
}

type groupRequest struct {
	EndpointGroupArn *string `shape:"required,len=0..255"`
}

type updateGroup struct {
	EndpointGroupArn *string `shape:"required,len=0..255"`
	groupMembers
}

type addEndpoints struct {
	EndpointConfigurations []endpointConfiguration `shape:"required,items=0..10"`
	EndpointGroupArn       *string                 `shape:"required,len=0..255"`
}

type endpointIdentifier struct {
	EndpointId                  *string `shape:"required,len=0..255"`
	ClientIPPreservationEnabled *bool
}

type removeEndpoints struct {
	EndpointIdentifiers []endpointIdentifier `shape:"required,items=1..10"`
	EndpointGroupArn    *string              `shape:"required,len=0..255"`
}

type tagResource struct {
	ResourceArn *string `shape:"required,len=1..1011"`
	Tags        []tag   `shape:"required"`
}

type untagResource struct {
	ResourceArn *string  `shape:"required,len=1..1011"`
	TagKeys     []string `shape:"required,items=0..200,each=1..128"`
}

type listTags struct {
	ResourceArn *string `shape:"required,len=1..1011"`
}

type listCrossAccountResources struct {
	AcceleratorArn            *string `shape:"len=0..255"`
	ResourceOwnerAwsAccountId *string `shape:"required,len=12..12"`
	MaxResults                *int64  `shape:"range=1..100"`
	NextToken                 *string `shape:"len=0..255"`
}

// What is answered. Lists are never null: clients walk them.

type acceleratorOut struct {
	AcceleratorArn   string
	Name             string
	IpAddressType    string
	Enabled          bool
	IpSets           []ipSet
	DnsName          string
	Status           string
	CreatedTime      epoch
	LastModifiedTime epoch
	DualStackDnsName string `json:",omitempty"`
}

type ipSet struct {
	IpFamily        string // deprecated, but what Terraform reads
	IpAddresses     []string
	IpAddressFamily string
}

type attributesOut struct {
	FlowLogsEnabled  bool
	FlowLogsS3Bucket string `json:",omitempty"`
	FlowLogsS3Prefix string `json:",omitempty"`
}

type listenerOut struct {
	ListenerArn    string
	PortRanges     []portRangeOut
	Protocol       string
	ClientAffinity string
}

type portRangeOut struct{ FromPort, ToPort uint16 }

type portOverrideOut struct{ ListenerPort, EndpointPort uint16 }

type endpointOut struct {
	EndpointId                  string
	Weight                      uint8
	HealthState                 string
	HealthReason                string `json:",omitempty"`
	ClientIPPreservationEnabled bool
}

type groupOut struct {
	EndpointGroupArn           string
	EndpointGroupRegion        string
	EndpointDescriptions       []endpointOut
	TrafficDialPercentage      float32
	HealthCheckPort            uint16
	HealthCheckProtocol        string
	HealthCheckPath            string `json:",omitempty"`
	HealthCheckIntervalSeconds int
	ThresholdCount             int
	PortOverrides              []portOverrideOut
}

type tagOut struct{ Key, Value string }

// epoch is a time as JSON 1.1 has it: seconds since 1970, a number.
type epoch time.Time

// MarshalJSON writes milliseconds as a fraction.
func (e epoch) MarshalJSON() ([]byte, error) {
	ms := time.Time(e).UnixMilli()
	return fmt.Appendf(nil, "%d.%03d", ms/1000, ms%1000), nil
}
