package relay

import "sync/atomic"

// amplified keeps a flow of datagrams from being of use to somebody who forges its source: until the source has
// shown that it gets the answers, no more than so many times the bytes that came from it are sent to it.
//
// What shows it is that questions go on after answers, several times: no protocol is known here, so that there
// is nothing that only the receiver of an answer could say. Who forges a source can feign that, at the price of a
// few datagrams a flow, and gains less than the first answers would have given.
//
// It is done here, and not in the kernel program that guards listeners, as that sees only what comes in.
type amplified struct {
	in, out   atomic.Uint64 // payload bytes
	due       atomic.Bool   // an answer went out after the last question
	exchanges atomic.Uint32
}

// question notes a datagram of the client. A limit of 0 is none.
func (a *amplified) question(limit uint32, n int) {
	if limit == 0 || a.exchanges.Load() >= provenExchanges {
		return
	}
	a.in.Add(uint64(n))
	if a.due.Swap(false) {
		a.exchanges.Add(1)
	}
}

// answer reports whether a datagram may go to the client.
func (a *amplified) answer(limit uint32, n int) bool {
	if limit == 0 || a.exchanges.Load() >= provenExchanges {
		return true
	}
	out := a.out.Add(uint64(n))
	if out > uint64(limit)*a.in.Load() {
		a.out.Add(-uint64(n))
		return false
	}
	a.due.Store(true)
	return true
}
