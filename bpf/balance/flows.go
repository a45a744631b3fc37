package balance

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// EntryKind says why the table of flows got an entry. The order is the program's.
type EntryKind uint32

// The kinds.
const (
	EntryForward EntryKind = iota // another node's flow, whose packets come here
	EntryAsk                      // a flow that another node was asked for
	EntryOwn                      // a UDP flow of this node
	entryKinds

	entryRefused = entryKinds     // and the kind
	entryRemoved = 2 * entryKinds // a SYN began the flow anew
)

func (k EntryKind) String() string {
	if k < entryKinds {
		return [entryKinds]string{"forward", "ask", "own"}[k]
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// Flows is what the table of flows holds. A full table forgets the entry that was seen longest ago for each one
// that is made. That costs nothing as long as there are silent ones: nobody takes those away before.
type Flows struct {
	Used   int // entries whose flow was seen within the last five minutes
	Silent int // the others
	Room   int

	Made, Refused map[EntryKind]uint64 // since Load; refused are those that the kernel could not make
	Removed       uint64               // because a SYN began the flow anew
	Forgotten     uint64               // for want of room, since Load; at least so many
}

// flowTable counts entries. The kernel evicts them without a word: they are what was made and is not there.
type flowTable struct {
	last      Flows
	at        time.Time // of last; zero: none
	found     int       // entries when the program was loaded
	forgotten uint64
}

// Flows returns the state of the table of flows, at most flowsKept old: counting takes about 1 µs an entry.
func (b *Balancer) Flows() (Flows, error) {
	b.flowsMu.Lock()
	defer b.flowsMu.Unlock()
	t := &b.flows
	if !t.at.IsZero() && time.Since(t.at) < flowsKept {
		return t.last, nil
	}
	f, err := b.countFlows(t)
	if err != nil {
		return Flows{}, err
	}
	t.last, t.at = f, time.Now()
	return f, nil
}

func (b *Balancer) countFlows(t *flowTable) (f Flows, err error) {
	f = Flows{Room: int(b.objs.Flows.MaxEntries()), Made: map[EntryKind]uint64{}, Refused: map[EntryKind]uint64{}}
	made := uint64(t.found)
	// What is made while entries are counted is counted as there and not as made, so that nothing is taken for
	// forgotten which isn't. So is what is removed.
	for k := range entryKinds {
		if f.Made[k], err = b.entries(k); err != nil {
			return f, err
		}
		if f.Refused[k], err = b.entries(entryRefused + k); err != nil {
			return f, err
		}
		made += f.Made[k]
	}
	if f.Used, f.Silent, err = countPlaces(b.objs.Flows, monotonic()); err != nil {
		return f, err
	}
	if f.Removed, err = b.entries(entryRemoved); err != nil {
		return f, err
	}
	if there := uint64(f.Used+f.Silent) + f.Removed; made > there {
		t.forgotten = max(t.forgotten, made-there)
	}
	f.Forgotten = t.forgotten
	return f, nil
}

func (b *Balancer) entries(k EntryKind) (total uint64, err error) {
	var perCPU []uint64
	if err := b.objs.Entries.Lookup(uint32(k), &perCPU); err != nil {
		return 0, fmt.Errorf("read counter of entries %d: %w", k, err)
	}
	for _, n := range perCPU {
		total += n
	}
	return total, nil
}

// countPlaces counts the entries of the table at a time of the program's clock. It does not count as their use.
func countPlaces(flows *ebpf.Map, now uint64) (used, silent int, err error) {
	var cursor ebpf.MapBatchCursor
	keys, places := make([]balanceFlow, flowsBatch), make([]balancePlace, flowsBatch)
	for {
		n, err := flows.BatchLookup(&cursor, keys, places, nil)
		for _, p := range places[:n] {
			if p.SeenNs+uint64(flowsFresh) >= now {
				used++
			} else {
				silent++
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return used, silent, nil // the end
		}
		if err != nil {
			return 0, 0, fmt.Errorf("count flows: %w", err)
		}
	}
}
