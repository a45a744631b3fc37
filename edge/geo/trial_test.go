package geo

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/mmdb"
)

// fleet is a world of sites with a node each, and a database that has every client in Frankfurt.
type fleet struct {
	snapshot *model.Snapshot
	db       *Database
	near     map[model.SiteName]time.Duration // the truth about the client
	known    map[model.SiteName]time.Duration // measured so far
}

var lied = netip.MustParseAddr("20.1.2.3")

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{known: map[model.SiteName]time.Duration{}, near: map[model.SiteName]time.Duration{}}
	f.snapshot = &model.Snapshot{Pools: []model.Pool{{Name: "p", Kind: model.PoolNode}},
		Sites: []model.Site{{Name: "fra", Latitude: 50.1, Longitude: 8.7}, {Name: "iad", Latitude: 39, Longitude: -77.5},
			{Name: "sin", Latitude: 1.35, Longitude: 103.8}, {Name: "hkg", Latitude: 22.3, Longitude: 114.2}}}
	for i, s := range f.snapshot.Sites {
		f.snapshot.Nodes = append(f.snapshot.Nodes, model.Node{ID: model.NodeID(s.Name), Name: string(s.Name), Site: s.Name,
			Edge: true, ServiceAddresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}})
	}
	db := mmdb.New(true)
	db.Add(netip.MustParsePrefix("20.0.0.0/8"), mmdb.FlatPlace("DE", 50.0, 8.6))
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, db.Bytes("test-City"), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.db, err = Open([]string{path}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) table() *Table {
	n := model.ClientNetwork{Prefix: model.ClientNetworkOf(lied)}
	for site, rtt := range f.known {
		n.Sites = append(n.Sites, model.ClientSite{Site: site, RTT: rtt, Samples: 1})
	}
	return Compile(NewMap(f.snapshot.Sites, f.snapshot.Steering, f.db, []model.ClientNetwork{n}), f.snapshot,
		func(*model.Node) string { return "" })
}

// run lets the client come for so many stretches of time: where it goes it is measured.
func (f *fleet) run(slots int) (visits map[model.SiteName]int, last Choice) {
	visits = map[model.SiteName]int{}
	for slot := 1; slot <= slots; slot++ {
		t := f.table()
		last = t.Choose(t.Pool("p"), lied, false, &Scratch{Slot: uint64(slot)})
		visits[last.Site]++
		f.known[last.Site] = f.near[last.Site]
		if last.Trial && last.TTL > TrialSlot {
			visits["too long a trial"]++
		}
	}
	return visits, last
}

// TestTrial: a network whose place is a lie is measured at the sites that may be nearer, and moves to the
// one that is; a site that physics rules out is never tried.
func TestTrial(t *testing.T) {
	f := newFleet(t)
	f.near = map[model.SiteName]time.Duration{"fra": 180 * time.Millisecond, "iad": 240 * time.Millisecond,
		"sin": 12 * time.Millisecond, "hkg": 45 * time.Millisecond}
	before := f.table().Choose(f.table().Pool("p"), lied, false, &Scratch{Slot: 1})
	if before.Site != "fra" || before.Source != SourcePlace {
		t.Fatalf("by the database alone: %+v", before)
	}
	f.snapshot.Steering.ExplorePercent = 20
	visits, last := f.run(300)
	if last.Site != "sin" || last.Source != SourceRTT || visits["too long a trial"] > 0 {
		t.Errorf("in the end %+v after %v", last, visits)
	}
	if visits["sin"] < 150 || visits["hkg"] > 3 || visits["iad"] > 3 {
		t.Errorf("visits: %v", visits)
	}
	t.Logf("visits: %v", visits)

	// The database is right: Singapore is 100 ms of fibre away from there and cannot be nearer.
	f = newFleet(t)
	f.snapshot.Steering.ExplorePercent = 20
	for _, s := range f.snapshot.Sites {
		f.near[s.Name] = 9 * time.Millisecond
	}
	if visits, _ := f.run(300); visits["fra"] != 300 {
		t.Errorf("visits although nothing can be gained: %v", visits)
	}

	f = newFleet(t)
	f.near["fra"], f.snapshot.Steering.ExploreOff = 180*time.Millisecond, true
	if visits, _ := f.run(300); visits["fra"] != 300 {
		t.Errorf("visits although trials are off: %v", visits)
	}
}

// TestTrialShare: trials are as rare as they shall be, alike for all of a network, and spread over the sites.
func TestTrialShare(t *testing.T) {
	f := newFleet(t)
	f.known["fra"] = 180 * time.Millisecond
	table, s, trials := f.table(), &Scratch{}, map[model.SiteName]int{}
	rng := rand.New(rand.NewPCG(7, 8))
	const slots = 30_000
	for slot := range uint64(slots) {
		s.Slot = slot + 1
		c := table.Choose(table.Pool("p"), lied, false, s)
		b := lied.As4()
		b[3] = byte(rng.IntN(256))
		if other := table.Choose(table.Pool("p"), netip.AddrFrom4(b), false, s); other.Site != c.Site {
			t.Fatalf("slot %d: %v and %v for one network", slot, c.Site, other.Site)
		}
		if c.Trial {
			trials[c.Site]++
		}
	}
	total := 0
	for _, site := range []model.SiteName{"iad", "sin", "hkg"} {
		total += trials[site]
		if trials[site] < 120 {
			t.Errorf("%s was tried %d times: %v", site, trials[site], trials)
		}
	}
	if share := float64(total) / slots * 100; share < 1.7 || share > 2.3 {
		t.Errorf("%.2f %% of the time are trials, should be %d", share, model.DefaultExplorePercent)
	}
	if c := table.Choose(table.Pool("p"), lied, false, &Scratch{}); c.Trial {
		t.Error("a trial in an explanation")
	}
}

// TestMeasuredLine: what the client's own line costs is not held against the site that is measured.
func TestMeasuredLine(t *testing.T) {
	f := newFleet(t)
	f.snapshot.Sites = append(f.snapshot.Sites, model.Site{Name: "ams", Latitude: 52.3, Longitude: 4.8})
	f.known["fra"] = 25 * time.Millisecond // 25 ms of DSL, and Amsterdam is 5 ms away
	s := new(Scratch)
	m := NewMap(f.snapshot.Sites, model.Steering{}, f.db, []model.ClientNetwork{{Prefix: model.ClientNetworkOf(lied),
		Sites: []model.ClientSite{{Site: "fra", RTT: f.known["fra"]}}}})
	j := m.judge(lied, s)
	if a, f := m.index("ams"), m.index("fra"); s.scores[a] <= s.scores[f] || j.source != SourceRTT {
		t.Errorf("%+v: %v", j, s.scores)
	}
}

func TestDirect(t *testing.T) {
	f := newFleet(t)
	m := NewMap(f.snapshot.Sites, model.Steering{}, f.db, nil)
	d, source, ok := m.Direct(lied, "fra", 11*time.Millisecond, []model.SiteName{"sin", "hkg"})
	if !ok || source != SourcePlace || d < 145*time.Millisecond || d > 175*time.Millisecond {
		t.Errorf("from Frankfurt with a line of 11 ms to Singapore: %v %v %v", d, source, ok)
	}
	if _, _, ok := m.Direct(netip.MustParseAddr("99.1.1.1"), "fra", 1, []model.SiteName{"sin"}); ok {
		t.Error("an estimate for a client that no database has")
	}
	if _, _, ok := (*Map)(nil).Direct(lied, "fra", 1, nil); ok {
		t.Error("an estimate without a map")
	}
}
