package catalog

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// change is one mutation in the making: rules read and stage in objects, which shows the
// configuration as it will be; writes collects what goes to the store.
type change struct {
	*objects
	writes []write
	now    time.Time
}

type write struct {
	key     string
	value   []byte
	delete  bool
	created uint64 // KV.Created of the key; 0: this write makes it
}

// change makes one mutation: f reads the configuration, checks the rules and stages writes, and all of
// them are written if nobody else changed the configuration meanwhile. If somebody did, f runs again on
// what is there now. f does no I/O.
func (c *Catalog) change(ctx context.Context, f func(*change) error) error {
	// One change at a time in this process: they would only make each other start over.
	select {
	case c.writer <- struct{}{}:
		defer func() { <-c.writer }()
	case <-ctx.Done():
		return unavailable(ctx.Err())
	}
	for attempt := range changeAttempts {
		if attempt > 0 {
			c.metrics.retries.Inc()
			if err := pause(ctx, mathrand.N(time.Duration(attempt)*changePause)); err != nil {
				return unavailable(err)
			}
		}
		if err := c.fresh(ctx); err != nil {
			return err
		}
		ch, err := c.prepare(f)
		if err != nil {
			return err
		}
		if len(ch.writes) == 0 {
			return nil
		}
		err = c.commit(ctx, ch)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return &Error{Code: Aborted, Reason: ReasonContention, Message: fmt.Sprintf(
		"others changed the configuration %d times while this change was being made; try again", changeAttempts)}
}

// prepare runs f on what is known now.
func (c *Catalog) prepare(f func(*change) error) (*change, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if err := c.objects.readable(); err != nil {
		return nil, err
	}
	ch := &change{objects: c.objects.view(), now: time.Now().UTC().Round(0)}
	return ch, f(ch)
}

// commit writes what was staged, if the configuration is still the one it was staged on.
func (c *Catalog) commit(ctx context.Context, ch *change) error {
	ops := []store.Op{store.Put(guardKey, []byte(c.cfg.Cluster))}
	for _, w := range ch.writes {
		if w.delete {
			ops = append(ops, store.Delete(w.key))
		} else {
			ops = append(ops, store.Put(w.key, w.value))
		}
	}
	revision, err := c.cfg.Store.Txn(ctx, []store.Cond{store.Unchanged(guardKey, ch.guard)}, ops...)
	switch {
	case errors.Is(err, store.ErrConflict):
		return err
	case errors.Is(err, store.ErrTooLarge):
		return &Error{Code: LimitExceeded, Reason: ReasonLimit, Err: err, Message: err.Error()}
	case err != nil:
		return unavailable(err)
	}
	// The store's watch will tell the same; whoever reads here next should not have to wait for it.
	u := store.Update{Revision: revision}
	u.Puts = append(u.Puts, store.KV{Key: guardKey, Modified: revision})
	for _, w := range ch.writes {
		if w.delete {
			u.Deletes = append(u.Deletes, w.key)
			continue
		}
		if w.created == 0 {
			w.created = revision
		}
		u.Puts = append(u.Puts, store.KV{Key: w.key, Value: w.value, Created: w.created, Modified: revision})
	}
	c.metrics.changes.Inc()
	return c.apply(u)
}

// put stages v as its kind's object.
func put[K ~string, T any](ch *change, t *table[K, T], v T) error {
	k := t.key(&v)
	b, err := t.encode(v)
	if err == nil {
		v, err = t.decode(b) // as everybody else will see it, and sharing nothing with the caller's
	}
	if err != nil {
		return &Error{Code: Internal, Err: err, Message: fmt.Sprintf("encode %s %s: %v", t.name, k, err)}
	}
	e := &entry[T]{value: v}
	if old := t.entry(k); old != nil {
		e.created, e.modified = old.created, old.modified
	}
	t.staged[k] = e
	ch.stage(write{key: configPrefix + t.storeKey(k), value: b, created: e.created})
	return nil
}

// remove stages the deletion of an object, and of the tokens that made it.
func remove[K ~string, T any](ch *change, t *table[K, T], k K) {
	t.staged[k] = nil
	ch.stage(write{key: configPrefix + t.storeKey(k), delete: true})
	var made []string
	for tok := range ch.tokens.all() {
		if tok.Object == string(k) {
			made = append(made, tok.ID)
		}
	}
	for _, id := range made {
		ch.tokens.staged[id] = nil
		ch.stage(write{key: configPrefix + ch.tokens.storeKey(id), delete: true})
	}
}

// stage adds w, or puts it in the place of an earlier write of the same key.
func (ch *change) stage(w write) {
	for i := range ch.writes {
		if ch.writes[i].key == w.key {
			ch.writes[i] = w
			return
		}
	}
	ch.writes = append(ch.writes, w)
}

// touch stamps an accelerator because of a change below it.
func (ch *change) touch(id model.AcceleratorID) error {
	a, err := ch.accelerators.need(id)
	if err != nil {
		return err
	}
	touched := *a
	touched.Modified = ch.now
	return put(ch, &ch.accelerators, touched)
}

// needRegion makes a region exist: it does once something names it.
func (ch *change) needRegion(name model.RegionName) error {
	if name == "" || ch.regions.get(name) != nil {
		return nil
	}
	return put(ch, &ch.regions, model.Region{Name: name})
}

// update returns what edit makes of an object, and whether that is anything new. current is the
// object's revision as callers know it; fixed compares the fields that must stay as they are.
func update[K ~string, T any](t *table[K, T], k K, current uint64, o Options, edit func(*T) error,
	fixed map[string]func(a, b *T) bool) (after T, changed bool, err error) {
	before, err := t.need(k)
	if err != nil {
		return after, false, err
	}
	if err := expect(o, t.name, string(k), current); err != nil {
		return after, false, err
	}
	after = t.clone(*before)
	if err := edit(&after); err != nil {
		return after, false, err
	}
	var wrong model.FieldErrors
	for _, path := range slices.Sorted(maps.Keys(fixed)) {
		if !fixed[path](before, &after) {
			wrong = append(wrong, model.FieldError{Field: path, Message: "cannot be changed; make a new one"})
		}
	}
	if len(wrong) > 0 {
		return after, false, invalid(wrong)
	}
	a, errA := t.encode(*before)
	b, errB := t.encode(after)
	return after, errA != nil || errB != nil || !bytes.Equal(a, b), nil
}

// expect checks Options.ExpectedRevision.
func expect(o Options, what, key string, current uint64) error {
	if o.ExpectedRevision != 0 && o.ExpectedRevision != current {
		return &Error{Code: Aborted, Reason: ReasonRevision, Message: fmt.Sprintf(
			"%s %s is at revision %d, not %d: somebody changed it", what, key, current, o.ExpectedRevision)}
	}
	return nil
}

// once handles an idempotency token: it returns the object that the token made before, or remembers
// that it makes id. request is what the caller asked for, id empty in it.
func (ch *change) once(o Options, method, project, id string, request []byte) (made string, err error) {
	if o.IdempotencyToken == "" {
		return "", nil
	}
	if len(o.IdempotencyToken) > idempotencyTokenMax {
		return "", invalid(model.FieldErrors{{Field: "idempotency_token", Message: fmt.Sprintf(
			"has %d bytes; at most %d are possible", len(o.IdempotencyToken), idempotencyTokenMax)}})
	}
	sum := sha256.Sum256(request)
	t := token{
		ID:      hash(method, project, o.IdempotencyToken),
		Request: hex.EncodeToString(sum[:]),
		Object:  id,
	}
	if before := ch.tokens.get(t.ID); before != nil {
		if before.Request != t.Request {
			return "", &Error{Code: InvalidArgument, Reason: ReasonTokenReused,
				Message: "this idempotency token was used for another request",
				Fields: model.FieldErrors{{Field: "idempotency_token", Message: fmt.Sprintf(
					"made %s %s with other values; use a new token for a new request", method, before.Object)}}}
		}
		return before.Object, nil
	}
	return "", put(ch, &ch.tokens, t)
}

// hash names a list of strings; no two lists have the same name.
func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// newID returns n random hexadecimal digits that taken does not know.
func newID(n int, taken func(string) bool) string {
	for {
		b := make([]byte, (n+1)/2)
		rand.Read(b)
		if id := hex.EncodeToString(b)[:n]; !taken(id) {
			return id
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
