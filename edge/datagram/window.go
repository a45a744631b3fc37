package datagram

// window remembers which of the latest packet numbers were seen. The zero window has seen none.
// A ring of bits, a word at a time (RFC 6479): moving on clears words, never shifts them.
type window struct {
	next uint64 // the number after the highest seen
	bits [windowBits / 64]uint64
}

// accept takes number once: it reports false if number was taken before, or is so far behind the
// highest that the window cannot tell. ahead is by how much number is beyond all numbers seen
// before: 1 for the very next, 0 for one that came late.
func (w *window) accept(number uint64) (ahead uint64, ok bool) {
	// One word is given up for moving: words are cleared when the highest number enters them.
	const reach = windowBits - 64
	if number >= w.next {
		ahead = number - w.next + 1
		first := (w.next + 63) / 64 // the first word that no number has entered
		last := number / 64
		if last >= first+uint64(len(w.bits)) {
			first = last + 1 - uint64(len(w.bits))
		}
		for word := first; word <= last; word++ {
			w.bits[word%uint64(len(w.bits))] = 0
		}
		w.next = number + 1
	} else if w.next-number > reach {
		return 0, false
	}
	word, bit := number/64%uint64(len(w.bits)), uint64(1)<<(number%64)
	if w.bits[word]&bit != 0 {
		return 0, false
	}
	w.bits[word] |= bit
	return ahead, true
}
