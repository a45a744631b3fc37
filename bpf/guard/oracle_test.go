package guard

import (
	"maps"
	"net/netip"
	"slices"
)

// judgeSlowly says what should become of a packet under rules without rates: a second opinion, written from
// what the rules mean and sharing no line with the program. Established flows are none of its business.
func judgeSlowly(r *Rules, frame []byte) Reason {
	ip, v6, ok := ipOf(frame)
	if !ok {
		return PassForeign
	}
	d := dissect(ip, v6)
	if d == nil {
		return PassForeign
	}
	address := longest(r.Addresses, func(a Address) netip.Prefix { return a.Prefix }, d.dst)
	switch {
	case address == nil:
		return PassForeign
	case d.bad:
		return DropMalformed
	case impossible(d.src, d.dst):
		return DropSpoofed
	case d.piece && address.NoFragments:
		return DropFragment
	case d.later, d.proto == 1, d.proto == 58:
		return PassOther
	}
	nobody := PassOther
	if address.Exclusive {
		nobody = DropNobody
	}
	if d.proto != 6 && d.proto != 17 {
		return nobody
	}
	port, sane := d.ports()
	if !sane {
		return DropMalformed
	}
	l := r.listenerFor(d, port)
	if l == nil {
		return nobody
	}
	return l.admits(r, d)
}

func (l *Listener) admits(r *Rules, d *dissected) Reason {
	on := func(list string) bool {
		for _, p := range r.Lists[list] {
			if p.Contains(d.src) {
				return true
			}
		}
		return false
	}
	switch {
	case d.piece && l.NoFragments:
		return DropFragment
	case l.Deny != "" && on(l.Deny):
		return DropDenied
	case l.Allow != "" && on(l.Allow):
		return PassListener
	}
	country := r.countryOf(d.src)
	switch {
	case slices.Contains(l.DenyCountries, country):
		return DropCountry
	case len(l.AllowCountries) > 0 && !slices.Contains(l.AllowCountries, country):
		return DropCountry
	case l.Allow != "" && len(l.AllowCountries) == 0:
		return DropDenied
	}
	return PassListener
}

// countryOf is the country of the narrowest prefix, and of equal ones the first in order.
func (r *Rules) countryOf(a netip.Addr) (found string) {
	bits := -1
	for _, country := range slices.Sorted(maps.Keys(r.Countries)) {
		for _, p := range r.Countries[country] {
			if p.Contains(a) && p.Bits() > bits {
				found, bits = country, p.Bits()
			}
		}
	}
	return found
}

// listenerFor finds the listener of the narrowest prefix that has the port.
func (r *Rules) listenerFor(d *dissected, port uint16) (found *Listener) {
	bits := -1
	for i := range r.Listeners {
		l := &r.Listeners[i]
		if byte(l.Proto) != d.proto {
			continue
		}
		for _, p := range l.Prefixes {
			for _, ports := range l.Ports {
				if p.Contains(d.dst) && ports.First <= port && port <= ports.Last && p.Bits() > bits {
					found, bits = l, p.Bits()
				}
			}
		}
	}
	return found
}

func longest[T any](list []T, prefix func(T) netip.Prefix, a netip.Addr) (best *T) {
	for i := range list {
		if p := prefix(list[i]); p.Contains(a) && (best == nil || p.Bits() > prefix(*best).Bits()) {
			best = &list[i]
		}
	}
	return best
}

func ipOf(frame []byte) (ip []byte, v6, ok bool) {
	for at, tags := 12, 0; len(frame) >= at+2; at, tags = at+4, tags+1 {
		switch be.Uint16(frame[at:]) {
		case 0x0800:
			return frame[at+2:], false, true
		case 0x86dd:
			return frame[at+2:], true, true
		case 0x8100, 0x88a8:
			if tags < 2 {
				continue
			}
		}
		break
	}
	return nil, false, false
}

// dissected is what there is to know of an IP packet.
type dissected struct {
	src, dst          netip.Addr
	proto             byte
	l4                []byte // by the packet's own length
	bad, piece, later bool
}

// dissect returns nil for what is too short to have a destination.
func dissect(ip []byte, v6 bool) *dissected {
	if v6 {
		return dissect6(ip)
	}
	if len(ip) < 20 {
		return nil
	}
	d := &dissected{proto: ip[9]}
	d.src, _ = netip.AddrFromSlice(ip[12:16])
	d.dst, _ = netip.AddrFromSlice(ip[16:20])
	header, total := int(ip[0]&15)*4, int(be.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < 20 || total < header || total > len(ip) {
		d.bad = true
		return d
	}
	offset, more := be.Uint16(ip[6:])&0x1fff, ip[6]&0x20 != 0
	d.later, d.piece = offset != 0, offset != 0 || more
	d.l4 = ip[header:total]
	return d
}

func dissect6(ip []byte) *dissected {
	if len(ip) < 40 {
		return nil
	}
	d := &dissected{proto: ip[6]}
	d.src, _ = netip.AddrFromSlice(ip[8:24])
	d.dst, _ = netip.AddrFromSlice(ip[24:40])
	total := int(be.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || total > len(ip)-40 {
		d.bad = true
		return d
	}
	d.l4 = ip[40 : 40+total]
	for headers := 0; ; headers++ {
		length := 0
		switch d.proto {
		case 0, 43, 60:
			if len(d.l4) >= 2 {
				length = 8 + 8*int(d.l4[1])
			}
		case 44:
			length = 8
		default:
			return d
		}
		if len(d.l4) < 8 || len(d.l4) < length || headers == 6 {
			d.bad = true
			return d
		}
		if d.proto == 44 {
			bits := be.Uint16(d.l4[2:])
			d.later = d.later || bits>>3 != 0
			d.piece = d.piece || bits>>3 != 0 || bits&1 != 0
		}
		d.proto, d.l4 = d.l4[0], d.l4[length:]
		if d.later {
			return d
		}
	}
}

// ports returns the destination port, and whether the header can be meant.
func (d *dissected) ports() (uint16, bool) {
	if d.proto == 17 {
		if len(d.l4) < 8 {
			return 0, false
		}
		length := int(be.Uint16(d.l4[4:]))
		sane := length >= 8 && (length <= len(d.l4) || d.piece)
		return be.Uint16(d.l4[2:]), sane && be.Uint16(d.l4) != 0 && be.Uint16(d.l4[2:]) != 0
	}
	if len(d.l4) < 20 {
		return 0, false
	}
	header, flags := int(d.l4[12]>>4)*4, d.l4[13]
	sane := header >= 20 && header <= len(d.l4)
	sane = sane && flags&(syn|rst|ack) != 0 && (flags&syn == 0 || flags&(fin|rst) == 0)
	return be.Uint16(d.l4[2:]), sane && be.Uint16(d.l4) != 0 && be.Uint16(d.l4[2:]) != 0
}

func impossible(src, dst netip.Addr) bool {
	if src == dst || src.IsMulticast() {
		return true
	}
	if src.Is4() {
		first := src.As4()[0]
		return first == 0 || first == 127 || first >= 224
	}
	return netip.MustParsePrefix("::/96").Contains(src) || src.Is4In6()
}
