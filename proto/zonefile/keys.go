package zonefile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/proto/model"
)

const (
	// keyTTL is the TTL of DNSKEY, CDS and CDNSKEY: how long resolvers know a set of keys.
	keyTTL = 3600
	// keyFlags: zone key and secure entry point (RFC 4034 2.1.1), as one key signs everything.
	keyFlags = dns.ZONE | dns.SEP
	// KeyTTLSeconds is keyTTL for who must wait for it.
	KeyTTLSeconds = keyTTL
)

// NewKey makes a key that is published and not yet used.
func NewKey(algorithm model.ZoneKeyAlgorithm) (model.ZoneKey, error) {
	k := model.ZoneKey{Algorithm: algorithm, State: model.KeyPublished}
	switch algorithm {
	case model.ECDSAP256SHA256:
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return k, err
		}
		if k.Private, err = private.Bytes(); err != nil {
			return k, err
		}
		point, err := private.PublicKey.Bytes()
		if err != nil {
			return k, err
		}
		k.Public = point[1:] // without the octet that says "uncompressed" (RFC 6605 4)
	case model.Ed25519:
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return k, err
		}
		k.Public, k.Private = public, private.Seed()
	default:
		return k, fmt.Errorf("algorithm %d is not supported", algorithm)
	}
	k.Tag = DNSKEY("", k).KeyTag()
	return k, nil
}

// Signer returns the private key.
func Signer(k model.ZoneKey) (crypto.Signer, error) {
	if len(k.Private) != 32 {
		return nil, fmt.Errorf("key %d has no private half", k.Tag)
	}
	switch k.Algorithm {
	case model.ECDSAP256SHA256:
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), k.Private)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", k.Tag, err)
		}
		return private, nil
	case model.Ed25519:
		return ed25519.NewKeyFromSeed(k.Private), nil
	}
	return nil, fmt.Errorf("algorithm %d is not supported", k.Algorithm)
}

// DNSKEY returns the record of a key.
func DNSKEY(zone model.ZoneName, k model.ZoneKey) *dns.DNSKEY {
	return &dns.DNSKEY{
		Hdr: dns.RR_Header{Name: dns.CanonicalName(string(zone)), Rrtype: dns.TypeDNSKEY,
			Class: dns.ClassINET, Ttl: keyTTL},
		Flags: keyFlags, Protocol: 3, Algorithm: uint8(k.Algorithm),
		PublicKey: base64.StdEncoding.EncodeToString(k.Public),
	}
}

// DS returns the record that the parent zone needs, with a SHA-256 digest (RFC 4509).
func DS(zone model.ZoneName, k model.ZoneKey) *dns.DS { return DNSKEY(zone, k).ToDS(dns.SHA256) }
