package bfd

import (
	"context"
	"encoding/hex"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestPacketBytes compares with a packet written by hand from RFC 5880 4.1.
func TestPacketBytes(t *testing.T) {
	p := Packet{
		Diag: DiagTimeout, State: Up, Poll: true, Mult: 3, My: 0x01020304, Your: 0x05060708,
		DesiredMinTX: 300 * time.Millisecond, RequiredMinRX: time.Second,
	}
	const want = "21e0031801020304" + "05060708000493e0" + "000f424000000000"
	got := hex.EncodeToString(p.Append(nil))
	if got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	b, _ := hex.DecodeString(want)
	if back, err := Parse(b); err != nil || back != p {
		t.Errorf("read back as %+v, %v", back, err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"short":      func(b []byte) []byte { return b[:23] },
		"version":    func(b []byte) []byte { b[0] = 0x41; return b },
		"auth":       func(b []byte) []byte { b[1] |= flagAuth; return b },
		"multipoint": func(b []byte) []byte { b[1] |= flagMultipoint; return b },
		"length":     func(b []byte) []byte { b[3] = 25; return b },
		"multiplier": func(b []byte) []byte { b[2] = 0; return b },
		"mine":       func(b []byte) []byte { copy(b[4:8], make([]byte, 4)); return b },
		"yours":      func(b []byte) []byte { copy(b[8:12], make([]byte, 4)); return b },
	} {
		b, _ := hex.DecodeString(want)
		if _, err := Parse(spoil(b)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Packet{State: Up, Mult: 3, My: 1, Your: 2, DesiredMinTX: time.Second}.Append(nil))
	f.Add(Packet{State: Down, Mult: 1, My: 1}.Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(p.Append(nil))
		if err != nil || again != p {
			t.Errorf("%+v was read back as %+v, %v", p, again, err)
		}
	})
}

// TestStates walks the table of RFC 5880 6.8.6.
func TestStates(t *testing.T) {
	for _, c := range []struct{ was, hears, becomes State }{
		{Down, Down, Init}, {Down, Init, Up}, {Down, Up, Down}, {Down, AdminDown, Down},
		{Init, Down, Init}, {Init, Init, Up}, {Init, Up, Up}, {Init, AdminDown, Down},
		{Up, Down, Down}, {Up, Init, Up}, {Up, Up, Up}, {Up, AdminDown, Down},
		{AdminDown, Up, AdminDown},
	} {
		m := NewMachine(7, Params{time.Second, 3})
		m.state = c.was
		m.Receive(Packet{State: c.hears, Mult: 3, My: 9, Your: 7, DesiredMinTX: time.Second}, time.Now())
		if m.state != c.becomes {
			t.Errorf("%v, hears %v: %v, want %v", c.was, c.hears, m.state, c.becomes)
		}
	}
	m := NewMachine(7, Params{time.Second, 3})
	m.Receive(Packet{State: Up, Mult: 3, My: 9, Your: 8}, time.Now())
	if m.remoteState != Down {
		t.Error("a packet for another session was taken")
	}
}

// pair runs two sessions against each other in memory until stop.
type pair struct {
	a, b  *session
	cut   atomic.Bool // packets from b are lost
	sent  atomic.Int64
	seen  chan State // of a
	diags chan Diag
}

func newPair(a, b Params) *pair {
	p := &pair{seen: make(chan State, 16), diags: make(chan Diag, 16)}
	p.a = &session{machine: NewMachine(1, a), inbox: make(chan Packet, inboxPackets),
		change: func(s State, d Diag, _ bool) { p.seen <- s; p.diags <- d }}
	p.b = &session{machine: NewMachine(2, b), inbox: make(chan Packet, inboxPackets),
		change: func(State, Diag, bool) {}}
	to := func(s *session, lost func() bool) func([]byte) {
		return func(b []byte) {
			if pk, err := Parse(b); err == nil && !lost() {
				s.inbox <- pk
			}
		}
	}
	p.a.send = to(p.b, func() bool { p.sent.Add(1); return false })
	p.b.send = to(p.a, p.cut.Load)
	return p
}

// TestDetects: the session comes up, notices silence within the detection time, and comes up again.
func TestDetects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(Params{100 * time.Millisecond, 3}, Params{50 * time.Millisecond, 5})
		ctx, cancel := context.WithCancel(t.Context())
		go p.a.run(ctx)
		go p.b.run(ctx)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s, _ := p.a.machine.State(); s != Up {
			t.Fatalf("state %v after 5 s, want up", s)
		}
		before := p.sent.Load()
		time.Sleep(10 * time.Second)
		// At 100 ms less up to a quarter: 100 to 134 packets in ten seconds.
		if n := p.sent.Load() - before; n < 100 || n > 134 {
			t.Errorf("%d packets in 10 s", n)
		}
		for len(p.seen) > 0 {
			<-p.seen
			<-p.diags
		}
		began := time.Now()
		p.cut.Store(true)
		if s := <-p.seen; s != Down {
			t.Fatalf("then it is %v", s)
		}
		// It sends at 100 ms, its multiplier is 5.
		if took := time.Since(began); took > 500*time.Millisecond || took < 350*time.Millisecond {
			t.Errorf("noticed after %v", took)
		}
		if d := <-p.diags; d != DiagTimeout {
			t.Errorf("diagnostic %d", d)
		}
		p.cut.Store(false)
		for s := range p.seen {
			if s == Up {
				break
			}
		}
		cancel()
		synctest.Wait()
	})
}

// TestStopIsNoFailure: who is stopped says AdminDown, and the other side does not call it a timeout.
func TestStopIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(Params{100 * time.Millisecond, 3}, Params{100 * time.Millisecond, 3})
		ctx, cancel := context.WithCancel(t.Context())
		other, stop := context.WithCancel(t.Context())
		go p.a.run(ctx)
		go p.b.run(other)
		for s := range p.seen {
			if s == Up {
				break
			}
		}
		for len(p.diags) > 0 {
			<-p.diags
		}
		stop()
		state, diag := <-p.seen, <-p.diags
		cancel()
		synctest.Wait() // the machine is its session's until that has ended
		if state != Down || diag != DiagSignaled || p.a.machine.Failed() {
			t.Errorf("%v, %v, failed %v", state, diag, p.a.machine.Failed())
		}
	})
}

// TestWhatIsFailure: silence is, and Down with a reason; a session that the other side began anew is not.
func TestWhatIsFailure(t *testing.T) {
	for _, c := range []struct {
		name string
		last func(m *Machine, now time.Time)
		want bool
	}{
		{"up", func(*Machine, time.Time) {}, false},
		{"silence", func(m *Machine, now time.Time) { m.Expire(now.Add(time.Hour)) }, true},
		{"it heard nothing from us", func(m *Machine, now time.Time) {
			m.Receive(Packet{State: Down, Diag: DiagTimeout, My: 7, Your: 1, Mult: 3}, now)
		}, true},
		{"begun anew", func(m *Machine, now time.Time) { m.Receive(Packet{State: Down, My: 8, Mult: 3}, now) }, false},
		{"told to stop", func(m *Machine, now time.Time) {
			m.Receive(Packet{State: AdminDown, Diag: DiagAdminDown, My: 7, Your: 1, Mult: 3}, now)
		}, false},
	} {
		m, now := NewMachine(1, Params{100 * time.Millisecond, 3}), time.Now()
		m.Receive(Packet{State: Down, My: 7, Mult: 3}, now)
		m.Receive(Packet{State: Up, My: 7, Your: 1, Mult: 3}, now)
		if s, _ := m.State(); s != Up {
			t.Fatalf("%s: %v before it begins", c.name, s)
		}
		c.last(m, now)
		if got := m.Failed(); got != c.want {
			t.Errorf("%s: failed %v, want %v", c.name, got, c.want)
		}
	}
}
