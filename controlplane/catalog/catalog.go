// Package catalog answers: what configuration may this cluster have, and what does it have?
//
// Every rule of the configuration lives here once, whichever API a change comes through. Every change
// is one transaction of the store that holds only if no other change came between reading and
// writing, so rules that span objects (ports that must not overlap, addresses given once, quotas) hold
// whatever operators do at the same time at different controllers.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// Config of a Catalog.
type Config struct {
	// Store holds it. Its Run must be running too.
	Store *store.Store
	// Cluster is the cluster's name, put into every State.
	Cluster string
	// Debounce is how long Watch waits for more changes before it tells them. Default 20 ms: what one
	// `nearcast apply` does arrives as few snapshots, and a lone change is hardly delayed.
	Debounce time.Duration
	// Countries says what the cluster's country database has; nil if there is none, and whether that is known.
	// nil: countries in guards are not compared with it.
	Countries func() (d *model.CountryDatabase, known bool)

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Options of a change. The zero value is right for most.
type Options struct {
	// ExpectedRevision, when not 0, makes the change fail with Aborted if the object's Revision is
	// another one by now.
	ExpectedRevision uint64
	// IdempotencyToken makes a create that is sent again return what the first one made. At most 255
	// bytes; it lives as long as the object. Creates of accelerators, listeners and groups only.
	IdempotencyToken string
	// Force lets a change through that a guard would refuse (ReasonGuard): one that takes away so much
	// at once that it is more likely a mistake than meant.
	Force bool
}

// PageOptions asks for one page of a listing, oldest object first.
type PageOptions struct {
	Size  int    // 1–1000; 0: 100
	Token string // what the page before returned; empty: the first page
}

// State is the whole configuration at one moment. It is immutable: nobody may change what it refers
// to. The lists are sorted by their keys (ids or names).
type State struct {
	// Revision of the store at which the configuration came to be this. Equal revisions mean equal
	// States at every controller.
	Revision     uint64
	Cluster      string
	Accelerators []model.Accelerator
	Listeners    []model.Listener
	Groups       []model.EndpointGroup // Host of each endpoint is resolved; Health is HealthInitial
	Targets      []model.Target
	Pools        []model.Pool
	Regions      []model.Region
	Sites        []model.Site
	Nodes        []model.Node // all, also revoked ones
	BGPPeers     []model.BGPPeer
	Settings     model.Settings
	GossipKeys   [][]byte // the first one encrypts, all decrypt

	Subnets             []model.Subnet
	CustomRoutingGroups []model.CustomRoutingGroup
	Zones               []model.Zone
	Steering            model.Steering
	Cookies             [][]byte // secrets of DNS cookies: the first one makes them, all are taken
}

// Catalog is the configuration of one cluster. Its methods may be called from any goroutine; they wait
// until Run has read the store, within their context. Reads show at least every change that was
// answered, at whichever controller, before the read was asked for.
type Catalog struct {
	cfg     Config
	metrics *metrics
	writer  chan struct{} // holds one element while a change of this process is being made
	ready   chan struct{} // closed with the first apply

	mu      sync.RWMutex
	objects *objects      // guarded by mu; what its entries hold is never changed in place
	changed chan struct{} // guarded by mu; closed and replaced when objects change
	state   *State        // guarded by mu; of objects, or nil if it was not asked for since they changed
}

// New returns a Catalog over cfg.Store. Nothing is started before Run.
func New(cfg Config) (*Catalog, error) {
	if cfg.Store == nil {
		return nil, errors.New("catalog: a store is needed")
	}
	if cfg.Debounce == 0 {
		cfg.Debounce = watchDebounce
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Catalog{
		cfg: cfg, writer: make(chan struct{}, 1), ready: make(chan struct{}),
		objects: newObjects(), changed: make(chan struct{}),
	}
	var err error
	c.metrics, err = newMetrics(cfg.Metrics, c)
	return c, err
}

// Run follows the store until ctx ends, and then returns nil.
func (c *Catalog) Run(ctx context.Context) error {
	err := c.cfg.Store.Watch(ctx, configPrefix, 0, c.apply)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Ready is closed once the catalog has been read from the store.
func (c *Catalog) Ready() <-chan struct{} { return c.ready }

// apply takes over what the store told, or what this process wrote to it.
func (c *Catalog) apply(u store.Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !u.Reset && u.Revision <= c.objects.revision {
		return nil // it is our own change coming back
	}
	c.objects.apply(u)
	if err := c.objects.readable(); err != nil {
		c.cfg.Log.Error("configuration is not readable: nothing is told to nodes and no change is taken",
			"error", err)
	}
	c.state = nil
	close(c.changed)
	c.changed = make(chan struct{})
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
	return nil
}

// fresh waits until every change is known here that was answered anywhere before it was called.
func (c *Catalog) fresh(ctx context.Context) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
	var want uint64
	switch kv, err := c.cfg.Store.Get(ctx, guardKey); {
	case err == nil:
		want = kv.Modified
	case !errors.Is(err, store.ErrNotFound):
		return unavailable(err)
	}
	for {
		c.mu.RLock()
		known, changed := c.objects.guard, c.changed
		c.mu.RUnlock()
		if known >= want {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return unavailable(ctx.Err())
		}
	}
}

// read calls f with the configuration as it is now. f must copy what it keeps.
func (c *Catalog) read(ctx context.Context, f func(*objects) error) error {
	if err := c.fresh(ctx); err != nil {
		return err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return f(c.objects)
}

// Load returns the configuration as it is now.
func (c *Catalog) Load(ctx context.Context) (*State, error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	s, _, err := c.known()
	return s, err
}

// known returns the State of what is known here, and what is closed when that changes.
func (c *Catalog) known() (*State, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.objects.readable(); err != nil {
		return nil, c.changed, err
	}
	if c.state == nil {
		c.state = c.objects.state(c.cfg.Cluster)
	}
	return c.state, c.changed, nil
}

// Watch calls fn with the present State and then with a fresh one after changes (several close together
// are one call), until ctx ends or fn returns an error, which it returns. It needs no quorum: while the
// store is away, or holds what this version cannot read, it tells nothing.
func (c *Catalog) Watch(ctx context.Context, fn func(*State) error) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	var told *State
	for {
		s, changed, err := c.known()
		if err == nil && (told == nil || s.Revision != told.Revision) {
			told = s
			if err := fn(s); err != nil {
				return err
			}
		}
		if err := c.settle(ctx, changed); err != nil {
			return err
		}
	}
}

// settle waits for a change and then until there was none for a moment.
func (c *Catalog) settle(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
	case <-ctx.Done():
		return ctx.Err()
	}
	for range debounceMax {
		c.mu.RLock()
		changed = c.changed
		c.mu.RUnlock()
		t := time.NewTimer(c.cfg.Debounce)
		select {
		case <-changed:
			t.Stop()
		case <-t.C:
			return nil
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
	return nil
}

// list returns one page of the objects of a table for which keep holds, oldest first, as out makes them.
func list[K ~string, T any](c *Catalog, ctx context.Context, p PageOptions, t func(*objects) *table[K, T],
	keep func(*T) bool, out func(*objects, *T) T) (page []T, next string, err error) {
	size := p.Size
	if size == 0 {
		size = pageSizeDefault
	}
	if size < 1 || size > pageSizeMax {
		return nil, "", field(ReasonNone, "page_size", "is %d; use 1 to %d, or 0 for %d",
			size, pageSizeMax, pageSizeDefault)
	}
	var after uint64
	if p.Token != "" {
		if after, err = strconv.ParseUint(p.Token, 36, 64); err != nil {
			return nil, "", field(ReasonInvalidPageToken, "page_token",
				"is not one that this listing gave; take it from the page before")
		}
	}
	err = c.read(ctx, func(o *objects) error {
		var found []*entry[T]
		for e := range t(o).entries() {
			if e.created > after && (keep == nil || keep(&e.value)) {
				found = append(found, e)
			}
		}
		// One transaction makes one object of a kind, so no two have the same place.
		slices.SortFunc(found, func(a, b *entry[T]) int { return cmp.Compare(a.created, b.created) })
		if len(found) > size {
			found = found[:size]
			next = strconv.FormatUint(found[size-1].created, 36)
		}
		for _, e := range found {
			page = append(page, out(o, &e.value))
		}
		return nil
	})
	return page, next, err
}

// plain is list's out for kinds that are read as they are stored.
func plain[K ~string, T any](k *kind[K, T]) func(*objects, *T) T {
	return func(_ *objects, v *T) T { return k.clone(*v) }
}

// get returns one object as out makes it.
func get[K ~string, T any](c *Catalog, ctx context.Context, t func(*objects) *table[K, T], k K,
	out func(*objects, *T) T) (v T, err error) {
	err = c.read(ctx, func(o *objects) error {
		found, err := t(o).need(k)
		if err == nil {
			v = out(o, found)
		}
		return err
	})
	return v, err
}

// metrics counts what this process does to the configuration.
type metrics struct {
	changes, retries prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Catalog) (*metrics, error) {
	m := &metrics{
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_catalog_changes_total",
			Help: "Changes of the configuration that this controller made.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_catalog_change_retries_total",
			Help: "Times that a change started over because another controller had changed something.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, col := range []prometheus.Collector{m.changes, m.retries,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_catalog_unreadable_objects",
			Help: "Stored objects that this version cannot read; while there are any, nodes are told nothing new.",
		}, func() float64 {
			c.mu.RLock()
			defer c.mu.RUnlock()
			return float64(len(c.objects.broken))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_catalog_revision",
			Help: "Store revision of the newest configuration known here.",
		}, func() float64 {
			c.mu.RLock()
			defer c.mu.RUnlock()
			return float64(c.objects.guard)
		}),
	} {
		if err := reg.Register(col); err != nil {
			return nil, err
		}
	}
	return m, nil
}
