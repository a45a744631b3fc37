package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is how long a test waits for what must happen; it is a bound and not a measure.
const patience = time.Minute

// start runs a store until the test ends or the returned function is called. Where a test says nothing of
// timeouts, an operation has patience: a member may take its time to start, and a machine to write.
func start(t *testing.T, cfg Config) (*Store, func()) {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	if len(cfg.Endpoints) == 0 {
		cfg.NoSync = true
		if cfg.DataDir == "" {
			cfg.DataDir = t.TempDir()
		}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := within(t, "the end of Run", ended); err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return s, stop
}

// within receives what must come.
func within[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
	return v
}

// settled repeats what may be repeated while the store is not available, as it is while members choose their
// leader: an operation on its way to the old one is lost then (ErrUnavailable says that it may have happened).
func settled[T any](t *testing.T, f func() (T, error)) (v T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		v, err := f()
		if err == nil {
			return v
		}
		if !errors.Is(err, ErrUnavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func ready(t *testing.T, s *Store) {
	t.Helper()
	within(t, "the store is ready", s.Ready())
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func TestKeys(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{Metrics: prometheus.NewRegistry()}) // operations wait for it
	_, err := s.Get(ctx, "a")
	wantErr(t, err, ErrNotFound)
	_, err = s.Delete(ctx, "a")
	wantErr(t, err, ErrNotFound)

	created := must[uint64](t)(s.Put(ctx, "a", []byte("1")))
	changed := must[uint64](t)(s.Put(ctx, "a", []byte("2")))
	got := must[KV](t)(s.Get(ctx, "a"))
	want := KV{Key: "a", Value: []byte("2"), Created: created, Modified: changed}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if changed <= created {
		t.Fatalf("revision %d after %d", changed, created)
	}
	must[uint64](t)(s.Delete(ctx, "a"))
	_, err = s.Get(ctx, "a")
	wantErr(t, err, ErrNotFound)
	if err := s.Health(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestTxn(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	rev := must[uint64](t)(s.Put(ctx, "there", []byte("x")))
	for _, c := range []struct {
		name  string
		conds []Cond
		ok    bool
	}{
		{"none", nil, true},
		{"absent holds", []Cond{Absent("not")}, true},
		{"absent fails", []Cond{Absent("there")}, false},
		{"present holds", []Cond{Present("there")}, true},
		{"present fails", []Cond{Present("not")}, false},
		{"unchanged holds", []Cond{Unchanged("there", rev)}, true},
		{"unchanged fails", []Cond{Unchanged("there", rev+1)}, false},
		{"unchanged 0 is absent", []Cond{Unchanged("not", 0)}, true},
		{"unchanged 0 of a key", []Cond{Unchanged("there", 0)}, false},
		{"one of two fails", []Cond{Present("there"), Present("not")}, false},
	} {
		_, err := s.Txn(ctx, c.conds, Put("out", []byte(c.name)), Put("out2", []byte(c.name)))
		if c.ok != (err == nil) || err != nil && !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", c.name, err)
		}
		out := must[KV](t)(s.Get(ctx, "out"))
		if wrote := string(out.Value) == c.name; wrote != c.ok {
			t.Errorf("%s: written %v", c.name, wrote)
		}
	}
	many := make([]Op, TxnOpsMax+1)
	for i := range many {
		many[i] = Put(fmt.Sprint("many", i), nil)
	}
	_, err := s.Txn(ctx, nil, many...)
	wantErr(t, err, ErrTooLarge)
	must[uint64](t)(s.Txn(ctx, nil, many[1:]...))
	_, err = s.Put(ctx, "big", make([]byte, TxnBytesMax+1))
	wantErr(t, err, ErrTooLarge)
	must[uint64](t)(s.Put(ctx, "big", make([]byte, TxnBytesMax-100)))
}

// TestTxnRace lets many create the same key: one may.
func TestTxnRace(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	var wg sync.WaitGroup
	wins := make(chan int, 20)
	for i := range 20 {
		wg.Go(func() {
			_, err := s.Txn(ctx, []Cond{Absent("one")}, Put("one", []byte(fmt.Sprint(i))))
			switch {
			case err == nil:
				wins <- i
			case !errors.Is(err, ErrConflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(wins) != 1 {
		t.Fatalf("%d made the key", len(wins))
	}
	if got := must[KV](t)(s.Get(ctx, "one")); string(got.Value) != fmt.Sprint(<-wins) {
		t.Fatalf("the key is %s", got.Value)
	}
}

func TestList(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	const n = 2*pageItems + 17
	for i := 0; i < n; i += 100 {
		var ops []Op
		for j := i; j < min(i+100, n); j++ {
			ops = append(ops, Put(fmt.Sprintf("l/%05d", j), []byte{byte(j)}))
		}
		must[uint64](t)(s.Txn(ctx, nil, ops...))
	}
	must[uint64](t)(s.Put(ctx, "lz", nil))
	must[uint64](t)(s.Put(ctx, "k", nil))

	all := must[Page](t)(s.List(ctx, "l/", ListOptions{}))
	if len(all.Items) != n || all.More {
		t.Fatalf("%d items, more %v", len(all.Items), all.More)
	}
	for i, kv := range all.Items {
		if kv.Key != fmt.Sprintf("l/%05d", i) || kv.Value[0] != byte(i) {
			t.Fatalf("item %d is %s", i, kv.Key)
		}
	}
	// Pages of one revision, while keys come and go.
	o := ListOptions{Limit: 700}
	var got []KV
	for {
		page := must[Page](t)(s.List(ctx, "l/", o))
		got = append(got, page.Items...)
		if !page.More {
			break
		}
		if len(page.Items) != o.Limit {
			t.Fatalf("a page of %d", len(page.Items))
		}
		o.After, o.Revision = page.Items[len(page.Items)-1].Key, page.Revision
		must[uint64](t)(s.Delete(ctx, got[0].Key))
		must[uint64](t)(s.Put(ctx, got[0].Key, []byte("again")))
		must[uint64](t)(s.Put(ctx, fmt.Sprintf("l/%05dx", 1000+len(got)), nil))
	}
	if diff := cmp.Diff(all.Items, got); diff != "" {
		t.Fatal(diff)
	}
	exact := must[Page](t)(s.List(ctx, "l/00", ListOptions{Limit: 1000}))
	if len(exact.Items) != 1000 || exact.More {
		t.Fatalf("an exact page: %d, more %v", len(exact.Items), exact.More)
	}
	keys := must[Page](t)(s.List(ctx, "l/0000", ListOptions{KeysOnly: true}))
	if len(keys.Items) != 10 || len(keys.Items[9].Value) != 0 || keys.Items[9].Modified == 0 {
		t.Fatalf("keys only: %v", keys.Items)
	}
	if none := must[Page](t)(s.List(ctx, "nothing/", ListOptions{})); len(none.Items) != 0 || none.Revision == 0 {
		t.Fatalf("an empty listing: %+v", none)
	}
	_, err := s.List(ctx, "l/", ListOptions{Revision: 1 << 40})
	wantErr(t, err, ErrCompacted)
}

func TestRestart(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s, stop := start(t, Config{DataDir: dir})
	rev := must[uint64](t)(s.Put(ctx, "kept", []byte("v")))
	stop()
	_, err := s.Get(ctx, "kept")
	wantErr(t, err, ErrUnavailable)

	s, _ = start(t, Config{DataDir: dir})
	if got := must[KV](t)(s.Get(ctx, "kept")); got.Modified != rev || string(got.Value) != "v" {
		t.Fatalf("after a restart: %+v", got)
	}
}

func TestNotRunning(t *testing.T) {
	s, err := New(Config{DataDir: t.TempDir(), Timeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(t.Context(), "a")
	wantErr(t, err, ErrUnavailable)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Get(ctx, "a")
	wantErr(t, err, context.Canceled)
}

// TestUnreadableDirectory: Run says what is wrong instead of waiting.
func TestUnreadableDirectory(t *testing.T) {
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{DataDir: file})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Fatal("a file was taken for a data directory")
	}
}

func TestConfig(t *testing.T) {
	tls := TLSFiles{Cert: "c", Key: "k", CA: "a"}
	for _, c := range []struct {
		name string
		cfg  Config
		ok   bool
	}{
		{"nothing", Config{}, false},
		{"directory", Config{DataDir: "d"}, true},
		{"external", Config{Endpoints: []string{"e:1"}}, true},
		{"both", Config{DataDir: "d", Endpoints: []string{"e:1"}}, false},
		{"half a TLS", Config{DataDir: "d", PeerTLS: TLSFiles{Cert: "c"}}, false},
		{"prefix", Config{DataDir: "d", Prefix: "x"}, false},
		{"address", Config{DataDir: "d", PeerListen: "nonsense"}, false},
		{"small quota", Config{DataDir: "d", QuotaBytes: QuotaBytesMin - 1}, false},
		{"large quota", Config{DataDir: "d", QuotaBytes: QuotaBytesMax + 1}, false},
		{"open peers", Config{DataDir: "d", PeerListen: "10.0.0.1:2380"}, false},
		{"open peers on purpose", Config{DataDir: "d", PeerListen: "10.0.0.1:2380", InsecurePeers: true}, true},
		{"secured peers", Config{DataDir: "d", PeerListen: "10.0.0.1:2380", PeerTLS: tls}, true},
		{"open clients", Config{DataDir: "d", ClientListen: ":2379"}, false},
		{"loopback clients", Config{DataDir: "d", ClientListen: "[::1]:2379"}, true},
		{"peers without this one", Config{DataDir: "d", PeerListen: "127.0.0.1:1", Name: "a",
			Peers: map[string]string{"b": "127.0.0.1:2"}}, false},
		{"peers", Config{DataDir: "d", PeerListen: "127.0.0.1:1", Name: "a",
			Peers: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:2"}}, true},
		{"peers nobody reaches", Config{DataDir: "d", Name: "a", Peers: map[string]string{"a": ""}}, false},
	} {
		if _, err := New(c.cfg); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
