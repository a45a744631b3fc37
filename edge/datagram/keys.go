package datagram

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// errSecret: a secret that short is a mistake of the caller's.
var errSecret = errors.New("secret is too short")

// key seals or opens the packets of one direction of one epoch.
type key struct {
	id   uint64
	aead cipher.AEAD
	iv   [12]byte
}

// deriveKey makes the key of a direction ("initiator" or "responder", whoever sends), as wire draws.
func deriveKey(secret []byte, epoch uint32, sender string) (k key, err error) {
	if len(secret) < secretBytesMin {
		return key{}, errSecret
	}
	expand := func(what string, n int) []byte {
		info := binary.BigEndian.AppendUint32([]byte("nearcast datagram 1 "+sender+" "+what), epoch)
		b, kerr := hkdf.Key(sha256.New, secret, nil, string(info), n)
		err = errors.Join(err, kerr)
		return b
	}
	aeadKey, iv, id := expand("key", 16), expand("iv", 12), expand("id", 8)
	if err != nil {
		return key{}, fmt.Errorf("derive keys of epoch %d: %w", epoch, err)
	}
	block, err := aes.NewCipher(aeadKey)
	if err != nil {
		return key{}, err
	}
	k.aead, err = cipher.NewGCM(block)
	copy(k.iv[:], iv)
	k.id = binary.BigEndian.Uint64(id)
	return k, err
}

// outbound is an epoch to send under.
type outbound struct {
	key
	epoch uint32
	next  [wire.LanesMax]struct {
		number atomic.Uint64 // the next packet number of the lane
		_      [56]byte      // lanes are used by different CPUs: a cache line each
	}
}

// sealed is the highest number of packets of a lane.
func (o *outbound) sealed() (n uint64) {
	for i := range o.next {
		n = max(n, o.next[i].number.Load())
	}
	return n
}

// inbound is an epoch to receive under.
type inbound struct {
	key
	epoch   uint32
	channel *Channel
	heard   atomic.Bool            // an authentic packet has come
	retire  time.Duration          // when to forget it, 0: not yet known; guarded by Channel.mu
	windows [wire.LanesMax]*window // made when a lane is first heard; guarded by the lane's mu
}

// deriveBoth makes the two keys of an epoch.
func deriveBoth(secret []byte, epoch uint32, initiator bool) (out *outbound, in *inbound, err error) {
	mine, theirs := "initiator", "responder"
	if !initiator {
		mine, theirs = theirs, mine
	}
	out, in = &outbound{epoch: epoch}, &inbound{epoch: epoch}
	if out.key, err = deriveKey(secret, epoch, mine); err != nil {
		return nil, nil, err
	}
	if in.key, err = deriveKey(secret, epoch, theirs); err != nil {
		return nil, nil, err
	}
	return out, in, nil
}
