package store

import (
	"context"
	"errors"
	"time"
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
// before Run has got the store ready: they wait for it, within their context and Config.Timeout.
type Store struct {
	cfg   Config
	ready chan struct{}
}

// New returns a Store for cfg. Nothing is started or connected before Run.
func New(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Store{cfg: cfg, ready: make(chan struct{})}, nil
}

// Run starts the embedded server, or connects to the external one, and serves until ctx ends. It
// returns nil after an orderly end.
func (s *Store) Run(ctx context.Context) error { return errors.New("not built yet") }

// Ready is closed once the store has answered.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Get returns one key. Errors: ErrNotFound, ErrUnavailable.
func (s *Store) Get(ctx context.Context, key string) (KV, error) { return KV{}, ErrUnavailable }

// List returns the keys under prefix, sorted. It reads in bounded pages of one revision, so a long
// listing is consistent. Errors: ErrUnavailable.
func (s *Store) List(ctx context.Context, prefix string, o ListOptions) (Page, error) {
	return Page{}, ErrUnavailable
}

// Txn makes all of ops if every one of conds holds, and none otherwise. It returns the revision of
// the store after it. Errors: ErrConflict, ErrUnavailable, ErrNoSpace, ErrTooLarge.
func (s *Store) Txn(ctx context.Context, conds []Cond, ops ...Op) (uint64, error) {
	return 0, ErrUnavailable
}

// Put writes one key without conditions.
func (s *Store) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return s.Txn(ctx, nil, Put(key, value))
}

// Delete removes one key. Errors: ErrNotFound, and Txn's.
func (s *Store) Delete(ctx context.Context, key string) (uint64, error) { return 0, ErrUnavailable }

// Watch calls fn for every change under prefix, in order, until ctx ends or fn returns an error, which
// it returns. With from 0 the first Update is a Reset with everything there is; otherwise the first one
// tells what changed after revision from.
//
// The watch survives reconnects and compaction, and does not trust the stream of events alone: on a
// timer it lists the prefix again and tells the difference, if there is one.
func (s *Store) Watch(ctx context.Context, prefix string, from uint64, fn func(Update) error) error {
	return ErrUnavailable
}

// Session runs fn with a lease that lives as long as fn runs and ttl beyond the store's last word from
// here: keys written with PutLeased say "somebody is alive". fn's context ends when the lease is lost,
// and Session then returns ErrUnavailable; otherwise it returns what fn returned. ttl has whole seconds
// and is at least 2 s.
func (s *Store) Session(ctx context.Context, ttl time.Duration,
	fn func(ctx context.Context, lease LeaseID) error) error {
	return ErrUnavailable
}

// Elect campaigns for the leadership called name until ctx ends, and runs lead whenever this process
// has it. At most one process leads; value tells everybody who (see Leader). lead's context ends when
// leadership is lost; since that may be noticed late, what it writes should be conditional on the
// Fence. When lead returns, another process gets its turn.
func (s *Store) Elect(ctx context.Context, name, value string,
	lead func(ctx context.Context, fence Fence) error) error {
	return ErrUnavailable
}

// Leader returns the value of the process that leads name now. Errors: ErrNotFound if nobody does.
func (s *Store) Leader(ctx context.Context, name string) (string, error) { return "", ErrUnavailable }

// Health says whether the store answers and what is wrong with it: nil, ErrUnavailable or ErrNoSpace.
func (s *Store) Health(ctx context.Context) error { return ErrUnavailable }
