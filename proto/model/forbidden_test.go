package model

import (
	"net/netip"
	"strings"
	"testing"
)

func TestForbiddenAddr(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"10.1.2.3", ""}, {"192.168.0.1", ""}, {"8.8.8.8", ""}, {"2001:db8::1", ""}, {"fd00::1", ""},
		{"127.0.0.1", "loopback"}, {"127.255.0.9", "loopback"}, {"0.0.0.0", "this-network"},
		{"169.254.169.254", "link-local"}, {"100.100.100.200", "metadata"}, {"168.63.129.16", "platform"},
		{"224.0.0.1", "multicast"}, {"255.255.255.255", "reserved"},
		{"::", "unspecified"}, {"::1", "loopback"}, {"fe80::1", "link-local"}, {"fe80::1%eth0", "zone"},
		{"ff02::1", "multicast"}, {"fd00:ec2::254", "metadata"},
		{"::ffff:127.0.0.1", "loopback"}, {"::ffff:10.0.0.1", ""}, {"::127.0.0.1", "loopback"},
		{"64:ff9b::7f00:1", "loopback"}, {"64:ff9b::a00:1", ""}, {"64:ff9b:1:fffe::a9fe:a9fe", "NAT64"},
		{"2002:7f00:1::1", "loopback"}, {"2002:a00:1::", ""},
		{"2001:0:a9fe:a9fe::", "link-local"},
		{"2001:0:808:808:0:0:80ff:fffe", "loopback"}, // client 127.0.0.1 inverted
	} {
		err := ForbiddenAddr(netip.MustParseAddr(c.addr), nil)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v, want allowed", c.addr, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want an error with %q", c.addr, err, c.want)
		}
	}
	if ForbiddenAddr(netip.Addr{}, nil) == nil {
		t.Error("the zero address is allowed")
	}
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, a := range []string{"127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"} {
		if err := ForbiddenAddr(netip.MustParseAddr(a), allow); err != nil {
			t.Errorf("%s with 127.0.0.0/8 allowed: %v", a, err)
		}
	}
}

func TestEndpointRules(t *testing.T) {
	s := &Snapshot{
		Accelerators: []Accelerator{
			{ID: "any", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}},
			{ID: "own"},
		},
		Listeners: []Listener{
			{ID: "1", Accelerator: "any", PortRanges: []PortRange{{443, 443}}},
			{ID: "2", Accelerator: "own", PortRanges: []PortRange{{80, 90}}},
		},
		Nodes: []Node{{
			ID:                "n",
			BackboneAddresses: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.5:7444")},
			GossipAddress:     netip.MustParseAddrPort("10.0.0.5:7445"),
			ServiceAddresses:  []netip.Addr{netip.MustParseAddr("10.0.0.5")},
		}},
	}
	check := func(to, want string) {
		t.Helper()
		err := ForbiddenEndpoint(netip.MustParseAddrPort(to), s)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", to, err, want)
		}
	}
	check("10.0.0.5:8080", "") // an application may share its machine with a node
	check("10.0.0.5:85", "listener")
	check("[::ffff:10.0.0.5]:85", "listener")
	check("10.0.0.5:7444", "backbone")
	check("10.0.0.5:7445", "gossip")
	check("10.0.0.5:0", "")
	check("198.51.100.1:443", "listener")
	check("198.51.100.1:8080", "accelerated")
	check("198.51.100.1:0", "accelerated")
	check("127.0.0.1:80", "loopback")

	s.EndpointAllowNetworks = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	check("127.0.0.1:80", "")
	check("198.51.100.1:8080", "")
	check("10.0.0.5:85", "listener") // a loop stays one
	if err := ForbiddenEndpoint(netip.MustParseAddrPort("127.0.0.1:80"), nil); err == nil {
		t.Error("no snapshot: loopback is allowed")
	}
}
