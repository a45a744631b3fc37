package balance

import (
	"slices"
	"time"
)

// owners says who owns each row, by number; 0: nobody.
type owners []uint8

// generation is a table that was in use.
type generation struct {
	owners owners
	until  time.Time
}

// history is the table in use and those before it, newest first.
type history struct {
	current owners
	before  []generation
}

// change puts another table into use. One like it of before is forgotten: it is the present one again.
func (h *history) change(to owners, now time.Time) {
	if slices.Equal(h.current, to) {
		return
	}
	if h.current != nil {
		h.remember(h.current, now)
	}
	h.current = to
}

// remember adds a table that was in use until now.
func (h *history) remember(o owners, now time.Time) {
	h.before = slices.DeleteFunc(h.before, func(g generation) bool { return slices.Equal(g.owners, o) })
	h.before = slices.Insert(h.before, 0, generation{o, now})
	h.before = h.before[:min(len(h.before), historyMax)]
}

// expire forgets what is too old.
func (h *history) expire(now time.Time) {
	h.before = slices.DeleteFunc(h.before, func(g generation) bool { return now.Sub(g.until) >= HistoryKept })
}

// rows compiles who may have the flows of each row: its owner, the owners before, the last one first, then the
// others. Only members that are present can be asked.
func (h *history) rows(present []uint8) []balanceRow {
	var here [membersSize]bool
	for _, n := range present {
		here[n] = true
	}
	all := make([]balanceRow, Rows)
	for i := range all {
		r, n := &all[i], 0
		add := func(member uint8) {
			if n < candidates && member != 0 && here[member] && !slices.Contains(r.Members[:n], member) {
				r.Members[n] = member
				n++
			}
		}
		if i < len(h.current) {
			r.Members[0] = h.current[i]
			n = 1
		}
		for _, g := range h.before {
			add(g.owners[i])
		}
		r.Recent = uint8(max(n-1, 0))
		for _, member := range present {
			add(member)
		}
	}
	return all
}

// historyOf reads what rows keeps of the tables before, from a process before.
func historyOf(rows []balanceRow, now time.Time) history {
	var h history
	for column := range candidates {
		o, any := make(owners, len(rows)), false
		for i, r := range rows {
			if column <= int(r.Recent) {
				o[i] = r.Members[column]
				any = any || o[i] != 0
			}
		}
		switch {
		case !any:
			return h
		case column == 0:
			h.current = o
		default:
			h.before = append(h.before, generation{o, now})
		}
	}
	return h
}
