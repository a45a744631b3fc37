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

	cut  int       // rows that had more owners than rows could name
	lost time.Time // when the newest table that was given up for want of room was last in use; zero: none was
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
	if len(h.before) > historyMax {
		h.lost = h.before[historyMax].until
		h.before = h.before[:historyMax]
	}
}

// beyond says what of the last hour there was no room for.
func (h *history) beyond(now time.Time) (rows int, tables bool) {
	return h.cut, !h.lost.IsZero() && now.Sub(h.lost) < HistoryKept
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
	h.cut = 0
	for i := range all {
		r, n, full := &all[i], 0, false
		add := func(member uint8) {
			switch {
			case member == 0 || !here[member] || slices.Contains(r.Members[:n], member):
			case n == candidates:
				full = true
			default:
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
		if full {
			h.cut++
		}
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
