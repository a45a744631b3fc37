package snapshot

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// input is one golden case: a State whose objects are written as in the API, and verdicts.
type input struct {
	Cluster      string
	Revision     uint64
	Accelerators []json.RawMessage
	Listeners    []json.RawMessage
	Groups       []json.RawMessage
	Pools        []json.RawMessage
	Regions      []json.RawMessage
	Sites        []json.RawMessage
	Nodes        []json.RawMessage
	Settings     json.RawMessage
	GossipKeys   [][]byte
	Verdicts     []struct{ Group, Endpoint, State, Reason string }
}

func decode[T any, M any, P interface {
	*M
	proto.Message
}](t *testing.T, raw []json.RawMessage, from func(P) (T, error)) (all []T) {
	t.Helper()
	for _, r := range raw {
		p := P(new(M))
		if err := protojson.Unmarshal(r, p); err != nil {
			t.Fatal(err)
		}
		v, err := from(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func read(t *testing.T, path string) (*catalog.State, map[health.Key]health.Verdict, uint64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var in input
	if err := json.Unmarshal(b, &in); err != nil {
		t.Fatal(err)
	}
	s := &catalog.State{
		Cluster:      in.Cluster,
		Accelerators: decode(t, in.Accelerators, model.AcceleratorFromProto),
		Listeners:    decode(t, in.Listeners, model.ListenerFromProto),
		Groups:       decode(t, in.Groups, model.EndpointGroupFromProto),
		Pools:        decode(t, in.Pools, model.PoolFromProto),
		Regions:      decode(t, in.Regions, model.RegionFromProto),
		Sites:        decode(t, in.Sites, model.SiteFromProto),
		Nodes:        decode(t, in.Nodes, model.NodeFromProto),
		GossipKeys:   in.GossipKeys,
	}
	if in.Settings != nil {
		s.Settings = decode(t, []json.RawMessage{in.Settings}, model.SettingsFromProto)[0]
	}
	verdicts := map[health.Key]health.Verdict{}
	states := map[string]model.HealthState{"healthy": model.HealthHealthy, "unhealthy": model.HealthUnhealthy,
		"initial": model.HealthInitial}
	for _, v := range in.Verdicts {
		state, known := states[v.State]
		if !known {
			t.Fatalf("unknown state %q", v.State)
		}
		k := health.Key{Group: model.GroupID(v.Group), Endpoint: model.EndpointID(v.Endpoint)}
		verdicts[k] = health.Verdict{State: state, Reason: v.Reason, Since: time.Unix(1, 0)}
	}
	return s, verdicts, in.Revision
}

// render writes a result as the golden files have it. protojson varies its spacing on purpose, so it is
// indented by encoding/json.
func render(t *testing.T, snap *model.Snapshot, err error) string {
	t.Helper()
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), "; ", "\n  ") + "\n"
	}
	b, hash, err := model.EncodeSnapshot(snap)
	if err != nil {
		t.Fatal(err)
	}
	var p pb.Snapshot
	if err := proto.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(&p)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if text, err = json.MarshalIndent(v, "", "  "); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("sha256 %x, %d bytes\n%s\n", hash, len(b), text)
}

// TestGolden builds each case of testdata, as it is and with its lists in other orders.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.in.json")
	if err != nil || len(paths) < 6 {
		t.Fatalf("found %d cases (%v)", len(paths), err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			s, verdicts, revision := read(t, path)
			before, _, _ := read(t, path)
			snap, err := Build(s, verdicts, nil, revision)
			got := render(t, snap, err)
			golden := strings.TrimSuffix(path, ".in.json") + ".out"
			if *rewrite {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("run with -rewrite if this is meant:\n%s", diff)
			}
			if !reflect.DeepEqual(s, before) {
				t.Error("Build changed the State")
			}
			for seed := range uint64(5) {
				shuffle(s, seed)
				snap, err := Build(s, verdicts, nil, revision)
				if err == nil && render(t, snap, err) != got {
					t.Errorf("in another order it is\n%s", render(t, snap, err))
				}
			}
		})
	}
}

func shuffle(s *catalog.State, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	r.Shuffle(len(s.Accelerators), reflect.Swapper(s.Accelerators))
	r.Shuffle(len(s.Listeners), reflect.Swapper(s.Listeners))
	r.Shuffle(len(s.Groups), reflect.Swapper(s.Groups))
	r.Shuffle(len(s.Pools), reflect.Swapper(s.Pools))
	r.Shuffle(len(s.Regions), reflect.Swapper(s.Regions))
	r.Shuffle(len(s.Sites), reflect.Swapper(s.Sites))
	r.Shuffle(len(s.Nodes), reflect.Swapper(s.Nodes))
}

func TestReason(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""}, {"status 503", "status 503"}, {"bad \xff byte", "bad ? byte"},
		{strings.Repeat("a", 2000), strings.Repeat("a", model.ReasonMax)},
		{strings.Repeat("a", model.ReasonMax-1) + "é", strings.Repeat("a", model.ReasonMax-1)},
	} {
		if got := reason(c.in); got != c.want {
			t.Errorf("%.20q…: %d bytes, want %d", c.in, len(got), len(c.want))
		}
	}
}

// large is a State of n accelerators with a listener and two groups of four endpoints each.
func large(n int) *catalog.State {
	s := &catalog.State{Cluster: "large", Regions: []model.Region{{Name: "eu"}, {Name: "us"}},
		Pools: []model.Pool{
			{Name: "a", Kind: model.PoolAnycast, Zone: "a", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}},
			{Name: "b", Kind: model.PoolAnycast, Zone: "b", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")}},
		},
	}
	for i := range n {
		a := model.Accelerator{
			ID: model.AcceleratorID(fmt.Sprintf("accelerator-%06d", i)), Name: "n", Enabled: true, Project: "p",
			Pools: []model.PoolName{"a", "b"}, DNSName: fmt.Sprintf("a%016x.nearcast.internal", i),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}),
				netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)})},
		}
		l := model.Listener{ID: model.ListenerID(fmt.Sprintf("%08x", i)), Accelerator: a.ID, Protocol: model.TCP,
			PortRanges:     []model.PortRange{{From: 443, To: 443}},
			TCPIdleTimeout: model.DefaultTCPIdleTimeout, UDPIdleTimeout: model.DefaultUDPIdleTimeout}
		s.Accelerators, s.Listeners = append(s.Accelerators, a), append(s.Listeners, l)
		for j, region := range []model.RegionName{"eu", "us"} {
			g, _ := model.EndpointGroupFromProto(nil)
			g.ID, g.Listener, g.Region = model.GroupID(fmt.Sprintf("%011x%d", i, j)), l.ID, region
			for k := range 4 {
				host := fmt.Sprintf("10.%d.%d.%d", k, byte(i>>8), byte(i))
				g.Endpoints = append(g.Endpoints, model.Endpoint{ID: model.EndpointID(host), Host: host, Weight: 128})
			}
			s.Groups = append(s.Groups, g)
		}
	}
	return s
}

func BenchmarkBuild1000(b *testing.B) {
	s := large(1000)
	verdicts := map[health.Key]health.Verdict{}
	for _, g := range s.Groups {
		for _, e := range g.Endpoints {
			verdicts[health.Key{Group: g.ID, Endpoint: e.ID}] = health.Verdict{State: model.HealthHealthy}
		}
	}
	b.ReportAllocs()
	var bytes int
	for b.Loop() {
		snap, err := Build(s, verdicts, nil, 1)
		if err != nil {
			b.Fatal(err)
		}
		encoded, _, err := model.EncodeSnapshot(snap)
		if err != nil {
			b.Fatal(err)
		}
		bytes = len(encoded)
	}
	b.ReportMetric(float64(bytes), "snapshot-bytes")
}

func TestCountryLists(t *testing.T) {
	s := large(2)
	s.Listeners[0].Guard.DenyCountries = []model.CountryCode{"DE", "KP"}
	s.Listeners[1].Guard.AllowCountries = []model.CountryCode{"AT", "DE", "XK"}
	pack := func(networks ...string) []byte {
		var all []netip.Prefix
		for _, n := range networks {
			all = append(all, netip.MustParsePrefix(n))
		}
		return model.PackNetworks(all)
	}
	lists := map[model.CountryCode][]byte{"DE": pack("10.0.0.0/8"), "AT": pack("11.0.0.0/8", "2001:db8::/32"),
		"FR": pack("12.0.0.0/8"), "KP": nil, "XK": {9, 9, 9}}
	snap, err := Build(s, nil, lists, 7)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range snap.CountryLists {
		got = append(got, string(l.Country))
	}
	if strings.Join(got, " ") != "AT DE KP" { // XK cannot be read, FR is not named
		t.Errorf("lists of %v", got)
	}
	encoded, _, err := model.EncodeSnapshot(snap)
	if err != nil {
		t.Fatal(err)
	}
	back, err := model.DecodeSnapshot(encoded)
	if err != nil || len(back.CountryLists) != 3 || !reflect.DeepEqual(back.CountryList("AT").Networks, lists["AT"]) {
		t.Errorf("came back as %v, %v", back, err)
	}
}
