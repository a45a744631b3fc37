package dns

import (
	"encoding/binary"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/edge/zone"
)

// steer makes the set of an accelerator's name, or nil if there is none of the type.
func (a *answerer) steer(st *zone.Steered, qtype uint16) *zone.RRSet {
	switch qtype {
	case dns.TypeA:
		return a.addresses(st, false)
	case dns.TypeAAAA:
		if st.DualStack {
			return a.addresses(st, true)
		}
	case dns.TypeHTTPS:
		if len(st.ALPN) > 0 {
			return a.https(st)
		}
	}
	return nil
}

// addresses returns A or AAAA records: the accelerator's own, or those of the client's best nodes.
func (a *answerer) addresses(st *zone.Steered, v6 bool) *zone.RRSet {
	if st.Pool == "" {
		if v6 {
			return st.V6
		}
		return st.V4
	}
	pool := a.state.Steer.Pool(st.Pool)
	if pool == nil {
		return nil
	}
	if e := &a.q.ecs; e.addr.IsValid() && !a.state.Steer.IgnoreECS() {
		a.client = e.addr
	}
	a.geo.Slot = geo.SlotAt(a.at)
	c := a.state.Steer.Choose(pool, a.client, v6, &a.geo)
	if e := &a.q.ecs; e.addr.IsValid() && a.client == e.addr && c.Scope > a.scope {
		a.scope = c.Scope
	}
	a.count.steered[c.Source].Add(1)
	if c.Trial {
		a.count.trials.Add(1)
	}
	if c.Open {
		a.count.failedOpen.Add(1)
	}
	if len(c.Addrs) == 0 {
		return nil
	}
	a.bytes, a.datas = a.bytes[:0], a.datas[:0]
	set := &a.steered
	set.Type, set.TTL = dns.TypeA, uint32(c.TTL/time.Second)
	width := 4
	if v6 {
		set.Type, width = dns.TypeAAAA, 16
	}
	for _, addr := range c.Addrs {
		if v6 {
			b := addr.As16()
			a.bytes = append(a.bytes, b[:]...)
		} else {
			b := addr.As4()
			a.bytes = append(a.bytes, b[:]...)
		}
	}
	for i := 0; i < len(a.bytes); i += width {
		a.datas = append(a.datas, a.bytes[i:i+width])
	}
	set.Datas = a.datas
	return set
}

// SvcParamKeys (RFC 9460 14.3.2).
const (
	svcALPN, svcIPv4Hint, svcIPv6Hint = 1, 4, 6
)

// https returns the record of RFC 9460 for the name itself: priority 1, target ".", which protocols, and
// the addresses as hints.
func (a *answerer) https(st *zone.Steered) *zone.RRSet {
	data := []byte{0, 1, 0}
	var alpn []byte
	for _, p := range st.ALPN {
		alpn = append(append(alpn, byte(len(p))), p...)
	}
	param := func(key uint16, v []byte) {
		data = binary.BigEndian.AppendUint16(data, key)
		data = binary.BigEndian.AppendUint16(data, uint16(len(v)))
		data = append(data, v...)
	}
	param(svcALPN, alpn)
	ttl := st.TTL
	hints := func(key uint16, v6 bool) {
		set := a.addresses(st, v6)
		if set == nil {
			return
		}
		ttl = min(ttl, set.TTL)
		var v []byte
		for _, d := range set.Datas {
			v = append(v, d...)
		}
		param(key, v)
	}
	hints(svcIPv4Hint, false)
	if st.DualStack {
		hints(svcIPv6Hint, true)
	}
	return &zone.RRSet{Type: dns.TypeHTTPS, TTL: ttl, Datas: [][]byte{data}}
}
