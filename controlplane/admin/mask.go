package admin

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// kind says how one kind of object is updated.
type kind[M any, P proto.Message] struct {
	to       func(M) P
	from     func(P) (M, error)
	writable []string // fields that an update may name
}

var (
	accelerators = kind[model.Accelerator, *v1.Accelerator]{model.AcceleratorToProto, model.AcceleratorFromProto,
		[]string{"name", "enabled", "ip_address_type", "tags", "flow_logs"}}
	listeners = kind[model.Listener, *v1.Listener]{model.ListenerToProto, model.ListenerFromProto,
		[]string{"protocol", "port_ranges", "affinity", "tcp_idle_timeout", "udp_idle_timeout",
			"proxy_protocol_from", "tags", "max_flows", "max_flows_per_source", "guard"}}
	groups = kind[model.EndpointGroup, *v1.EndpointGroup]{
		model.EndpointGroupToProto, model.EndpointGroupFromProto,
		[]string{"traffic_dial", "health_check", "port_overrides", "endpoints", "tags"}}
	targets = kind[model.Target, *v1.Target]{model.TargetToProto, model.TargetFromProto,
		[]string{"region", "host", "project", "tags"}}
	attachments = kind[model.Attachment, *v1.Attachment]{model.AttachmentToProto, model.AttachmentFromProto,
		[]string{"name", "projects", "accelerators", "resources", "tags"}}
	subnets = kind[model.Subnet, *v1.Subnet]{model.SubnetToProto, model.SubnetFromProto,
		[]string{"client_address", "tags"}}
	pools = kind[model.Pool, *v1.Pool]{model.PoolToProto, model.PoolFromProto,
		[]string{"prefixes", "sites"}}
	sites = kind[model.Site, *v1.Site]{model.SiteToProto, model.SiteFromProto,
		[]string{"region", "latitude", "longitude", "bgp"}}
	bgpPeers = kind[model.BGPPeer, *v1.BgpPeer]{model.BGPPeerToProto, model.BGPPeerFromProto,
		[]string{"address", "asn", "nodes", "password", "ttl_security", "multihop_ttl", "hold_time",
			"connect_retry", "restart_time", "communities", "prepends", "local_preference", "med", "max_prefixes",
			"bfd", "bfd_interval", "bfd_multiplier", "passive", "local_address", "port", "disabled"}}
	zones = kind[model.Zone, *v1.Zone]{model.ZoneToProto, model.ZoneFromProto,
		[]string{"text", "aliases", "dnssec", "key_algorithm"}}
	steering = kind[model.Steering, *v1.Steering]{model.SteeringToProto, model.SteeringFromProto,
		[]string{"ttl", "addresses_max", "networks", "weights", "default_site", "ignore_ecs", "name_servers",
			"explore_percent", "explore_off", "ignore_rtt"}}
	nodes = kind[model.Node, *v1.Node]{model.NodeToProto, model.NodeFromProto,
		[]string{"state"}}
	settings = kind[model.Settings, *v1.Settings]{model.SettingsToProto, model.SettingsFromProto,
		[]string{"accelerators_max", "listeners_per_accelerator_max", "groups_per_accelerator_max",
			"port_ranges_per_listener_max", "port_overrides_per_group_max", "endpoints_per_group_max",
			"tags_per_resource_max", "max_ejection_percent", "endpoint_allow_networks", "dns_suffix",
			"announce_aggregates", "announce_floor", "custom_routing_accelerators_max", "attachments_max",
			"principals_per_attachment_max", "byoip_ranges_max"}}
)

// change returns the function that the catalog calls with the stored object: it takes the fields that
// the mask names from request and leaves all others. What is wrong with the mask is an error at once.
func (k kind[M, P]) change(request P, mask *fieldmaskpb.FieldMask) (func(*M) error, error) {
	message := request.ProtoReflect()
	if !message.IsValid() {
		return nil, model.FieldErrors{{Field: string(message.Descriptor().Name()), Message: "is missing"}}
	}
	if err := checkMask(message.Descriptor(), mask, k.writable); err != nil {
		return nil, err
	}
	return func(stored *M) error {
		merged := k.to(*stored)
		for _, path := range mask.GetPaths() {
			copyField(merged.ProtoReflect(), message, strings.Split(path, "."))
		}
		changed, err := k.from(merged)
		if err != nil {
			return err
		}
		*stored = changed
		return nil
	}, nil
}

// checkMask says what is wrong with a mask: it must name something, and only fields that an update may
// change, whole or, where they are messages, in part.
func checkMask(d protoreflect.MessageDescriptor, mask *fieldmaskpb.FieldMask, writable []string) error {
	if len(mask.GetPaths()) == 0 {
		return model.FieldErrors{{Field: "update_mask",
			Message: "must name the fields to change: " + strings.Join(writable, ", ")}}
	}
	var wrong model.FieldErrors
	for i, path := range mask.GetPaths() {
		steps := strings.Split(path, ".")
		if slices.Contains(writable, steps[0]) && hasField(d, steps) {
			continue
		}
		wrong = append(wrong, model.FieldError{Field: fmt.Sprintf("update_mask.paths[%d]", i),
			Message: fmt.Sprintf("%q cannot be changed; these can: %s", path, strings.Join(writable, ", "))})
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// hasField reports whether a path leads to a field, through messages that are neither lists nor maps.
func hasField(d protoreflect.MessageDescriptor, steps []string) bool {
	for i, step := range steps {
		f := d.Fields().ByName(protoreflect.Name(step))
		if f == nil {
			return false
		}
		if i == len(steps)-1 {
			return true
		}
		if f.Message() == nil || f.IsList() || f.IsMap() {
			return false
		}
		d = f.Message()
	}
	return false
}

// copyField makes a field of to what it is in from: also absent, if it is so there.
func copyField(to, from protoreflect.Message, steps []string) {
	f := to.Descriptor().Fields().ByName(protoreflect.Name(steps[0]))
	switch {
	case len(steps) > 1:
		copyField(to.Mutable(f).Message(), from.Get(f).Message(), steps[1:])
	case from.Has(f):
		to.Set(f, from.Get(f))
	default:
		to.Clear(f)
	}
}
