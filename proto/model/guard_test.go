package model

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestGuard(t *testing.T) {
	for name, g := range map[string]*pb.Guard{
		"allow": {AllowNetworks: []string{"10.0.0.0/8"}}, "deny": {DenyNetworks: []string{"2001:db8::/32"}},
		"source": {SourceRate: &pb.GuardRate{PerSecond: 1, Burst: 2}}, "fragments": {DropFragments: true},
		"total": {TotalRate: &pb.GuardRate{PerSecond: 3, Burst: 4}}, "amplification": {MaxAmplification: 3},
		"country": {AllowCountries: []string{"AT", "DE"}}, "not there": {DenyCountries: []string{"KP"}},
		"syn": {SynRate: &pb.GuardRate{PerSecond: 5, Burst: 6}},
	} {
		l, err := ListenerFromProto(&pb.Listener{Guard: g})
		if err != nil || l.Guard.IsZero() || l.Guard.InKernel() == (name == "amplification") {
			t.Errorf("%s: %+v, %v", name, l.Guard, err)
		}
		if back := ListenerToProto(l).GetGuard(); !proto.Equal(back, g) {
			t.Errorf("%s: %v came back as %v", name, g, back)
		}
	}
	l, err := ListenerFromProto(&pb.Listener{Guard: &pb.Guard{SourceRate: &pb.GuardRate{PerSecond: 9}}})
	if err != nil || l.Guard.SourceRate != (GuardRate{9, 9}) {
		t.Errorf("a rate without a burst is %+v, %v", l.Guard.SourceRate, err)
	}
	if _, err := ListenerFromProto(&pb.Listener{Guard: &pb.Guard{DenyNetworks: []string{"x"}}}); err == nil ||
		!strings.Contains(err.Error(), "listener.guard.deny_networks[0]") {
		t.Errorf("no network: %v", err)
	}
	l, err = ListenerFromProto(&pb.Listener{Guard: &pb.Guard{DenyCountries: []string{"ru", " KP", "RU"}}})
	if err != nil || len(l.Guard.DenyCountries) != 2 || l.Guard.DenyCountries[0] != "KP" || l.Guard.DenyCountries[1] != "RU" {
		t.Errorf("codes are %v, %v", l.Guard.DenyCountries, err)
	}
	if _, err := ListenerFromProto(&pb.Listener{Guard: &pb.Guard{AllowCountries: []string{"DE", "Germany"}}}); err == nil ||
		!strings.Contains(err.Error(), `listener.guard.allow_countries[1]: "Germany" is not a country`) {
		t.Errorf("no country: %v", err)
	}
	for _, c := range []struct {
		field string
		g     Guard
		p     Protocol
	}{
		{"guard.syn_rate", Guard{SYNRate: GuardRate{1, 1}}, UDP},
		{"guard.deny_countries[0]", Guard{DenyCountries: []CountryCode{"XX"}}, TCP},
		{"guard.deny_countries[1]", Guard{AllowCountries: []CountryCode{"DE"}, DenyCountries: []CountryCode{"AT", "DE"}}, TCP},
		{"guard.max_amplification", Guard{MaxAmplification: 3}, TCP},
		{"guard.max_amplification", Guard{MaxAmplification: 101}, UDP},
		{"guard.total_rate.per_second", Guard{TotalRate: GuardRate{0, 5}}, TCP},
		{"guard.source_rate.burst", Guard{SourceRate: GuardRate{1, 2e9}}, TCP},
	} {
		l := Listener{Accelerator: "a", Protocol: c.p, PortRanges: []PortRange{{1, 1}}, Guard: c.g,
			TCPIdleTimeout: DefaultTCPIdleTimeout, UDPIdleTimeout: DefaultUDPIdleTimeout}
		if err := l.Validate(); err == nil || !strings.Contains(err.Error(), c.field) {
			t.Errorf("%+v: %v", c.g, err)
		}
	}
}
