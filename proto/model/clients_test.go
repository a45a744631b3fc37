package model

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{})

func TestClientNetworks(t *testing.T) {
	list := []ClientNetwork{
		{Prefix: ClientNetworkOf(netip.MustParseAddr("::ffff:198.51.100.9")),
			Sites: []ClientSite{{Site: "fra", RTT: 12345 * time.Microsecond, Samples: 9}},
			Regions: []ClientRegion{{Region: "eu-fra-1", Flows: 4, Open: 81 * time.Millisecond,
				Backbone: 80 * time.Millisecond, Down: 3 << 20, Direct: 95 * time.Millisecond, DirectBy: DirectPlace}}},
		{Prefix: ClientNetworkOf(netip.MustParseAddr("2001:db8:7:8::1"))},
	}
	if list[0].Prefix.String() != "198.51.100.0/24" || list[1].Prefix.String() != "2001:db8:7::/48" {
		t.Fatalf("networks of clients: %v %v", list[0].Prefix, list[1].Prefix)
	}
	back, err := ClientNetworksFromProto(ClientNetworksToProto(list), 2)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(list, back, comparePrefixes); d != "" {
		t.Error(d)
	}
	for field, spoil := range map[string]func(*pb.ClientNetworks){
		"networks[1].prefix":            func(p *pb.ClientNetworks) { p.Networks[1].Prefix = []byte{1, 2} },
		"networks[0].sites[0].site":     func(p *pb.ClientNetworks) { p.Networks[0].Sites[0].Site = "" },
		"networks[0].sites[0].rtt":      func(p *pb.ClientNetworks) { p.Networks[0].Sites[0].Rtt = 1 << 31 },
		"networks[0].regions[0].region": func(p *pb.ClientNetworks) { p.Networks[0].Regions[0].Region = "a b" },
		"has 3 entries":                 func(p *pb.ClientNetworks) { p.Networks = append(p.Networks, p.Networks[0]) },
	} {
		p := ClientNetworksToProto(list)
		spoil(p)
		if _, err := ClientNetworksFromProto(p, 2); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestDirectPath(t *testing.T) {
	good := &pb.DirectPath{Network: "198.51.100.7/24", Region: "eu-fra-1", Rtt: durationpb.New(90 * time.Millisecond),
		Source: pb.DirectSource_DIRECT_SOURCE_OPERATOR}
	d, err := DirectPathFromProto(good)
	if err != nil || d.Network.String() != "198.51.100.0/24" {
		t.Fatalf("%+v, %v", d, err)
	}
	if again, err := DirectPathFromProto(DirectPathToProto(d)); err != nil || again != d {
		t.Errorf("%+v becomes %+v, %v", d, again, err)
	}
	for field, spoil := range map[string]func(*pb.DirectPath){
		"network": func(p *pb.DirectPath) { p.Network = "198.51.100.7/32" },
		"region":  func(p *pb.DirectPath) { p.Region = "" },
		"rtt":     func(p *pb.DirectPath) { p.Rtt = nil },
		"source":  func(p *pb.DirectPath) { p.Source = pb.DirectSource_DIRECT_SOURCE_PATH },
	} {
		p := proto.CloneOf(good)
		spoil(p)
		if _, err := DirectPathFromProto(p); err == nil || !strings.Contains(err.Error(), "path."+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// FuzzClientNetworks: whatever comes is refused with a reason, or survives being said again.
func FuzzClientNetworks(f *testing.F) {
	good, err := proto.Marshal(ClientNetworksToProto([]ClientNetwork{{Prefix: netip.MustParsePrefix("198.51.100.0/24"),
		Sites: []ClientSite{{Site: "fra", RTT: time.Millisecond, Samples: 1}}, Regions: []ClientRegion{{Region: "r"}}}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(pb.ClientNetworks)
		if proto.Unmarshal(b, p) != nil {
			return
		}
		list, err := ClientNetworksFromProto(p, ClientNetworksMax)
		if err != nil {
			return
		}
		back, err := ClientNetworksFromProto(ClientNetworksToProto(list), ClientNetworksMax)
		if err != nil || !cmp.Equal(list, back, comparePrefixes, cmpopts.EquateEmpty()) {
			t.Errorf("%+v becomes %+v, %v", list, back, err)
		}
	})
}
