package manifest

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// diff compares certain fields of two messages of one type. Fields inside a health check, a
// guard or a site's BGP are told one by one.
func diff(have, want proto.Message, fields ...string) []Change {
	var changes []Change
	h, w := have.ProtoReflect(), want.ProtoReflect()
	for _, field := range fields {
		fd := h.Descriptor().Fields().ByName(protoreflect.Name(field))
		a, b := h.Get(fd), w.Get(fd)
		switch {
		case fd.HasOptionalKeyword() && h.Has(fd) != w.Has(fd):
			changes = append(changes, Change{field, textIfThere(h, fd), textIfThere(w, fd)})
		case fd.Message() != nil && fd.Message().FullName() == "nearcast.v1.SiteBgp" && h.Has(fd) != w.Has(fd):
			changes = append(changes, Change{field, textIfThere(h, fd), textIfThere(w, fd)})
		case a.Equal(b):
		case fd.Message() != nil && (fd.Message().FullName() == "nearcast.v1.HealthCheck" ||
			fd.Message().FullName() == "nearcast.v1.Guard" || fd.Message().FullName() == "nearcast.v1.SiteBgp"):
			for i := range fd.Message().Fields().Len() {
				inner := fd.Message().Fields().Get(i)
				if x, y := a.Message().Get(inner), b.Message().Get(inner); !x.Equal(y) {
					changes = append(changes, Change{field + "." + string(inner.Name()),
						valueText(inner, x), valueText(inner, y)})
				}
			}
		default:
			changes = append(changes, Change{field, valueText(fd, a), valueText(fd, b)})
		}
	}
	return changes
}

// newChanges tells what a new object will be: its fields that are neither empty nor its own name.
func newChanges(m proto.Message) []Change {
	var changes []Change
	r := m.ProtoReflect()
	for i := range r.Descriptor().Fields().Len() {
		fd := r.Descriptor().Fields().Get(i)
		switch fd.Name() {
		case "name", "status", "site", "aliases": // a zone's aliases are told by their accelerators' names
			continue
		}
		if !r.Has(fd) {
			continue
		}
		if fd.FullName() == "nearcast.v1.Zone.text" {
			changes = append(changes, textChanges("", r.Get(fd).String())...)
			continue
		}
		if text := valueText(fd, r.Get(fd)); text != "" {
			changes = append(changes, Change{string(fd.Name()), "", text})
		}
	}
	return changes
}

// textIfThere is the text of a field that may be absent.
func textIfThere(m protoreflect.Message, fd protoreflect.FieldDescriptor) string {
	if !m.Has(fd) {
		return ""
	}
	return valueText(fd, m.Get(fd))
}

// valueText is a field's value for people.
func valueText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case fd.IsList():
		var parts []string
		for i := range v.List().Len() {
			parts = append(parts, scalarText(fd, v.List().Get(i)))
		}
		return strings.Join(parts, ", ")
	case fd.IsMap():
		var parts []string
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			parts = append(parts, k.String()+"="+v.String())
			return true
		})
		slices.Sort(parts)
		return strings.Join(parts, " ")
	}
	if fd.FullName() == "nearcast.v1.HealthCheck.port" && v.Uint() == 0 {
		return "the listener's first"
	}
	return scalarText(fd, v)
}

func scalarText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if fd.Enum() != nil {
		if value := fd.Enum().Values().ByNumber(v.Enum()); value != nil && v.Enum() != 0 {
			return strings.ToLower(strings.TrimPrefix(string(value.Name()), enumPrefix(fd.Enum())))
		}
		return ""
	}
	if fd.FullName() == "nearcast.v1.BgpPeer.password" {
		return "set" // never itself
	}
	if fd.Message() == nil {
		return fmt.Sprint(v.Interface())
	}
	switch m := v.Message().Interface().(type) {
	case *durationpb.Duration:
		return DurationText(m.AsDuration())
	case *pb.PortRange:
		return portRangeText(m)
	case *pb.PortOverride:
		return overrideText(m)
	case *pb.Endpoint:
		return m.GetId() + " (" + endpointText(m) + ")"
	case *pb.HealthCheck:
		return healthText(m)
	case *pb.Guard:
		return GuardText(m)
	case *pb.GuardRate:
		return RateText(m)
	case *pb.SiteBgp:
		return siteBGPText(m)
	case *pb.SteeringNetwork:
		return networkText(m)
	case *pb.SteeringWeight:
		return weightText(m)
	}
	return ""
}

func overrideText(o *pb.PortOverride) string {
	return fmt.Sprintf("%d:%d", o.GetListenerPort(), o.GetEndpointPort())
}

func endpointText(e *pb.Endpoint) string {
	text := fmt.Sprintf("weight %d", e.GetWeight())
	if e.GetClientAddress() > pb.ClientAddressMode_CLIENT_ADDRESS_MODE_NONE {
		text += ", " + EnumText(e.GetClientAddress())
	}
	return text
}

func healthText(h *pb.HealthCheck) string {
	text := EnumText(h.GetProtocol())
	if h.GetPort() != 0 {
		text += fmt.Sprintf(" port %d", h.GetPort())
	}
	if h.GetProtocol() > pb.HealthProtocol_HEALTH_PROTOCOL_TCP {
		text += " " + h.GetPath()
	}
	return text + " every " + DurationText(h.GetInterval().AsDuration())
}

func self(s string) string { return s }

// adoptOrder gives want the order of have if they hold the same: the order of these lists means nothing.
func adoptOrder[T any](have []T, want *[]T, text func(T) string) {
	a, b := make([]string, len(have)), make([]string, len(*want))
	for i := range have {
		a[i] = text(have[i])
	}
	for i := range *want {
		b[i] = text((*want)[i])
	}
	if sameSet(a, b) {
		*want = have
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
