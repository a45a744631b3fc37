package steer

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

func BenchmarkRoute(b *testing.B) {
	table := Compile(world(model.AffinityNone, "a 50 h", "b 0 u", "c 100 h"), "self",
		View{RTT: rtts("gw-a", 10, "gw-b", 50, "gw-c", 100)})
	tu := tuple(3)
	b.ReportAllocs()
	for b.Loop() {
		r, _ := table.Route(tu)
		r.Next()
	}
}

func BenchmarkListenerOf10000(b *testing.B) {
	s := world(model.AffinityNone, "a 100 h")
	s.Listeners = nil
	for i := range 10_000 {
		s.Listeners = append(s.Listeners, model.Listener{ID: model.ListenerID(fmt.Sprint(i)), Accelerator: "a",
			Protocol: model.TCP, PortRanges: []model.PortRange{{From: uint16(i*6 + 1), To: uint16(i*6 + 5)}}})
	}
	table := Compile(s, "self", View{})
	i := 0
	for b.Loop() {
		table.Listener(netip.AddrPortFrom(vip, uint16(i*7919)), flow.TCP)
		i++
	}
}

func BenchmarkCompile10000(b *testing.B) {
	s := world(model.AffinityNone, "a 100 h")
	s.Listeners, s.Groups = nil, nil
	for i := range 10_000 {
		id := model.ListenerID(fmt.Sprint(i))
		s.Listeners = append(s.Listeners, model.Listener{ID: id, Accelerator: "a",
			Protocol: model.TCP, PortRanges: []model.PortRange{{From: uint16(i*6 + 1), To: uint16(i*6 + 5)}}})
		s.Groups = append(s.Groups, model.EndpointGroup{ID: model.GroupID(id), Listener: id, Region: "a", TrafficDial: 100})
	}
	b.ReportAllocs()
	for b.Loop() {
		Compile(s, "self", View{RTT: rtts("gw-a", 10)})
	}
}
