package pump

import (
	"sync"
	"sync/atomic"
)

// Registry holds the flows of a room. Adding and removing cost a lock of one of its shards and no
// memory. The zero value is ready.
type Registry[T any] struct {
	turn   atomic.Uint32
	count  atomic.Int64
	shards [registryShards]shard[T]
}

type shard[T any] struct {
	mu    sync.Mutex // guards all links of the shard
	first *Entry[T]
}

// Entry is a flow's place in a Registry. The flow embeds it.
type Entry[T any] struct {
	shard      *shard[T]
	prev, next *Entry[T]
	value      T
}

// Add puts a flow into the registry. An entry is added and removed once.
func (r *Registry[T]) Add(e *Entry[T], value T) {
	s := &r.shards[r.turn.Add(1)%registryShards]
	r.count.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	e.shard, e.value, e.next = s, value, s.first
	if s.first != nil {
		s.first.prev = e
	}
	s.first = e
}

// Remove takes a flow out. It does nothing for one that is not there.
func (r *Registry[T]) Remove(e *Entry[T]) {
	s := e.shard
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first != e && e.prev == nil {
		return // removed before
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.prev, e.next = nil, nil
	r.count.Add(-1)
}

// Len returns how many flows there are.
func (r *Registry[T]) Len() int { return int(r.count.Load()) }

// Each calls f for every flow, with no lock held. A flow may have been removed meanwhile.
func (r *Registry[T]) Each(f func(T)) {
	var some []T
	for i := range r.shards {
		s := &r.shards[i]
		some = some[:0]
		s.mu.Lock()
		for e := s.first; e != nil; e = e.next {
			some = append(some, e.value)
		}
		s.mu.Unlock()
		for _, v := range some {
			f(v)
		}
	}
}
