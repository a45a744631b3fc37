package countries

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/mmdb"
)

func run(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// cluster is a store and a catalog with one listener, which asks the first keeper.
type cluster struct {
	t        *testing.T
	store    *store.Store
	catalog  *catalog.Catalog
	listener model.ListenerID
}

func newCluster(t *testing.T) *cluster {
	s, err := store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s.Run)
	return &cluster{t: t, store: s}
}

// keeper runs one more controller's keeper.
func (c *cluster) keeper(id string, files ...string) *Keeper {
	c.t.Helper()
	k, err := New(Config{Store: c.store, Files: files, Look: 20 * time.Millisecond})
	if err != nil {
		c.t.Fatal(err)
	}
	if c.catalog == nil {
		c.catalog, err = catalog.New(catalog.Config{Store: c.store, Cluster: "test", Countries: k.Database})
		if err != nil {
			c.t.Fatal(err)
		}
		run(c.t, c.catalog.Run)
		c.listen()
	}
	run(c.t, func(ctx context.Context) error { return k.Run(ctx, id, c.catalog, func() bool { return id == "a" }) })
	return k
}

func (c *cluster) listen() {
	c.t.Helper()
	ctx := c.t.Context()
	_, err := c.catalog.CreatePool(ctx, model.Pool{Name: "own", Kind: model.PoolNode}, catalog.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	a, err := c.catalog.CreateAccelerator(ctx, model.Accelerator{Name: "web", Enabled: true, Pools: []model.PoolName{"own"}},
		catalog.Options{})
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := model.ListenerFromProto(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	l.Accelerator, l.Protocol, l.PortRanges = a.ID, model.TCP, []model.PortRange{{From: 443, To: 443}}
	if l, err = c.catalog.CreateListener(ctx, l, catalog.Options{}); err != nil {
		c.t.Fatal(err)
	}
	c.listener = l.ID
}

func (c *cluster) deny(codes ...model.CountryCode) error {
	_, err := c.catalog.UpdateListener(c.t.Context(), c.listener, catalog.Options{}, func(l *model.Listener) error {
		l.Guard.DenyCountries = codes
		return nil
	})
	return err
}

// until waits for the lists to be, written as "DE=10.0.0.0/8,11.0.0.0/8 KP=".
func (c *cluster) until(want string) {
	c.t.Helper()
	var got string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		set, err := Read(c.t.Context(), c.store, Set{})
		if err != nil {
			c.t.Fatal(err)
		}
		var words []string
		for _, code := range []model.CountryCode{"AT", "DE", "KP"} {
			if packed, there := set.Lists[code]; there {
				networks, _ := model.UnpackNetworks(packed)
				words = append(words, string(code)+"="+strings.ReplaceAll(strings.Trim(fmt.Sprint(networks), "[]"), " ", ","))
			}
		}
		if got = strings.Join(words, " "); got == want {
			return
		}
	}
	c.t.Fatalf("the lists are %q, not %q", got, want)
}

// write puts a database in the place of path, made at the time of the testbed's databases and days later.
func write(t *testing.T, path string, days int, networks map[string]string) {
	t.Helper()
	w := mmdb.New(true)
	for network, code := range networks {
		w.Add(netip.MustParsePrefix(network), flat(code))
	}
	w.Built += int64(days) * 24 * 3600
	if err := os.WriteFile(path+".new", w.Bytes("test-Country"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestKeepers: lists follow what listeners name and what the files say, and two controllers with different
// databases settle on the newer one.
func TestKeepers(t *testing.T) {
	c, dir := newCluster(t), t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	write(t, first, 0, map[string]string{"10.0.0.0/8": "DE", "11.0.0.0/8": "AT"})
	write(t, second, 1, map[string]string{"12.0.0.0/8": "DE", "13.0.0.0/8": "AT"})
	none := c.keeper("n")
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // until the store is read
		err := c.deny("DE")
		if err == nil || time.Now().After(end) {
			t.Fatalf("a country without a database: %v", err)
		}
		if catalog.ReasonOf(err) == catalog.ReasonNoCountries && strings.Contains(err.Error(), "--country-database") {
			break
		}
	}
	a := c.keeper("a", first)
	until(t, "a database", func() bool { d, _ := none.Database(); return d != nil && d.Controller == "a" })
	if err := c.deny("DE", "KP"); err != nil {
		t.Fatal(err)
	}
	c.until("DE=10.0.0.0/8 KP=")
	write(t, first, 0, map[string]string{"10.0.0.0/9": "DE", "11.0.0.0/8": "AT"}) // its own may be replaced as it likes
	c.until("DE=10.0.0.0/9 KP=")
	b := c.keeper("b", second)
	c.until("DE=12.0.0.0/8 KP=")
	write(t, first, 0, map[string]string{"10.0.0.0/10": "DE", "11.0.0.0/8": "AT"}) // older than b's: of no use
	until(t, "a's other file", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		networks, _ := model.UnpackNetworks(a.own.List("DE"))
		return networks[0].Bits() == 10
	})
	if err := c.deny("AT", "DE"); err != nil {
		t.Fatal(err)
	}
	until(t, "AT by b", func() bool { st, _ := a.Status(time.Now()); return st.GetUsed()[0].GetSource().GetController() == "b" })
	c.until("AT=13.0.0.0/8 DE=12.0.0.0/8 KP=")

	if err := os.WriteFile(second, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the fault is said", func() bool {
		_, problems := b.Status(time.Now())
		return strings.Contains(strings.Join(problems, "\n"), "second")
	})
	c.until("AT=13.0.0.0/8 DE=12.0.0.0/8 KP=")
	write(t, second, 2, map[string]string{"14.0.0.0/8": "DE"})
	c.until("AT= DE=14.0.0.0/8 KP=")
	until(t, "the leader's minute, in which nobody names KP any more", func() bool {
		if err := a.step(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		set, err := Read(t.Context(), c.store, Set{})
		if err != nil {
			t.Fatal(err)
		}
		_, there := set.Lists["KP"]
		return !there
	})
	c.until("AT= DE=14.0.0.0/8")
	until(t, "what a controller without a database says", func() bool {
		st, problems := none.Status(time.Now())
		return len(st.GetUsed()) == 2 && st.GetUsed()[1].GetNetworks() == 1 && len(problems) == 1 &&
			strings.Contains(problems[0], "days old")
	})
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestTooManyNetworks: what does not fit is not written, and is said.
func TestTooManyNetworks(t *testing.T) {
	k := &Keeper{id: "a", log: slog.New(slog.DiscardHandler)}
	if k.fits(model.CountryNetworksMax) != nil || k.fits(model.CountryNetworksMax+1) == nil {
		t.Error("the limit is another one")
	}
	if _, problems := k.Status(time.Now()); len(problems) != 1 || !strings.Contains(problems[0], "1000000") {
		t.Errorf("problems %q", problems)
	}
}
