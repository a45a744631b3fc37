package countries

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Config of a Keeper. Store is needed.
type Config struct {
	Store *store.Store
	Files []string // of the database; none: this controller has none

	Look    time.Duration         // how often the files are looked at; 5 s
	Log     *slog.Logger          // nil: discarded
	Metrics prometheus.Registerer // nil: not registered
}

// Keeper keeps the lists of a cluster. One a controller; safe for concurrent use.
type Keeper struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	kick    chan struct{} // capacity 1: there may be something to do

	// Set by Run.
	id      string
	leading func() bool

	mu     sync.Mutex // guards what follows
	own    *Database  // nil: none
	stored stored
	named  []model.CountryCode // by listeners, sorted
	fault  error               // of the last attempt to load the files
	full   error               // the lists that listeners name are too many

	// Owned by the goroutine that looks at the files.
	looked []os.FileInfo
}

// New makes a Keeper. Nothing is started or read before Run.
func New(cfg Config) (*Keeper, error) {
	if cfg.Store == nil {
		return nil, errors.New("countries: a store is needed")
	}
	if cfg.Look <= 0 {
		cfg.Look = lookEvery
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, log: cfg.Log, kick: make(chan struct{}, 1), leading: func() bool { return false }}
	var err error
	k.metrics, err = newMetrics(cfg.Metrics, k)
	return k, err
}

// Run keeps the lists until ctx ends. id is this controller's; leading says whether it leads, as the leader takes
// away lists that nobody names.
func (k *Keeper) Run(ctx context.Context, id string, c *catalog.Catalog, leading func() bool) error {
	k.id, k.leading = id, leading
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return k.cfg.Store.Watch(ctx, prefix, 0, func(u store.Update) error {
			k.mu.Lock()
			err := k.stored.take(u)
			k.mu.Unlock()
			if err != nil {
				k.log.Error("a list of countries' networks is not readable", "err", err)
			}
			k.poke()
			return nil
		})
	})
	g.Go(func() error {
		return c.Watch(ctx, func(s *catalog.State) error {
			k.mu.Lock()
			k.named = model.NamedCountries(s.Listeners)
			k.mu.Unlock()
			k.poke()
			return nil
		})
	})
	g.Go(func() error { return k.watchFiles(ctx) })
	g.Go(func() error { return k.reconcile(ctx) })
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (k *Keeper) poke() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// watchFiles loads the database at the start and whenever a file is another one.
func (k *Keeper) watchFiles(ctx context.Context) error {
	if len(k.cfg.Files) == 0 {
		return nil
	}
	tick := time.NewTicker(k.cfg.Look)
	defer tick.Stop()
	for {
		k.look()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look loads the files if they are not those of the last look.
func (k *Keeper) look() {
	now := make([]os.FileInfo, len(k.cfg.Files))
	for i, path := range k.cfg.Files {
		now[i], _ = os.Stat(path) // nil: it is not there, which Open says
	}
	if k.looked != nil && slices.EqualFunc(k.looked, now, sameFile) {
		return
	}
	k.looked = now
	began := time.Now()
	d, err := Open(k.cfg.Files)
	k.mu.Lock()
	k.fault = err
	if err == nil {
		k.own = d
	}
	k.mu.Unlock()
	if err != nil {
		k.metrics.faults.Inc()
		k.log.Error("the country database is not loaded; lists stay as they are", "err", err)
		return
	}
	k.metrics.compile.Set(time.Since(began).Seconds())
	k.log.Info("country database loaded", "type", d.Type, "built", d.Built.Format(time.RFC3339),
		"countries", len(d.lists), "took", time.Since(began).Round(time.Millisecond))
	k.poke()
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// reconcile writes what is to be written until ctx ends.
func (k *Keeper) reconcile(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	collect := false
	for {
		var again <-chan time.Time
		if err := k.step(ctx, collect); err != nil && ctx.Err() == nil {
			k.log.Warn("lists of countries' networks are not stored; trying again", "err", err)
			again = time.After(retryEvery)
		}
		collect = false
		select {
		case <-ctx.Done():
			return nil
		case <-k.kick:
		case <-again:
		case <-tick.C:
			collect = true
		}
	}
}

// wins says whether a list of the own database takes the place of a stored one.
func (k *Keeper) wins(own *Database, s model.CountrySource) bool {
	return own.Built.After(s.Built) || s.Controller == k.id && !bytes.Equal(own.Hash, s.Hash)
}

// step writes the own database's description and lists where they are to be, and takes away what nobody names.
func (k *Keeper) step(ctx context.Context, collect bool) error {
	k.mu.Lock()
	own, named := k.own, k.named
	database, databaseModified, ready := k.stored.database, k.stored.databaseModified, k.stored.ready
	heads := maps.Clone(k.stored.heads)
	k.mu.Unlock()
	if !ready {
		return nil
	}
	if own != nil && (database == nil || k.wins(own, database.CountrySource)) {
		if err := k.describe(ctx, own, databaseModified); err != nil {
			return err
		}
	}
	var write []model.CountryCode
	total := 0
	for _, code := range named {
		h, there := heads[code]
		if own != nil && (!there || k.wins(own, h.source)) {
			write = append(write, code)
			total += own.Networks[code]
		} else {
			total += h.networks
		}
	}
	if err := k.fits(total); err != nil {
		return nil // said there: it is no fault of the store
	}
	for _, code := range write {
		if err := k.write(ctx, own, code, heads[code].modified); err != nil {
			return err
		}
	}
	if collect && k.leading() {
		for code, h := range heads {
			if _, found := slices.BinarySearch(named, code); !found {
				if err := k.txn(ctx, listsPrefix+string(code), h.modified, nil); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// fits notes and says whether so many networks can be told to nodes.
func (k *Keeper) fits(total int) error {
	var err error
	if total > model.CountryNetworksMax {
		err = fmt.Errorf("the countries that listeners name have %d networks together; at most %d are possible: "+
			"the lists stay as they are", total, model.CountryNetworksMax)
	}
	k.mu.Lock()
	said := k.full != nil
	k.full = err
	k.mu.Unlock()
	if err != nil && !said {
		k.log.Error("lists of countries' networks are not updated", "err", err)
	}
	return err
}

func (k *Keeper) source(d *Database) model.CountrySource {
	s := d.CountrySource
	s.Controller = k.id
	return s
}

func (k *Keeper) describe(ctx context.Context, own *Database, modified uint64) error {
	d := own.CountryDatabase
	d.CountrySource = k.source(own)
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(model.CountryDatabaseToProto(&d))
	if err != nil {
		return err
	}
	_, err = k.cfg.Store.Txn(ctx, []store.Cond{store.Unchanged(databaseKey, modified)}, store.Put(databaseKey, value))
	return overtaken(err)
}

func (k *Keeper) write(ctx context.Context, own *Database, code model.CountryCode, modified uint64) error {
	value, err := proto.Marshal(&v1.StoredCountryList{
		List:   &v1.CountryList{Country: string(code), Networks: own.List(code)},
		Source: model.CountrySourceToProto(k.source(own)),
	})
	if err != nil {
		return err
	}
	k.log.Info("list of a country's networks written", "country", code, "networks", own.Networks[code],
		"bytes", len(value), "built", own.Built.Format(time.RFC3339))
	return k.txn(ctx, listsPrefix+string(code), modified, value)
}

// txn writes a list, or deletes it, if it is still the one that was looked at.
func (k *Keeper) txn(ctx context.Context, key string, modified uint64, value []byte) error {
	op := store.Delete(key)
	if value != nil {
		op = store.Put(key, value)
	}
	_, err := k.cfg.Store.Txn(ctx, []store.Cond{store.Unchanged(key, modified)}, op,
		store.Put(RevisionKey, []byte(k.id)))
	return overtaken(err)
}

// overtaken makes a conflict no error: the watch tells what came first, and then it is looked at again.
func overtaken(err error) error {
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}
