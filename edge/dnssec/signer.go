package dnssec

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/zone"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/zonefile"
)

const (
	// validity is how long a signature holds, and renewAt how much of that must be left. Nodes whose
	// clocks are an hour off still give signatures that hold.
	validity = 7 * 24 * time.Hour
	renewAt  = validity / 2
	backdate = 3 * time.Hour
	// cacheShards and cacheEntries bound the signatures kept for a zone: 64 × 1,024, about 20 MB. A full
	// shard is emptied: names that are asked for again are signed again.
	cacheShards, cacheEntries = 64, 1024
)

// Stats counts what a Signer did.
type Stats struct{ Signed, Hits, Emptied atomic.Uint64 }

// Signer signs one zone.
type Signer struct {
	apex    []byte
	active  key
	all     []key // sign DNSKEY, CDS and CDNSKEY
	DNSKEY  *zone.RRSet
	CDS     *zone.RRSet
	CDNSKEY *zone.RRSet
	stats   *Stats
	shards  [cacheShards]shard
}

type key struct {
	algorithm uint8
	tag       uint16
	signer    crypto.Signer
}

type shard struct {
	mu   sync.RWMutex // guards sigs
	sigs map[string]signature
}

type signature struct {
	data    []byte // rdata of the RRSIG
	expires time.Time
}

// New makes the Signer of a zone, or nil for one that is not signed. before, if it is the same zone's
// with the same keys, is used on with all its signatures. stats may be shared.
func New(z *zone.Zone, before *Signer, stats *Stats) (*Signer, error) {
	if z.Model == nil || !z.Model.DNSSEC {
		return nil, nil
	}
	s := &Signer{apex: z.Apex, stats: stats}
	var keys, cds, cdnskey []dns.RR
	for _, k := range z.Model.Keys {
		record := zonefile.DNSKEY(z.Name, k)
		private, err := zonefile.Signer(k)
		if err != nil {
			return nil, fmt.Errorf("zone %s: %w", z.Name, err)
		}
		own := key{algorithm: uint8(k.Algorithm), tag: record.KeyTag(), signer: private}
		keys = append(keys, record)
		s.all = append(s.all, own)
		if k.State == model.KeyActive {
			s.active = own
		}
		if k.State != model.KeyRetired { // RFC 7344: what the parent should have
			cds = append(cds, &dns.CDS{DS: *zonefile.DS(z.Name, k)})
			cdnskey = append(cdnskey, &dns.CDNSKEY{DNSKEY: *record})
		}
	}
	if s.active.signer == nil {
		return nil, fmt.Errorf("zone %s: no key is active", z.Name)
	}
	var err error
	for _, set := range []struct {
		to      **zone.RRSet
		t       uint16
		records []dns.RR
	}{{&s.DNSKEY, dns.TypeDNSKEY, keys}, {&s.CDS, dns.TypeCDS, cds}, {&s.CDNSKEY, dns.TypeCDNSKEY, cdnskey}} {
		if *set.to, err = pack(set.t, set.records); err != nil {
			return nil, err
		}
	}
	if before != nil && slices.EqualFunc(before.DNSKEY.Datas, s.DNSKEY.Datas, slices.Equal[[]byte]) &&
		before.active.tag == s.active.tag {
		return before, nil
	}
	return s, nil
}

func pack(t uint16, records []dns.RR) (*zone.RRSet, error) {
	set := &zone.RRSet{Type: t, TTL: zonefile.KeyTTLSeconds}
	for _, rr := range records {
		rr.Header().Rrtype = t
		b := make([]byte, dns.Len(rr)+256)
		n, err := dns.PackRR(rr, b, 0, nil, false)
		if err != nil {
			return nil, err
		}
		_, off, err := dns.UnpackDomainName(b, 0)
		if err != nil {
			return nil, err
		}
		set.Datas = append(set.Datas, slices.Clone(b[off+10:n]))
	}
	slices.SortFunc(set.Datas, slices.Compare[[]byte])
	return set, nil
}

// Sign calls f with the rdata of each signature of a set at a name (wire form, lower case), made now or
// earlier. scratch is working memory of the caller. What cannot be signed is an error.
func (s *Signer) Sign(owner []byte, set *zone.RRSet, now time.Time, scratch *[]byte, f func(rdata []byte)) error {
	if set.Type == dns.TypeDNSKEY || set.Type == dns.TypeCDS || set.Type == dns.TypeCDNSKEY {
		for i := range s.all {
			if err := s.sign(&s.all[i], owner, set, now, scratch, f); err != nil {
				return err
			}
		}
		return nil
	}
	return s.sign(&s.active, owner, set, now, scratch, f)
}

func (s *Signer) sign(k *key, owner []byte, set *zone.RRSet, now time.Time, scratch *[]byte, f func([]byte)) error {
	// The key of the cache is all that is signed: owner, type, TTL, records; and by which key.
	b := append((*scratch)[:0], owner...)
	b = binary.BigEndian.AppendUint16(b, k.tag)
	b = binary.BigEndian.AppendUint16(b, set.Type)
	b = binary.BigEndian.AppendUint32(b, set.TTL)
	h := uint32(2166136261)
	for _, d := range set.Datas {
		b = binary.BigEndian.AppendUint16(b, uint16(len(d)))
		b = append(b, d...)
	}
	*scratch = b
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	sh := &s.shards[h%cacheShards]
	sh.mu.RLock()
	sig, ok := sh.sigs[string(b)]
	sh.mu.RUnlock()
	if ok && sig.expires.Sub(now) > renewAt {
		s.stats.Hits.Add(1)
		f(sig.data)
		return nil
	}
	sig, err := k.make(s.apex, owner, set, now)
	if err != nil {
		return err
	}
	s.stats.Signed.Add(1)
	sh.mu.Lock()
	if sh.sigs == nil || len(sh.sigs) >= cacheEntries {
		if sh.sigs != nil {
			s.stats.Emptied.Add(1)
		}
		sh.sigs = make(map[string]signature)
	}
	sh.sigs[string(b)] = sig
	sh.mu.Unlock()
	f(sig.data)
	return nil
}

// make signs (RFC 4034 3.1.8.1): the RRSIG's rdata without the signature, then each record in canonical
// form and order. The names that wildcards stand for are signed as they are asked for.
func (k *key) make(apex, owner []byte, set *zone.RRSet, now time.Time) (signature, error) {
	expires := now.Add(validity)
	b := binary.BigEndian.AppendUint16(nil, set.Type)
	b = append(b, k.algorithm, uint8(labels(owner)))
	b = binary.BigEndian.AppendUint32(b, set.TTL)
	b = binary.BigEndian.AppendUint32(b, uint32(expires.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(now.Add(-backdate).Unix()))
	b = binary.BigEndian.AppendUint16(b, k.tag)
	b = append(b, apex...)
	head := len(b)
	datas := set.Datas
	if !slices.IsSortedFunc(datas, slices.Compare[[]byte]) {
		datas = slices.Clone(datas)
		slices.SortFunc(datas, slices.Compare[[]byte])
	}
	for _, d := range datas {
		b = append(b, owner...)
		b = binary.BigEndian.AppendUint16(b, set.Type)
		b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
		b = binary.BigEndian.AppendUint32(b, set.TTL)
		b = binary.BigEndian.AppendUint16(b, uint16(len(d)))
		b = append(b, d...)
	}
	sig, err := k.raw(b)
	if err != nil {
		return signature{}, fmt.Errorf("sign with key %d: %w", k.tag, err)
	}
	return signature{append(b[:head:head], sig...), expires}, nil
}

// labels is the labels field: without the root, and without a wildcard's asterisk.
func labels(owner []byte) int {
	n := zone.Labels(owner)
	if len(owner) > 2 && owner[0] == 1 && owner[1] == '*' {
		n--
	}
	return n
}

// raw signs bytes in the form that the algorithm's RFC wants.
func (k *key) raw(b []byte) ([]byte, error) {
	if _, ok := k.signer.(*ecdsa.PrivateKey); !ok {
		return k.signer.Sign(rand.Reader, b, crypto.Hash(0)) // Ed25519, RFC 8080 4
	}
	sum := sha256.Sum256(b)
	der, err := k.signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &v); err != nil {
		return nil, err
	}
	out := make([]byte, 64) // r and s, 32 bytes each (RFC 6605 4)
	v.R.FillBytes(out[:32])
	v.S.FillBytes(out[32:])
	return out, nil
}
