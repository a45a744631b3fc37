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

// diff compares certain fields of two messages of one type. Fields inside a health check are told one
// by one.
func diff(have, want proto.Message, fields ...string) []Change {
	var changes []Change
	h, w := have.ProtoReflect(), want.ProtoReflect()
	for _, field := range fields {
		fd := h.Descriptor().Fields().ByName(protoreflect.Name(field))
		a, b := h.Get(fd), w.Get(fd)
		switch {
		case a.Equal(b):
		case fd.Message() != nil && fd.Message().FullName() == "nearcast.v1.HealthCheck":
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
		if !r.Has(fd) || fd.Name() == "name" || fd.Name() == "status" {
			continue
		}
		if text := valueText(fd, r.Get(fd)); text != "" {
			changes = append(changes, Change{string(fd.Name()), "", text})
		}
	}
	return changes
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
	return scalarText(fd, v)
}

func scalarText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if fd.Enum() != nil {
		if value := fd.Enum().Values().ByNumber(v.Enum()); value != nil && v.Enum() != 0 {
			return strings.ToLower(strings.TrimPrefix(string(value.Name()), enumPrefix(fd.Enum())))
		}
		return ""
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

// match finds out which listener of the file is which one that is there, and returns those that none
// is. First by id; then by the same protocol and ports; then, where only one pair is possible, by ports
// in common, first with the same protocol and then with any.
func (p *planner) match(all []*wanted, have []*pb.Listener) (extra []*pb.Listener) {
	taken := map[*pb.Listener]bool{}
	for _, w := range all {
		if w.file.ID == "" {
			continue
		}
		i := slices.IndexFunc(have, func(l *pb.Listener) bool { return l.GetId() == w.file.ID })
		if i < 0 || taken[have[i]] {
			p.add(w.path+".id", "%q is no listener of this accelerator, or named twice; leave it out", w.file.ID)
			continue
		}
		w.have, taken[have[i]] = have[i], true
	}
	for _, like := range []func(a, b *pb.Listener) bool{
		func(a, b *pb.Listener) bool { return a.GetProtocol() == b.GetProtocol() && samePorts(a, b) },
		func(a, b *pb.Listener) bool { return a.GetProtocol() == b.GetProtocol() && sharePorts(a, b) },
		sharePorts,
	} {
		pairs := map[*wanted][]*pb.Listener{}
		suitors := map[*pb.Listener]int{}
		for _, w := range all {
			for _, l := range have {
				if w.have == nil && !taken[l] && like(w.want, l) {
					pairs[w] = append(pairs[w], l)
					suitors[l]++
				}
			}
		}
		for w, found := range pairs {
			if len(found) == 1 && suitors[found[0]] == 1 {
				w.have, taken[found[0]] = found[0], true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(have), func(l *pb.Listener) bool { return taken[l] })
}

func samePorts(a, b *pb.Listener) bool {
	text := func(l *pb.Listener) (parts []string) {
		for _, r := range l.GetPortRanges() {
			parts = append(parts, portRangeText(r))
		}
		return parts
	}
	return sameSet(text(a), text(b))
}

func sharePorts(a, b *pb.Listener) bool {
	for _, x := range a.GetPortRanges() {
		for _, y := range b.GetPortRanges() {
			if x.GetFrom() <= y.GetTo() && y.GetFrom() <= x.GetTo() {
				return true
			}
		}
	}
	return false
}

// clash reports whether two listeners want one port for one protocol.
func clash(a, b *pb.Listener) bool { // TCP is 1, UDP 2, both 3
	return a.GetProtocol()&b.GetProtocol() != 0 && sharePorts(a, b)
}
