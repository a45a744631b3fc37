package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// running is an agent of a test and what it was told to apply.
type running struct {
	*Agent
	stop func()

	mu      sync.Mutex
	applied []uint64
	fail    func(*model.Snapshot) error
}

func (r *running) revisions() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Trim(fmt.Sprint(r.applied), "[]")
}

func (r *running) failWith(f func(*model.Snapshot) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = f
}

func newAgent(t *testing.T, c *cluster, dir string, change func(*Config), controllers ...string) *running {
	t.Helper()
	r := &running{}
	cfg := Config{
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		DataDir: dir, Controllers: controllers, Token: c.token.String(), Version: "v1",
		Node: model.Node{Name: "node-1", Site: "ams", Edge: true},
		Apply: func(s *model.Snapshot) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.fail != nil {
				if err := r.fail(s); err != nil {
					return err
				}
			}
			r.applied = append(r.applied, s.Revision)
			return nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Agent = a
	return r
}

// run identifies the agent and runs it until the test or stop ends it.
func (r *running) run(t *testing.T) *running {
	t.Helper()
	if _, err := r.Identify(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.stop = leak.Run(t, r.Run)
	return r
}

const nowhere = "127.0.0.1:1" // nobody listens there

func TestEnrolOnce(t *testing.T) {
	c := newCluster(t)
	ctl := c.start()
	dir := t.TempDir()
	creds, err := newAgent(t, c, dir, nil, ctl.addr).Identify(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if s := creds.Subject(); s.String() != "spiffe://test/node/n1" {
		t.Errorf("enrolled as %v", s)
	}
	ctl.server.Stop()
	again, err := newAgent(t, c, dir, func(c *Config) { c.Token = "" }, nowhere).Identify(context.Background())
	if err != nil || again.Subject() != creds.Subject() {
		t.Errorf("from disk: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "identity", "identity.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity file: %v, %v", info, err)
	}
}

// TestTokenStaysSecret: a controller of another cluster gets the connection and not the token.
func TestTokenStaysSecret(t *testing.T) {
	c, impostor := newCluster(t), newCluster(t)
	ctl := impostor.start()
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	_, err := newAgent(t, c, t.TempDir(), nil, ctl.addr).Identify(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("enrolled at an impostor: %v", err)
	}
	if impostor.enrols != 0 {
		t.Error("the impostor got the token")
	}
}

func TestEnrolRefused(t *testing.T) {
	c := newCluster(t)
	c.deny = status.Error(codes.AlreadyExists, "another node has the name")
	ctl := c.start()
	_, err := newAgent(t, c, t.TempDir(), nil, ctl.addr).Identify(context.Background())
	if err == nil || !strings.Contains(err.Error(), "another node has the name") {
		t.Errorf("%v", err)
	}
	_, err = newAgent(t, c, t.TempDir(), func(c *Config) { c.Token = "" }, ctl.addr).Identify(context.Background())
	if err == nil || !strings.Contains(err.Error(), "join token") {
		t.Errorf("without a token: %v", err)
	}
}

func TestSnapshotsAreAppliedKeptAndRestored(t *testing.T) {
	c := newCluster(t)
	ctl := c.start()
	dir := t.TempDir()
	a := newAgent(t, c, dir, nil, ctl.addr).run(t)
	stream := c.stream(1)
	for _, revision := range []uint64{5, 6, 7} {
		if ack := c.send(stream, update(encoded(t, revision, nil))); !ack.GetApplied() {
			t.Fatalf("revision %d: %v", revision, ack)
		}
	}
	if ack := c.send(stream, update(encoded(t, 6, nil))); ack.GetApplied() {
		t.Error("an older one was applied")
	}
	if ack := c.send(stream, update(encoded(t, 7, nil))); !ack.GetApplied() {
		t.Error("the one in use was refused")
	}
	if got := a.revisions(); got != "5 6 7" {
		t.Errorf("applied %s", got)
	}
	eventually(t, "the newest is on disk", func() bool {
		found, _ := a.disk.load()
		return len(found) > 0 && found[0].snapshot.Revision == 7
	})
	a.stop()

	// Every controller is dead.
	ctl.server.Stop()
	b := newAgent(t, c, dir, nil, ctl.addr).run(t)
	eventually(t, "the snapshot on disk is applied", func() bool { return b.Status().Revision != 0 })
	if s := b.Status(); !s.FromDisk || s.Revision != 7 || s.Controller != "" || b.revisions() != "7" {
		t.Errorf("%+v, applied %s", s, b.revisions())
	}
	b.stop()

	// A controller that has lost its memory cannot take the node back in time.
	ctl = c.start()
	before := c.helloCount()
	d := newAgent(t, c, dir, nil, ctl.addr).run(t)
	stream = c.stream(2)
	if h := c.hellos[before]; h.GetAppliedRevision() != 7 || len(h.GetAppliedHash()) != 32 ||
		h.GetNode().GetName() != "node-1" || h.GetVersion() != "v1" {
		t.Errorf("hello: %v", h)
	}
	ack := c.send(stream, update(encoded(t, 3, nil)))
	if ack.GetApplied() || !strings.Contains(ack.GetRejections()[0].GetMessage(), "older") {
		t.Errorf("%v", ack)
	}
	if got := d.revisions(); got != "7" {
		t.Errorf("applied %s", got)
	}
}

// TestBadSnapshots: each is refused whole with a reason, and the next good one is applied.
func TestBadSnapshots(t *testing.T) {
	c := newCluster(t)
	ctl := c.start()
	a := newAgent(t, c, t.TempDir(), nil, ctl.addr).run(t)
	stream := c.stream(1)
	if ack := c.send(stream, update(encoded(t, 1, nil))); !ack.GetApplied() {
		t.Fatal(ack)
	}
	wrongHash := update(encoded(t, 2, nil))
	wrongHash.Hash = make([]byte, 32)
	garbage := stored{snapshot: &model.Snapshot{Revision: 2}, raw: []byte("garbage")}
	garbage.hash = sha256.Sum256(garbage.raw)
	wrongRevision := update(encoded(t, 2, nil))
	wrongRevision.Revision = 3
	inconsistent := update(encoded(t, 2, func(s *model.Snapshot) {
		s.Groups = []model.EndpointGroup{{ID: "0123456789ab", Listener: "nowhere", Region: "r"}}
	}))
	foreign := update(encoded(t, 2, func(s *model.Snapshot) { s.Cluster = "other" }))
	for _, bad := range []struct {
		name   string
		update *pb.SnapshotUpdate
		apply  func(*model.Snapshot) error
		field  string
		reason string
	}{
		{"wrong hash", wrongHash, nil, "snapshot", "hash"},
		{"garbage", update(garbage), nil, "snapshot", ""},
		{"wrong revision", wrongRevision, nil, "snapshot", "revision 2"},
		{"inconsistent", inconsistent, nil, "groups[0123456789ab]", ""},
		{"of another cluster", foreign, nil, "snapshot", "cluster"},
		{"empty", &pb.SnapshotUpdate{Revision: 2}, nil, "snapshot", ""},
		{"not applicable", update(encoded(t, 2, nil)), func(*model.Snapshot) error {
			return model.FieldErrors{{Field: "listeners[x].port_ranges[0]", Message: "port is in use"}}
		}, "listeners[x]", "in use"},
		{"poison", update(encoded(t, 2, nil)), func(*model.Snapshot) error {
			var none []int
			return fmt.Errorf("%d", none[3])
		}, "snapshot", "panic"},
	} {
		a.failWith(bad.apply)
		ack := c.send(stream, bad.update)
		if ack.GetApplied() || len(ack.GetRejections()) == 0 {
			t.Errorf("%s: %v", bad.name, ack)
			continue
		}
		r := ack.GetRejections()[0]
		if !strings.HasPrefix(r.GetField(), bad.field) || !strings.Contains(r.GetMessage(), bad.reason) {
			t.Errorf("%s: %v", bad.name, r)
		}
		if s := a.Status(); s.Revision != 1 || s.Rejection == "" {
			t.Errorf("%s: %+v", bad.name, s)
		}
	}
	a.failWith(nil)
	if ack := c.send(stream, update(encoded(t, 3, nil))); !ack.GetApplied() {
		t.Error(ack)
	}
	if s := a.Status(); s.Revision != 3 || s.Rejection != "" {
		t.Errorf("%+v", s)
	}
}

func TestCompare(t *testing.T) {
	c := newCluster(t)
	ctl := c.start()
	newAgent(t, c, t.TempDir(), nil, ctl.addr).run(t)
	stream := c.stream(1)
	one, two := encoded(t, 1, nil), encoded(t, 2, nil)
	c.send(stream, update(one))
	compare := func(s stored) {
		m := &pb.Compare{Revision: s.snapshot.Revision, Hash: s.hash[:]}
		if err := stream.Send(&pb.ControllerMessage{Body: &pb.ControllerMessage_Compare{Compare: m}}); err != nil {
			t.Fatal(err)
		}
	}
	compare(one) // nothing to ask for
	compare(two)
	eventually(t, "it asks for what it lacks", func() bool { return c.helloCount() == 2 })
	bad := encoded(t, 3, func(s *model.Snapshot) { s.Cluster = "other" })
	c.send(stream, update(bad))
	compare(bad) // it was refused, and would be again
	c.send(stream, update(two))
	if n := c.helloCount(); n != 2 {
		t.Errorf("%d hellos", n)
	}
}

func TestReports(t *testing.T) {
	c := newCluster(t)
	first, second := c.start(), c.start()
	since := time.Unix(1e9, 0)
	all := []Health{{
		Group: "g", Endpoint: "e", State: model.HealthHealthy, Since: since, Latency: time.Millisecond,
	}}
	a := newAgent(t, c, t.TempDir(), func(cfg *Config) {
		cfg.Health = func() []Health { return all }
		cfg.Notes = func() []string { return []string{"no kernel dispatch"} }
	}, first.addr, second.addr).run(t)
	health := func(m *pb.NodeMessage) *pb.HealthReport { return m.GetHealth() }
	check := func() {
		t.Helper()
		h := hear(c, health)
		if !h.GetComplete() || len(h.GetEndpoints()) != 1 {
			t.Fatalf("%v", h)
		}
		e := h.GetEndpoints()[0]
		if e.GetState() != pb.HealthState_HEALTH_STATE_HEALTHY || !e.GetSince().AsTime().Equal(since) ||
			e.GetLatency().AsDuration() != time.Millisecond {
			t.Errorf("%v", e)
		}
		notes := hear(c, func(m *pb.NodeMessage) *pb.NodeNotes { return m.GetNotes() })
		if len(notes.GetNotes()) != 1 {
			t.Errorf("%v", notes)
		}
	}
	check()
	eventually(t, "a session", func() bool { return a.Status().Controller != "" })
	a.ReportHealth(Health{Group: "g", Endpoint: "e", State: model.HealthUnhealthy, Reason: "status 503"})
	h := hear(c, health)
	if h.GetComplete() || len(h.GetEndpoints()) != 1 || h.GetEndpoints()[0].GetReason() != "status 503" {
		t.Errorf("%v", h)
	}
	// Its controller dies: the other one gets a complete report.
	if a.Status().Controller == first.addr {
		first.server.Stop()
	} else {
		second.server.Stop()
	}
	c.stream(2)
	check()
}

func TestFullDisk(t *testing.T) {
	c := newCluster(t)
	ctl := c.start()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "snapshots"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, c, dir, nil, ctl.addr).run(t)
	if ack := c.send(c.stream(1), update(encoded(t, 1, nil))); !ack.GetApplied() {
		t.Fatal(ack)
	}
	eventually(t, "a note about the disk", func() bool {
		return strings.Contains(strings.Join(a.Notes(), "\n"), "disk: ")
	})
	eventually(t, "the controller hears it", func() bool {
		// It may have been heard before the acknowledgement above.
		c.mu.Lock()
		defer c.mu.Unlock()
		return strings.Contains(strings.Join(c.notes, "\n"), "disk: ")
	})
}

func TestRenewal(t *testing.T) {
	c := newCluster(t)
	c.ttl, c.renewed = 10*time.Minute, 24*time.Hour // dated back an hour, so the first is due at once
	ctl := c.start()
	dir := t.TempDir()
	a := newAgent(t, c, dir, nil, ctl.addr).run(t)
	eventually(t, "the certificate is renewed", func() bool {
		return time.Until(a.creds.Load().NotAfter()) > 23*time.Hour
	})
	eventually(t, "and kept", func() bool {
		kept, err := identity.LoadCredentials(filepath.Join(dir, "identity"))
		return err == nil && time.Until(kept.NotAfter()) > 23*time.Hour
	})
}

// TestRenewalRests: a new certificate that is due already is not renewed again and again.
func TestRenewalRests(t *testing.T) {
	c := newCluster(t)
	key, request, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	for _, ttl := range []time.Duration{10 * time.Minute, 24 * time.Hour} {
		leaf, _, err := c.sign(request, ttl)
		if err != nil {
			t.Fatal(err)
		}
		creds, err := identity.NewCredentials(leaf, key, []*x509.Certificate{c.ca.Certificate()})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		at, soon := renewal(creds, time.Time{}), renewal(creds, now.Add(time.Minute))
		if due := ttl < time.Hour; due != at.Before(now) || due != soon.Equal(now.Add(time.Minute)) {
			t.Errorf("one of %v is renewed at %v, and if that may not be within a minute at %v; now it is %v", ttl, at, soon, now)
		}
	}
}

// TestHeldBack: a snapshot that crashed the process twice is passed over at the third start.
func TestHeldBack(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	good, bad := encoded(t, 1, nil), encoded(t, 2, nil)
	ctl := c.start()
	if _, err := newAgent(t, c, dir, nil, ctl.addr).Identify(context.Background()); err != nil {
		t.Fatal(err)
	}
	d := disk{dir: filepath.Join(dir, "snapshots")}
	for _, s := range []stored{good, bad} {
		if err := d.save(s.snapshot.Revision, s.raw); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "trial.json")
	for range trialCrashes {
		openTrials(path, true, time.Now()).begin(bad.hash, time.Now())
	}
	a := newAgent(t, c, dir, func(c *Config) { c.Crashed = true }, ctl.addr).run(t)
	ack := c.send(c.stream(1), update(bad))
	if ack.GetApplied() || a.revisions() != "1" {
		t.Errorf("applied %s, %v", a.revisions(), ack)
	}
	if ack := c.send(c.stream(1), update(encoded(t, 3, nil))); !ack.GetApplied() {
		t.Error(ack)
	}
}

func TestValidate(t *testing.T) {
	good := Config{
		DataDir: "x", Controllers: []string{"a:1"}, Node: model.Node{Name: "n", Site: "s"},
		Apply: func(*model.Snapshot) error { return nil },
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no directory":   func(c *Config) { c.DataDir = "" },
		"no controllers": func(c *Config) { c.Controllers = nil },
		"no port":        func(c *Config) { c.Controllers = []string{"a"} },
		"no name":        func(c *Config) { c.Node.Name = "" },
		"no apply":       func(c *Config) { c.Apply = nil },
	} {
		c := good
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
