package datagram

import (
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// prober judges one lane: does it work, how long is a round trip, what is lost. Pure: the time (since
// any fixed moment, never 0) and what arrives are passed in, what is to be sent is returned.
//
// The initiator asks (PING) once a keep-alive interval, and four times as often while an answer is
// overdue, so that loss alone does not take a lane down. The responder only answers; that its
// answers arrive it learns from the echo in the next question.
type prober struct {
	interval  time.Duration
	initiator bool

	up        bool
	downSince time.Duration // when it was last up, or began
	lastTick  time.Duration
	lastPing  time.Duration
	nextPing  time.Duration
	round     time.Duration // when the latest question or answer of ours that got through was sent
	stamp     uint64        // the latest of ours
	heard     uint64        // the latest stamp of the peer, and when it came
	heardAt   time.Duration

	rtt, jitter time.Duration // smoothed; 0: not known

	expected, received uint32       // packets of this lane, see wire
	loss               lossEstimate // of what we send, by the peer's report
	search             search
}

func newProber(interval time.Duration, initiator bool, payloadMax int, now time.Duration) prober {
	return prober{
		interval: interval, initiator: initiator, search: newSearch(payloadMax),
		downSince: now, lastTick: now, nextPing: now,
	}
}

// question is a PING to send: padded to size bytes of UDP payload, 0: not padded.
type question struct {
	probe wire.PacketProbe
	size  int
}

// tick returns the questions to send now. It is to be called often: the interval divided by
// tickShare.
func (p *prober) tick(now time.Duration) (q [2]question, n int) {
	// A process that did not run (a suspended machine) must not take its own silence for the peer's.
	if gap := now - p.lastTick; gap > p.interval {
		p.round += gap
		p.round = min(p.round, now)
	}
	p.lastTick = now
	if p.up && now-p.round > p.patience() {
		p.up, p.downSince = false, now
		p.search.restart() // it may come back over another path
	}
	if p.initiator && now >= p.due() {
		q[n] = question{probe: p.probe(now)}
		n++
		p.lastPing, p.nextPing = now, now+p.interval
	}
	if p.up {
		if size := p.search.tick(now); size != 0 {
			q[n] = question{probe: p.probe(now), size: size}
			p.search.asked(q[n].probe.Stamp, now+2*p.rtt+p.interval/4)
			n++
		}
	}
	return q, n
}

// patience is how long a lane stays up without a round trip that succeeds. The responder learns of
// its last one with the next question, an interval later.
func (p *prober) patience() time.Duration {
	d := keepAlivesMissed*p.interval + p.rtt
	if !p.initiator {
		d += p.interval
	}
	return d
}

// due is when to ask next.
func (p *prober) due() time.Duration {
	hurry := p.lastPing + max(p.interval/4, 2*p.rtt)
	switch {
	case p.lastPing == 0 || p.round >= p.lastPing: // nothing asked, or all answered
		return p.nextPing
	case p.up || p.lastPing-p.downSince < keepAlivesMissed*p.interval:
		return min(hurry, p.nextPing)
	}
	return p.nextPing
}

// probe makes the body of a question or answer.
func (p *prober) probe(now time.Duration) wire.PacketProbe {
	p.stamp = max(p.stamp+1, uint64(now))
	b := wire.PacketProbe{Stamp: p.stamp, Expected: p.expected, Received: p.received}
	if p.heard != 0 {
		b.Echo = p.heard
		b.Delay = uint32(min((now-p.heardAt)/time.Microsecond, 1<<32-1))
	}
	return b
}

// seen counts an authentic packet of the lane. ahead is what the replay window said of it.
func (p *prober) seen(ahead uint64) {
	p.expected += uint32(ahead)
	p.received++
}

// onPing takes a question and returns the answer.
func (p *prober) onPing(b *wire.PacketProbe, now time.Duration) (pong wire.PacketProbe) {
	p.hear(b, now)
	pong = p.probe(now)
	pong.Echo, pong.Delay = b.Stamp, 0
	return pong
}

// onPong takes an answer.
func (p *prober) onPong(b *wire.PacketProbe, now time.Duration) {
	p.search.answered(b.Echo, now)
	p.hear(b, now)
}

// hear takes what questions and answers have in common.
func (p *prober) hear(b *wire.PacketProbe, now time.Duration) {
	if b.Stamp > p.heard {
		p.heard, p.heardAt = b.Stamp, now
		p.loss.report(b.Expected, b.Received, p.search.lost)
	}
	sent, delay := time.Duration(b.Echo), time.Duration(b.Delay)*time.Microsecond
	if b.Echo == 0 || b.Echo > p.stamp || sent <= p.round && p.up {
		return // no echo, none of ours, or an older one
	}
	sample := now - sent - delay
	if sample < 0 || sample > rttMax {
		return
	}
	p.measure(sample)
	p.round = max(p.round, sent)
	if !p.up && now-p.round <= p.patience() {
		p.up = true
		if p.initiator {
			p.nextPing = now // the responder is up when it sees that its answer came
		}
	}
}

// measure smooths as RFC 6298 does; jitter is the mean difference of neighbouring samples, as in
// RFC 3550.
func (p *prober) measure(sample time.Duration) {
	sample = max(sample, 1)
	if p.rtt == 0 {
		p.rtt = sample
		return
	}
	p.jitter += ((sample - p.rtt).Abs() - p.jitter) / 16
	p.rtt += (sample - p.rtt) / 8
}

// lossEstimate is the share of packets lost lately, from counts of packets expected and received.
type lossEstimate struct {
	share                       float32
	expected, received, excused uint32 // as of the last report
	known                       bool
}

// report takes newer counts. excused are packets that were lost on purpose, since they asked whether
// their size passes.
func (l *lossEstimate) report(expected, received, excused uint32) {
	sent := int32(expected - l.expected)
	if l.known && sent <= 0 {
		return
	}
	lost := sent - int32(received-l.received) - int32(excused-l.excused)
	l.expected, l.received, l.excused = expected, received, excused
	l.known = true
	weight := float32(sent) / (float32(sent) + lossMemory)
	l.share += (float32(lost)/float32(sent) - l.share) * weight
	l.share = min(max(l.share, 0), 1)
}
