package site

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// A heartbeat on the wire is a control message of Generic UDP Encapsulation, which is how the kernel program
// tells it from packets of flows:
//
//	 0      1      2      3      4      5      6   7   8          16         32
//	+------+------+------+------+------+------+-------+----------+----------+
//	| 0x20 |   0  |   0  |   0  | kind | state|   0   |  nonce   |   MAC    |
//	+------+------+------+------+------+------+-------+----------+----------+
//
// kind is 1 for a question, 2 for an answer, which has the question's nonce and the answerer's state. The MAC is the
// first half of HMAC-SHA256 over what is before it and the address of the answerer, with a gossip key. An answer to
// another question is no answer, so what was recorded is of no use.
const beatBytes = 32

const (
	beatAsk    = 1
	beatAnswer = 2
)

type beat struct {
	kind  byte
	state State
	nonce uint64
}

var errBeat = errors.New("not a heartbeat of this site")

// appendBeat appends a heartbeat that asks the node at to, or is its answer.
func appendBeat(b []byte, key []byte, h beat, to netip.AddrPort) []byte {
	at := len(b)
	b = append(b, 0x20, 0, 0, 0, h.kind, byte(h.state), 0, 0)
	b = binary.BigEndian.AppendUint64(b, h.nonce)
	return append(b, beatMAC(key, b[at:], to)...)
}

// parseBeat reads a heartbeat that asks the node at to, or is its answer. Any of the keys will do.
func parseBeat(b []byte, keys [][]byte, to netip.AddrPort) (beat, error) {
	if len(b) != beatBytes || [4]byte(b[:4]) != [4]byte{0x20} || b[6] != 0 || b[7] != 0 {
		return beat{}, errBeat
	}
	h := beat{kind: b[4], state: State(b[5]), nonce: binary.BigEndian.Uint64(b[8:])}
	if h.kind != beatAsk && h.kind != beatAnswer || h.state > Draining {
		return beat{}, errBeat
	}
	for _, key := range keys {
		if hmac.Equal(b[16:], beatMAC(key, b[:16], to)) {
			return h, nil
		}
	}
	return beat{}, errBeat
}

func beatMAC(key, b []byte, to netip.AddrPort) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("nearcast site heartbeat"))
	m.Write(b)
	addr := to.Addr().Unmap().As16()
	m.Write(addr[:])
	return m.Sum(nil)[:16]
}

// dataKeys are what encapsulated packets of a site carry, made from the gossip keys.
func dataKeys(keys [][]byte, site model.SiteName) []uint64 {
	var all []uint64
	for _, key := range keys[:min(len(keys), 4)] {
		m := hmac.New(sha256.New, key)
		m.Write([]byte("nearcast site packets " + string(site)))
		if k := binary.BigEndian.Uint64(m.Sum(nil)); k != 0 { // 0 is none
			all = append(all, k)
		}
	}
	return all
}

// question is a heartbeat to send.
type question struct {
	to netip.AddrPort
	b  []byte
}

// questions are for every other node.
func (s *Site) questions(now time.Time) []question {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) == 0 {
		return nil
	}
	var all []question
	var raw [8]byte
	for _, p := range s.peers {
		if now.Sub(p.rotated) >= nonceEvery {
			_, _ = rand.Read(raw[:]) // it does not fail
			p.nonces[1], p.nonces[0], p.rotated = p.nonces[0], binary.BigEndian.Uint64(raw[:]), now
		}
		all = append(all, question{p.at, appendBeat(nil, s.keys[0], beat{kind: beatAsk, nonce: p.nonces[0]}, p.at)})
	}
	return all
}

// ask asks every other node.
func (s *Site) ask(conn *net.UDPConn) {
	for _, q := range s.questions(time.Now()) {
		_, _ = conn.WriteToUDPAddrPort(q.b, q.to) // who can't be reached does not answer
	}
}

// read answers questions and notes answers until the socket is closed.
func (s *Site) read(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of a node that is not there
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if out := s.take(buf[:n], from, time.Now()); out != nil {
			_, _ = conn.WriteToUDPAddrPort(out, from)
		}
	}
}

// take takes a heartbeat and returns the answer, if it wants one.
func (s *Site) take(b []byte, from netip.AddrPort, now time.Time) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sender *peer
	for _, p := range s.sorted() { // of two with one address the first has it
		if p.at == from && sender == nil {
			sender = p
		}
	}
	if sender == nil || len(b) != beatBytes {
		s.metrics.strays.Inc()
		return nil
	}
	answerer := s.self
	if b[4] == beatAnswer {
		answerer = sender.at
	}
	h, err := parseBeat(b, s.keys, answerer)
	switch {
	case err != nil:
		s.metrics.strays.Inc()
	case h.kind == beatAsk:
		return appendBeat(nil, s.keys[0], beat{kind: beatAnswer, state: s.cfg.State(), nonce: h.nonce}, s.self)
	case h.nonce == sender.nonces[0] || h.nonce == sender.nonces[1]:
		sender.state, sender.answered = h.state, now
	}
	return nil
}
