package dns

import (
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// A server cookie (RFC 9018 4), the same at every node that has the secret:
//
//	+-----------+-------------+-------------------+----------------------------------------+
//	| version 1 | reserved(3) | unix time(4)      | SipHash-2-4(8) of client cookie, this, |
//	+-----------+-------------+-------------------+ and the client's address               |
const (
	cookieVersion   = 1
	clientCookie    = 8
	serverCookie    = 16
	cookiePast      = time.Hour       // RFC 9018 4.3
	cookieFuture    = 5 * time.Minute // RFC 9018 4.3
	cookieSecretLen = 16
)

// appendCookie appends the server cookie for a client.
func appendCookie(b []byte, secret *[cookieSecretLen]byte, client []byte, from netip.Addr, now uint32) []byte {
	var head [clientCookie + 8]byte
	copy(head[:clientCookie], client)
	head[clientCookie] = cookieVersion
	binary.BigEndian.PutUint32(head[clientCookie+4:], now)
	return appendHashed(b, secret, &head, from)
}

// appendHashed appends what follows the client's part, with the hash over all. The reserved bytes may be
// anything: another server of the same address may have set them (RFC 9018 4.2, A.3).
func appendHashed(b []byte, secret *[cookieSecretLen]byte, head *[clientCookie + 8]byte, from netip.Addr) []byte {
	var in [clientCookie + 8 + 16]byte
	copy(in[:], head[:])
	n := clientCookie + 8
	if from.Is4() {
		a := from.As4()
		n += copy(in[n:], a[:])
	} else {
		a := from.As16()
		n += copy(in[n:], a[:])
	}
	b = append(b, in[clientCookie:clientCookie+8]...)
	return binary.LittleEndian.AppendUint64(b, sipHash(secret, in[:n]))
}

// validCookie reports whether a cookie (client's and server's part) is one of ours.
func validCookie(cookie []byte, secrets [][cookieSecretLen]byte, from netip.Addr, now time.Time) bool {
	if len(cookie) != clientCookie+serverCookie || cookie[clientCookie] != cookieVersion {
		return false
	}
	made := binary.BigEndian.Uint32(cookie[clientCookie+4:])
	age := time.Duration(int32(uint32(now.Unix())-made)) * time.Second // serial arithmetic (RFC 1982)
	if age > cookiePast || age < -cookieFuture {
		return false
	}
	for i := range secrets {
		var b [serverCookie]byte
		want := appendHashed(b[:0], &secrets[i], (*[clientCookie + 8]byte)(cookie), from)
		if subtle.ConstantTimeCompare(want, cookie[clientCookie:]) == 1 {
			return true
		}
	}
	return false
}

// sipHash is SipHash-2-4 (Aumasson and Bernstein, 2012).
func sipHash(key *[16]byte, b []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v0, v1 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d
	v2, v3 := k0^0x6c7967656e657261, k1^0x7465646279746573
	round := func() {
		v0 += v1
		v2 += v3
		v1, v3 = bits.RotateLeft64(v1, 13)^v0, bits.RotateLeft64(v3, 16)^v2
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v1
		v0 += v3
		v1, v3 = bits.RotateLeft64(v1, 17)^v2, bits.RotateLeft64(v3, 21)^v0
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := uint64(len(b)) << 56
	for ; len(b) >= 8; b = b[8:] {
		m := binary.LittleEndian.Uint64(b)
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xff
	round()
	round()
	round()
	round()
	return v0 ^ v1 ^ v2 ^ v3
}
