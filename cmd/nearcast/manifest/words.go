package manifest

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file holds how people write values: in files here, and on the command line.

// EnumText is an enum value as people write it: "PROTOCOL_TCP_UDP" is "tcp_udp", and UNSPECIFIED "".
func EnumText(e protoreflect.Enum) string {
	v := e.Descriptor().Values().ByNumber(e.Number())
	switch {
	case v == nil:
		return fmt.Sprintf("unknown (%d)", e.Number())
	case e.Number() == 0:
		return ""
	}
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(e.Descriptor())))
}

// EnumWords are all values of an enum as people write them.
func EnumWords(d protoreflect.EnumDescriptor) (words []string) {
	for i := range d.Values().Len() {
		if v := d.Values().Get(i); v.Number() != 0 {
			words = append(words, strings.ToLower(strings.TrimPrefix(string(v.Name()), enumPrefix(d))))
		}
	}
	return words
}

// ParseEnum reads what EnumText writes, in any case and with '-' for '_'.
func ParseEnum(d protoreflect.EnumDescriptor, text string) (protoreflect.EnumNumber, error) {
	name := enumPrefix(d) + strings.ToUpper(strings.ReplaceAll(text, "-", "_"))
	if v := d.Values().ByName(protoreflect.Name(name)); v != nil && v.Number() != 0 {
		return v.Number(), nil
	}
	return 0, fmt.Errorf("%q is not one of %s", text, strings.Join(EnumWords(d), ", "))
}

// enumPrefix is what all names of an enum begin with, as its zero value shows.
func enumPrefix(d protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(d.Values().ByNumber(0).Name()), "UNSPECIFIED")
}

// ParsePorts reads ports and ranges, like "80,443,8000-8999".
func ParsePorts(text string) ([]*pb.PortRange, error) {
	var ranges []*pb.PortRange
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		f, err1 := ParsePort(from)
		t, err2 := ParsePort(to)
		switch {
		case err1 != nil || err2 != nil:
			return nil, fmt.Errorf("%q is not a port or range of ports; write them like 80,443,8000-8999", part)
		case f > t:
			return nil, fmt.Errorf("%q runs backwards; write %d-%d", part, t, f)
		}
		ranges = append(ranges, &pb.PortRange{From: f, To: t})
	}
	return ranges, nil
}

// ParsePort reads one port, 1 to 65535.
func ParsePort(text string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port; ports are 1 to 65535", text)
	}
	return uint32(n), nil
}

// PortsText is what ParsePorts reads.
func PortsText(ranges []*pb.PortRange) string {
	var parts []string
	for _, r := range ranges {
		parts = append(parts, portRangeText(r))
	}
	return strings.Join(parts, ",")
}

func portRangeText(r *pb.PortRange) string {
	if r.GetFrom() == r.GetTo() {
		return strconv.FormatUint(uint64(r.GetFrom()), 10)
	}
	return fmt.Sprintf("%d-%d", r.GetFrom(), r.GetTo())
}

// DurationText is a duration without parts that are 0: "5m" and not "5m0s".
func DurationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ListenerLabel names a listener as people do: "web:443", with the protocol if it is not TCP.
func ListenerLabel(accelerator string, l *pb.Listener) string {
	text := accelerator + ":"
	if len(l.GetPortRanges()) > 0 {
		text += strconv.FormatUint(uint64(l.GetPortRanges()[0].GetFrom()), 10)
	}
	if l.GetProtocol() != pb.Protocol_PROTOCOL_TCP {
		text += "/" + EnumText(l.GetProtocol())
	}
	return text
}
