package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors that callers decide by. Every method wraps one of them, or the context's error, or an error
// that means a fault in this program.
var (
	// ErrNotFound: there is no such key.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a condition of the transaction did not hold; nothing was written.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable: the store has no quorum, is not reachable, or is not running. A write that ends
	// so may still have happened.
	ErrUnavailable = errors.New("store unavailable")
	// ErrNoSpace: the store has reached its size quota and takes no writes.
	ErrNoSpace = errors.New("store is full")
	// ErrCompacted: the revision asked for is too old to be remembered, or not reached yet.
	ErrCompacted = errors.New("revision not available")
	// ErrTooLarge: more operations or bytes than one transaction may have.
	ErrTooLarge = errors.New("transaction too large")
)

// KV is one key with its value.
type KV struct {
	Key      string
	Value    []byte
	Created  uint64 // store revision at which the key came into being
	Modified uint64 // store revision of the last write
	Lease    LeaseID
}

// LeaseID names a lease; 0 is none.
type LeaseID int64

// Page is one part of a listing.
type Page struct {
	Items    []KV   // sorted by key
	Revision uint64 // the store's revision that the listing shows
	More     bool   // there are keys after the last item
}

// ListOptions narrows List. The zero value lists everything, now.
type ListOptions struct {
	Limit    int    // most items; 0: all
	After    string // begin after this key; empty: at the beginning
	Revision uint64 // as of this revision (all pages of a listing should name the first one's); 0: now
	KeysOnly bool   // leave the values out
}

// Cond is one condition of a transaction. Make it with Absent, Present or Unchanged.
type Cond struct {
	key      string
	kind     condKind
	revision uint64
}

type condKind uint8

const (
	condAbsent condKind = iota + 1
	condPresent
	condUnchanged
	condCreated
)

// Absent holds while there is no such key.
func Absent(key string) Cond { return Cond{key: key, kind: condAbsent} }

// Present holds while there is such a key.
func Present(key string) Cond { return Cond{key: key, kind: condPresent} }

// Unchanged holds while the key's KV.Modified is revision; 0 means that there is no such key.
func Unchanged(key string, revision uint64) Cond {
	if revision == 0 {
		return Absent(key)
	}
	return Cond{key: key, kind: condUnchanged, revision: revision}
}

// Op is one write of a transaction. Make it with Put, PutLeased or Delete.
type Op struct {
	key    string
	value  []byte
	lease  LeaseID
	delete bool
}

// Put writes value at key.
func Put(key string, value []byte) Op { return Op{key: key, value: value} }

// PutLeased writes value at key and ties it to a lease: when the lease ends, the key goes.
func PutLeased(key string, value []byte, lease LeaseID) Op {
	return Op{key: key, value: value, lease: lease}
}

// Delete removes key if it is there.
func Delete(key string) Op { return Op{key: key, delete: true} }

// Update is what a watch tells: how the keys under a prefix came from one state to the next.
type Update struct {
	Revision uint64   // what was told so far is the state at this revision of the store
	Reset    bool     // Puts is everything: forget all that was told before
	Puts     []KV     // new and changed keys, sorted by key
	Deletes  []string // keys that are gone, sorted
}

// Fence proves leadership: a transaction with its Cond writes only while this leader still leads.
type Fence struct{ cond Cond }

// Cond is the condition to put into every transaction that only the leader may make.
func (f Fence) Cond() Cond { return f.cond }

// Store is a handle on the one store of a cluster. Its methods may be called from any goroutine, also
// before Run has got the store ready: they wait for it, within their context and Config.Timeout. A
// method whose own context ends returns that context's error; all else that keeps the store from
// answering is ErrUnavailable.
type Store struct {
	cfg     Config // defaults filled
	metrics *metrics
	ready   chan struct{}    // closed by Run once client is set
	stopped chan struct{}    // closed when Run has returned
	client  *clientv3.Client // set before ready is closed, never changed
}

// New returns a Store for cfg. Nothing is started or connected before Run.
func New(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(cfg.Metrics, cfg.QuotaBytes)
	if err != nil {
		return nil, err
	}
	return &Store{
		cfg: cfg, metrics: m, ready: make(chan struct{}), stopped: make(chan struct{}),
	}, nil
}

// Ready is closed once the store has answered.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Get returns one key. Errors: ErrNotFound, ErrUnavailable.
func (s *Store) Get(ctx context.Context, key string) (KV, error) {
	client, opCtx, cancel, err := s.operation(ctx)
	if err != nil {
		return KV{}, err
	}
	defer cancel()
	r, err := client.Get(opCtx, s.cfg.Prefix+key)
	s.metrics.count("get", err)
	switch {
	case err != nil:
		return KV{}, classify(ctx, "get "+key, err)
	case len(r.Kvs) == 0:
		return KV{}, fmt.Errorf("get %s: %w", key, ErrNotFound)
	}
	return s.kv(r.Kvs[0]), nil
}

// List returns the keys under prefix, sorted. It reads in bounded pages of one revision, so a long
// listing is consistent. Errors: ErrCompacted, ErrUnavailable.
func (s *Store) List(ctx context.Context, prefix string, o ListOptions) (Page, error) {
	client, opCtx, cancel, err := s.operation(ctx)
	if err != nil {
		return Page{}, err
	}
	cancel() // a listing may take several operations, each with its own timeout
	page := Page{Revision: o.Revision}
	from := s.cfg.Prefix + prefix
	end := clientv3.GetPrefixRangeEnd(from)
	if o.After != "" {
		from = s.cfg.Prefix + o.After + "\x00"
	}
	for {
		limit := pageItems
		if o.Limit > 0 {
			limit = min(limit, o.Limit-len(page.Items))
		}
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(int64(limit)),
			clientv3.WithRev(int64(page.Revision))}
		if o.KeysOnly {
			opts = append(opts, clientv3.WithKeysOnly())
		}
		opCtx, cancel = context.WithTimeout(ctx, s.cfg.Timeout)
		r, err := client.Get(opCtx, from, opts...)
		cancel()
		s.metrics.count("list", err)
		if err != nil {
			return Page{}, classify(ctx, "list "+prefix, err)
		}
		if page.Revision == 0 {
			page.Revision = uint64(r.Header.Revision)
		}
		for _, kv := range r.Kvs {
			page.Items = append(page.Items, s.kv(kv))
		}
		page.More = r.More
		if !r.More || o.Limit > 0 && len(page.Items) >= o.Limit {
			return page, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// Txn makes all of ops if every one of conds holds, and none otherwise. It returns the revision of
// the store after it. Errors: ErrConflict, ErrUnavailable, ErrNoSpace, ErrTooLarge.
func (s *Store) Txn(ctx context.Context, conds []Cond, ops ...Op) (uint64, error) {
	if err := checkSize(conds, ops); err != nil {
		return 0, err
	}
	client, opCtx, cancel, err := s.operation(ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	cmps := make([]clientv3.Cmp, len(conds))
	for i, c := range conds {
		cmps[i] = c.compare(s.cfg.Prefix)
	}
	writes := make([]clientv3.Op, len(ops))
	for i, o := range ops {
		if key := s.cfg.Prefix + o.key; o.delete {
			writes[i] = clientv3.OpDelete(key)
		} else {
			writes[i] = clientv3.OpPut(key, string(o.value), clientv3.WithLease(clientv3.LeaseID(o.lease)))
		}
	}
	r, err := client.Txn(opCtx).If(cmps...).Then(writes...).Commit()
	s.metrics.count("txn", err)
	switch {
	case err != nil:
		err = classify(ctx, "write", err)
		if errors.Is(err, ErrNoSpace) {
			s.metrics.refused.Store(true)
			err = s.explainFull()
		}
		return 0, err
	case !r.Succeeded:
		s.metrics.conflicts.Inc()
		return uint64(r.Header.Revision), ErrConflict
	}
	s.metrics.refused.Store(false)
	return uint64(r.Header.Revision), nil
}

func checkSize(conds []Cond, ops []Op) error {
	bytes := 0
	for _, o := range ops {
		bytes += len(o.key) + len(o.value)
	}
	if len(conds) > TxnOpsMax || len(ops) > TxnOpsMax || bytes > TxnBytesMax {
		return fmt.Errorf("%w: %d conditions and %d writes of %d bytes; %d, %d and %d are possible",
			ErrTooLarge, len(conds), len(ops), bytes, TxnOpsMax, TxnOpsMax, TxnBytesMax)
	}
	return nil
}

func (c Cond) compare(prefix string) clientv3.Cmp {
	key := prefix + c.key
	switch c.kind {
	case condAbsent:
		return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	case condPresent:
		return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
	case condCreated:
		return clientv3.Compare(clientv3.CreateRevision(key), "=", int64(c.revision))
	default:
		return clientv3.Compare(clientv3.ModRevision(key), "=", int64(c.revision))
	}
}

// Put writes one key without conditions. Errors: Txn's.
func (s *Store) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return s.Txn(ctx, nil, Put(key, value))
}

// Delete removes one key. Errors: ErrNotFound, and Txn's.
func (s *Store) Delete(ctx context.Context, key string) (uint64, error) {
	rev, err := s.Txn(ctx, []Cond{Present(key)}, Delete(key))
	if errors.Is(err, ErrConflict) {
		return 0, fmt.Errorf("delete %s: %w", key, ErrNotFound)
	}
	return rev, err
}

// Health says whether the store answers and takes writes: nil, ErrUnavailable or ErrNoSpace.
func (s *Store) Health(ctx context.Context) error {
	client, opCtx, cancel, err := s.operation(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if _, err = client.Get(opCtx, s.cfg.Prefix, clientv3.WithCountOnly()); err != nil {
		return classify(ctx, "ask store", err)
	}
	alarms, err := client.AlarmList(opCtx)
	if err != nil {
		return classify(ctx, "ask store for alarms", err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return s.explainFull()
		}
	}
	return nil
}

// kv translates one key, without our prefix.
func (s *Store) kv(kv *mvccpb.KeyValue) KV {
	return KV{
		Key:      strings.TrimPrefix(string(kv.Key), s.cfg.Prefix),
		Value:    kv.Value,
		Created:  uint64(kv.CreateRevision),
		Modified: uint64(kv.ModRevision),
		Lease:    LeaseID(kv.Lease),
	}
}
