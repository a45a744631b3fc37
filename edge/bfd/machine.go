package bfd

import "time"

// Params are what one side of a session wants.
type Params struct {
	Interval   time.Duration // between packets, both ways, once the session is up
	Multiplier int           // missed packets after which it is down
}

// Machine is the state of one session (RFC 5880 6.8). It does no I/O and has no clock: whoever owns it
// passes the time in, sends what it says and wakes it when it wants to be woken.
type Machine struct {
	params Params
	my     uint32

	state       State
	diag        Diag
	remoteState State
	remoteDiag  Diag
	your        uint32
	remoteMult  uint8
	remoteTX    time.Duration // its DesiredMinTX
	remoteRX    time.Duration // its RequiredMinRX: no more often may we send
	heard       time.Time     // last valid packet
	polling     bool          // our parameters have changed, and it has not said Final yet
	final       bool          // the next packet answers a Poll
}

// NewMachine returns a session that is down. my must be unique in this process and not 0.
func NewMachine(my uint32, p Params) *Machine {
	return &Machine{params: p, my: my, state: Down, remoteState: Down, remoteRX: time.Microsecond}
}

// State returns the session's state, and why it went down last.
func (m *Machine) State() (State, Diag) { return m.state, m.diag }

// Failed reports whether the session is down because the other side, or the way to it, has failed. It has
// not if it was told to stop (RFC 5882 4.2), nor if it says Down without a reason: that is a session which
// it began anew, as routers do whenever their BGP session begins anew. To take that for a failure would
// reset the BGP session which has just come back, for ever.
func (m *Machine) Failed() bool {
	switch {
	case m.state != Down:
		return false
	case m.diag == DiagSignaled:
		return m.remoteState == Down && m.remoteDiag != DiagNone
	}
	return m.diag != DiagNone
}

// Receive takes a packet that is meant for this session (RFC 5880 6.8.6). reply says that an answer
// must be sent at once.
func (m *Machine) Receive(p Packet, now time.Time) (reply bool) {
	if p.Your != 0 && p.Your != m.my || p.Your == 0 && p.State > Down {
		return false
	}
	m.heard = now
	m.your, m.remoteState, m.remoteDiag, m.remoteMult = p.My, p.State, p.Diag, p.Mult
	m.remoteTX, m.remoteRX = p.DesiredMinTX, p.RequiredMinRX
	if p.Final {
		m.polling = false
	}
	if m.state != AdminDown {
		m.step(p.State)
	}
	m.final = p.Poll
	return p.Poll
}

// step is the state machine's table (RFC 5880 6.8.6, at its end).
func (m *Machine) step(remote State) {
	switch {
	case remote == AdminDown:
		if m.state != Down {
			m.enter(Down, DiagSignaled)
		}
	case m.state == Down && remote == Down:
		m.enter(Init, DiagNone)
	case m.state == Down && remote == Init:
		m.enter(Up, DiagNone)
	case m.state == Init && remote >= Init:
		m.enter(Up, DiagNone)
	case m.state == Up && remote == Down:
		m.enter(Down, DiagSignaled)
	}
}

func (m *Machine) enter(s State, d Diag) {
	if s == Up || m.state == Up {
		m.polling = true // the interval that we want is another one now (RFC 5880 6.8.3)
	}
	m.state = s
	if s != Init || d != DiagNone {
		m.diag = d
	}
}

// Expire ends the session if nothing has come within the detection time, and reports whether it did.
func (m *Machine) Expire(now time.Time) bool {
	if m.heard.IsZero() || now.Before(m.Deadline()) {
		return false
	}
	m.heard, m.your, m.remoteRX, m.remoteState = time.Time{}, 0, time.Microsecond, Down
	if m.state != Init && m.state != Up {
		return false
	}
	m.enter(Down, DiagTimeout)
	return true
}

// Stop takes the session down on purpose; the packets that follow say so.
func (m *Machine) Stop() { m.state, m.diag = AdminDown, DiagAdminDown }

// Deadline is when Expire has something to do; zero: nothing was heard, so nothing can be missed.
func (m *Machine) Deadline() time.Time {
	if m.heard.IsZero() {
		return time.Time{}
	}
	return m.heard.Add(time.Duration(m.remoteMult) * max(m.wantRX(), m.remoteTX))
}

// Interval is how long after a packet the next one is due, before jitter; 0: the other side wants none.
func (m *Machine) Interval() time.Duration {
	if m.remoteRX == 0 {
		return 0
	}
	return max(m.wantTX(), m.remoteRX)
}

// Jitter is the share of the interval that the next packet comes early, of r in [0,1): up to a quarter,
// with a multiplier of 1 at least a tenth (RFC 5880 6.8.7).
func (m *Machine) Jitter(interval time.Duration, r float64) time.Duration {
	early := 0.25 * r
	if m.params.Multiplier == 1 {
		early = 0.10 + 0.15*r
	}
	return interval - time.Duration(early*float64(interval))
}

// Packet returns what to send now.
func (m *Machine) Packet() Packet {
	p := Packet{
		Diag: m.diag, State: m.state, Mult: uint8(m.params.Multiplier), My: m.my, Your: m.your,
		DesiredMinTX: m.wantTX(), RequiredMinRX: m.wantRX(), Final: m.final,
	}
	p.Poll = m.polling && !m.final && m.your != 0 // both in one packet are forbidden
	m.final = false
	return p
}

func (m *Machine) wantTX() time.Duration {
	if m.state != Up {
		return max(m.params.Interval, slowInterval)
	}
	return m.params.Interval
}

func (m *Machine) wantRX() time.Duration { return m.params.Interval }
