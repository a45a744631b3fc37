package fleet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/controlplane/gains"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func clientAt(i int, rtt time.Duration, samples int) model.ClientNetwork {
	return model.ClientNetwork{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24),
		Sites: []model.ClientSite{{Site: "claimed", RTT: rtt, Samples: samples}}}
}

// TestMergeClients: one list of all nodes' words, by the sites that they are enrolled at.
func TestMergeClients(t *testing.T) {
	now := time.Unix(1e9, 0)
	say := func(at time.Time, list ...model.ClientNetwork) clientsReport { return clientsReport{list, at} }
	reports := map[model.NodeID]clientsReport{
		"fra1": say(now, clientAt(1, 10*time.Millisecond, 30), clientAt(2, 5*time.Millisecond, 1)),
		"fra2": say(now, clientAt(1, 14*time.Millisecond, 10)),
		"sin1": say(now, clientAt(1, 180*time.Millisecond, 2)),
		"old":  say(now.Add(-clientsAge-1), clientAt(3, 1, 1)),
		"gone": say(now, clientAt(4, 1, 1)),
	}
	site := func(id model.NodeID) model.SiteName {
		return map[model.NodeID]model.SiteName{"fra1": "fra", "fra2": "fra", "sin1": "sin", "old": "fra"}[id]
	}
	list, left := mergeClients(reports, site, nil, now)
	if len(list) != 2 || left != 0 {
		t.Fatalf("%+v, %d left out", list, left)
	}
	want := []model.ClientSite{{Site: "fra", RTT: 11 * time.Millisecond, Samples: 40},
		{Site: "sin", RTT: 180 * time.Millisecond, Samples: 2}}
	if fmt.Sprint(list[0].Sites) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", list[0].Sites, want)
	}

	// Noise is not told, and what has really moved is.
	reports["sin1"] = say(now, clientAt(1, 190*time.Millisecond, 3))
	reports["fra1"] = say(now, clientAt(1, 40*time.Millisecond, 30))
	again, _ := mergeClients(reports, site, list, now)
	if s := again[0].Sites; s[0].RTT < 30*time.Millisecond || s[1].RTT != 180*time.Millisecond {
		t.Errorf("%+v", s)
	}
}

// TestMergeClientsBounded: the busiest networks are told, whatever nodes say.
func TestMergeClientsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	reports := map[model.NodeID]clientsReport{}
	for n := range 12 {
		var list []model.ClientNetwork
		for i := range model.ClientNetworksMax {
			list = append(list, clientAt(n*model.ClientNetworksMax+i, time.Millisecond, 1+i))
		}
		reports[model.NodeID(fmt.Sprint(n))] = clientsReport{list, now}
	}
	list, left := mergeClients(reports, func(model.NodeID) model.SiteName { return "s" }, nil, now)
	if len(list) != model.ClientNetworksKnown || left != 12*model.ClientNetworksMax-model.ClientNetworksKnown {
		t.Fatalf("%d told, %d left out", len(list), left)
	}
	for _, n := range list {
		if n.Sites[0].Samples < model.ClientNetworksMax/4 {
			t.Fatalf("%v with %d samples is told, busier ones are not", n.Prefix, n.Sites[0].Samples)
		}
	}
	if wait := clientsWait(1<<20, clientsTold); wait < 30*time.Second || clientsWait(1, clientsTold) != clientsLeast {
		t.Errorf("a megabyte is told every %v", wait)
	}
}

// TestGainMetrics: what acceleration gives is shown by region, what it does not give beside it.
func TestGainMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	rows := []gains.Gain{
		{Region: "eu", Flows: 30, Client: 20 * time.Millisecond, Direct: 200 * time.Millisecond, DirectBy: model.DirectProbe},
		{Region: "eu", Flows: 10, Client: 20 * time.Millisecond, Direct: 20 * time.Millisecond, DirectBy: model.DirectPath},
		{Region: "us", Flows: 5, Client: 20 * time.Millisecond}, // nothing to compare with
	}
	if _, err := newMetrics(r, func() []gains.Gain { return rows }); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if strings.HasPrefix(name, "nearcast_gain_") {
				got[name] = m.GetGauge().GetValue()
			}
		}
	}
	want := map[string]float64{"nearcast_gain_flows all eu": 40, "nearcast_gain_flows losing eu": 10,
		"nearcast_gain_flows estimated eu": 10, "nearcast_gain_first_byte_seconds eu": 0.36}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestTookClients: what a node says is kept with the time, and nonsense is not.
func TestTookClients(t *testing.T) {
	x := newSession(t)
	x.tookClients(&v1.ClientNetworks{Networks: []*v1.ClientNetwork{{Prefix: []byte{1}}}})
	if x.clients != nil {
		t.Error("nonsense is kept")
	}
	x.tookClients(model.ClientNetworksToProto([]model.ClientNetwork{clientAt(1, time.Millisecond, 2)}))
	if len(x.clients.GetNetworks()) != 1 || x.clients.GetTime() == nil {
		t.Errorf("%v", x.clients)
	}
}
