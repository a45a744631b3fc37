package model

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Defaults of Steering, and their bounds.
const (
	DefaultSteeringTTL          = 30 * time.Second // as Route 53 and NS1 advise for failover by DNS
	DefaultSteeringAddressesMax = 4
	SteeringTTLMin              = time.Second
	SteeringTTLMax              = 24 * time.Hour
	SteeringAddressesMax        = 16
	DefaultExplorePercent       = 2 // a site that nobody expects to be near costs 2 % of a network's clients a try
	ExplorePercentMax           = 50
)

// ZoneName is the name of a zone: lower case, without the final dot.
type ZoneName string

// ZoneKeyAlgorithm is a DNSSEC algorithm by its number.
type ZoneKeyAlgorithm uint8

// The algorithms that zones can be signed with: RFC 6605 and RFC 8080.
const (
	ECDSAP256SHA256 ZoneKeyAlgorithm = 13
	Ed25519         ZoneKeyAlgorithm = 15
)

func (a ZoneKeyAlgorithm) String() string {
	switch a {
	case ECDSAP256SHA256:
		return "ECDSAP256SHA256"
	case Ed25519:
		return "ED25519"
	}
	return "unspecified"
}

// ZoneKeyState says where in its life a key is; see the schema.
type ZoneKeyState uint8

// The states, in the order in which a key has them.
const (
	KeyPublished ZoneKeyState = iota + 1
	KeyActive
	KeyRetired
)

func (s ZoneKeyState) String() string {
	return [...]string{"unspecified", "published", "active", "retired"}[min(s, 3)]
}

// ZoneKey is a signing key of a zone.
type ZoneKey struct {
	Tag       uint16
	Algorithm ZoneKeyAlgorithm
	State     ZoneKeyState
	Public    []byte // as in DNSKEY
	Private   []byte // scalar or seed, 32 bytes; empty where it is nobody's business
	Since     time.Time
	DS        string // in the admin API only
}

// ZoneAlias makes a name of a zone an accelerator's.
type ZoneAlias struct {
	Name        string // within the zone, "@" for the apex
	Accelerator AcceleratorID
}

// Zone is a DNS zone that every node answers for.
type Zone struct {
	Name         ZoneName
	Text         string
	Aliases      []ZoneAlias
	DNSSEC       bool
	KeyAlgorithm ZoneKeyAlgorithm // of the next key
	Keys         []ZoneKey
	Revision     uint64
}

// Serial is the zone's SOA serial.
func (z *Zone) Serial() uint32 { return uint32(z.Revision) }

// SteeringNetwork is a network whose clients go to a site.
type SteeringNetwork struct {
	Prefix netip.Prefix
	Site   SiteName
}

// SteeringWeight is the share of the clients for whom a site is the best that it gets.
type SteeringWeight struct {
	Site    SiteName
	Percent int
}

// Steering says how the names of accelerators on node pools are answered. Defaults are filled by
// FromProto.
type Steering struct {
	TTL          time.Duration
	AddressesMax int
	Networks     []SteeringNetwork
	Weights      []SteeringWeight
	DefaultSite  SiteName // "": the first by name
	IgnoreECS    bool
	NameServers  []string
	Revision     uint64

	// ExplorePercent of a client network's answers name a site whose round trip to it is not known and may
	// be shorter, so that it gets measured; none with ExploreOff.
	ExplorePercent int
	ExploreOff     bool
	IgnoreRTT      bool // measured round trips decide nothing
}

// Clone returns a copy that shares nothing with z.
func (z Zone) Clone() Zone {
	z.Aliases, z.Keys = slices.Clone(z.Aliases), slices.Clone(z.Keys)
	for i := range z.Keys {
		z.Keys[i].Public, z.Keys[i].Private = slices.Clone(z.Keys[i].Public), slices.Clone(z.Keys[i].Private)
	}
	return z
}

// OrDefault returns steering as it is meant: snapshots of older controllers have none.
func (s Steering) OrDefault() Steering {
	if s.TTL == 0 {
		s.TTL = DefaultSteeringTTL
	}
	if s.AddressesMax == 0 {
		s.AddressesMax = DefaultSteeringAddressesMax
	}
	if s.ExplorePercent == 0 {
		s.ExplorePercent = DefaultExplorePercent
	}
	return s
}

// Clone returns a copy that shares nothing with s.
func (s Steering) Clone() Steering {
	s.Networks, s.Weights = slices.Clone(s.Networks), slices.Clone(s.Weights)
	s.NameServers = slices.Clone(s.NameServers)
	return s
}

// Validate judges a zone by itself; what its text says is for who reads zone files.
func (z Zone) Validate() error {
	c := newCheck("zone")
	z.check(c)
	return c.err()
}

func (z *Zone) check(c check) {
	if z.Name == "" {
		c.wrong("name", "is missing; give a domain like example.com")
	} else {
		c.domain("name", string(z.Name))
	}
	if len(z.Text) > ZoneTextMax {
		c.wrong("text", "has %d bytes; at most %d are possible", len(z.Text), ZoneTextMax)
	}
	if c.count("aliases", len(z.Aliases), ZoneAliasesMax) {
		for i, a := range z.Aliases {
			field := index("aliases", i)
			if a.Name != "@" && a.Name != "*" {
				c.domain(field+".name", strings.TrimPrefix(a.Name, "*."))
			}
			if slices.ContainsFunc(z.Aliases[:i], func(b ZoneAlias) bool { return b.Name == a.Name }) {
				c.wrong(field+".name", "%s is there twice; leave one out", show(a.Name))
			}
			c.id(field+".accelerator_id", string(a.Accelerator))
		}
	}
	c.algorithm("key_algorithm", z.KeyAlgorithm)
	if !c.count("keys", len(z.Keys), ZoneKeysMax) {
		return
	}
	active := 0
	for i, k := range z.Keys {
		field := index("keys", i)
		c.algorithm(field+".algorithm", k.Algorithm)
		if k.State < KeyPublished || k.State > KeyRetired {
			c.wrong(field+".state", "has the unknown value %d", k.State)
		}
		if len(k.Public) != keyBytes(k.Algorithm) || len(k.Private) != 0 && len(k.Private) != 32 {
			c.wrong(field, "has a public key of %d and a private key of %d bytes; these are no keys of %v",
				len(k.Public), len(k.Private), k.Algorithm)
		}
		if k.State == KeyActive {
			active++
		}
	}
	if z.DNSSEC && active != 1 {
		c.wrong("keys", "has %d active keys; a signed zone has one", active)
	}
}

func keyBytes(a ZoneKeyAlgorithm) int {
	if a == ECDSAP256SHA256 {
		return 64
	}
	return 32
}

func (c check) algorithm(field string, a ZoneKeyAlgorithm) {
	if a != ECDSAP256SHA256 && a != Ed25519 {
		c.wrong(field, "is %d; use 13 (ECDSAP256SHA256) or 15 (ED25519)", a)
	}
}

// domain checks a name of the DNS in the form that is compared: lower case, no final dot.
func (c check) domain(field, s string) {
	if len(s) > HostMax || strings.ToLower(s) != s || strings.HasSuffix(s, ".") {
		c.wrong(field, "%s is not a domain; write it in lower case, without the final dot", show(s))
		return
	}
	for _, label := range strings.Split(s, ".") {
		if len(label) == 0 || len(label) > 63 || !isName(label) {
			c.wrong(field, "%s is not a domain; write it like example.com", show(s))
			return
		}
	}
}

// Validate judges steering by itself.
func (s Steering) Validate() error {
	c := newCheck("steering")
	s.check(c)
	return c.err()
}

func (s *Steering) check(c check) {
	if s.TTL < SteeringTTLMin || s.TTL > SteeringTTLMax {
		c.wrong("ttl", "is %v; use %v to %v", s.TTL, SteeringTTLMin, SteeringTTLMax)
	}
	if s.AddressesMax < 1 || s.AddressesMax > SteeringAddressesMax {
		c.wrong("addresses_max", "is %d; use 1 to %d", s.AddressesMax, SteeringAddressesMax)
	}
	if s.ExplorePercent < 0 || s.ExplorePercent > ExplorePercentMax { // 0: an older controller's
		c.wrong("explore_percent", "is %d; use 1 to %d, or explore_off", s.ExplorePercent, ExplorePercentMax)
	}
	if c.count("networks", len(s.Networks), SteeringNetworksMax) {
		seen := make(map[netip.Prefix]bool, len(s.Networks))
		for i, n := range s.Networks {
			field := index("networks", i)
			switch {
			case !n.Prefix.IsValid():
				c.wrong(field+".prefix", "is missing; write it like 192.0.2.0/24")
				continue
			case n.Prefix != n.Prefix.Masked() || n.Prefix.Addr().Is4In6():
				c.wrong(field+".prefix", "%v has bits below its length; write %v", n.Prefix, n.Prefix.Masked())
			case seen[n.Prefix]:
				c.wrong(field+".prefix", "%v is there twice; leave one out", n.Prefix)
			}
			seen[n.Prefix] = true
			c.name(field+".site", string(n.Site))
		}
	}
	if c.count("weights", len(s.Weights), SnapshotSitesMax) {
		for i, w := range s.Weights {
			field := index("weights", i)
			c.name(field+".site", string(w.Site))
			if w.Percent < 0 || w.Percent > 100 {
				c.wrong(field+".percent", "is %d; use 0 to 100", w.Percent)
			}
			if slices.ContainsFunc(s.Weights[:i], func(o SteeringWeight) bool { return o.Site == w.Site }) {
				c.wrong(field+".site", "%s is there twice; leave one out", show(string(w.Site)))
			}
		}
	}
	if s.DefaultSite != "" {
		c.name("default_site", string(s.DefaultSite))
	}
	if c.count("name_servers", len(s.NameServers), NameServersMax) {
		for i, n := range s.NameServers {
			c.domain(index("name_servers", i), n)
		}
	}
}

func zoneKey(z *Zone) ZoneName { return z.Name }

// Zone returns the zone with this name, or nil.
func (s *Snapshot) Zone(name ZoneName) *Zone { return find(s.Zones, name, zoneKey) }

// dns checks the zones and the steering of a snapshot. References to what is not there are no harm:
// such an alias or network is left out, since one that was forgotten must not stop the whole fleet.
func (s *Snapshot) dns(c check) {
	byKey(c, "zones", s.Zones, zoneKey)
	bytes := 0
	for i := range s.Zones {
		s.Zones[i].check(c.atKey("zones", string(s.Zones[i].Name)))
		bytes += len(s.Zones[i].Text)
	}
	if bytes > SnapshotZoneBytesMax {
		c.wrong("zones", "have %d bytes of text; at most %d are possible", bytes, SnapshotZoneBytesMax)
	}
	if s.Steering.TTL != 0 {
		s.Steering.check(c.at("steering"))
	}
	if s.DNSSuffix != "" {
		c.domain("dns_suffix", s.DNSSuffix)
	}
	for i, k := range s.CookieSecrets {
		if len(k) != 16 {
			c.wrong(index("cookie_secrets", i), "has %d bytes; secrets have 16", len(k))
		}
	}
}

// This file converts zones and steering; see convert_config.go for the rules.

var keyAlgorithms = enumTable[pb.ZoneKeyAlgorithm, ZoneKeyAlgorithm]{
	{pb.ZoneKeyAlgorithm_ZONE_KEY_ALGORITHM_ECDSAP256SHA256, ECDSAP256SHA256},
	{pb.ZoneKeyAlgorithm_ZONE_KEY_ALGORITHM_ED25519, Ed25519},
	{pb.ZoneKeyAlgorithm_ZONE_KEY_ALGORITHM_UNSPECIFIED, ECDSAP256SHA256},
}

var keyStates = enumTable[pb.ZoneKeyState, ZoneKeyState]{
	{pb.ZoneKeyState_ZONE_KEY_STATE_UNSPECIFIED, 0}, // Validate says that it is missing
	{pb.ZoneKeyState_ZONE_KEY_STATE_PUBLISHED, KeyPublished},
	{pb.ZoneKeyState_ZONE_KEY_STATE_ACTIVE, KeyActive},
	{pb.ZoneKeyState_ZONE_KEY_STATE_RETIRED, KeyRetired},
}

// domainFrom brings a name into the form that is compared.
func domainFrom(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// ZoneFromProto converts a zone. DS and serial are outputs and not read.
func ZoneFromProto(p *pb.Zone) (Zone, error) {
	c := newCheck("zone")
	return zoneFrom(c, p), c.err()
}

func zoneFrom(c check, p *pb.Zone) Zone {
	return Zone{
		Name: ZoneName(domainFrom(p.GetName())), Text: p.GetText(),
		Aliases: listFrom(c, "aliases", p.GetAliases(), ZoneAliasesMax,
			func(_ check, _ string, a *pb.ZoneAlias) ZoneAlias {
				return ZoneAlias{Name: domainFrom(a.GetName()), Accelerator: AcceleratorID(a.GetAcceleratorId())}
			}),
		DNSSEC:       p.GetDnssec(),
		KeyAlgorithm: keyAlgorithms.from(c, "key_algorithm", p.GetKeyAlgorithm()),
		Keys:         listFrom(c, "keys", p.GetKeys(), ZoneKeysMax, zoneKeyFrom),
		Revision:     p.GetRevision(),
	}
}

func zoneKeyFrom(c check, field string, p *pb.ZoneKey) ZoneKey {
	c = c.at(field)
	return ZoneKey{
		Tag: uint16(p.GetTag()), Algorithm: keyAlgorithms.from(c, "algorithm", p.GetAlgorithm()),
		State:  keyStates.from(c, "state", p.GetState()),
		Public: bytes.Clone(p.GetPublicKey()), Private: bytes.Clone(p.GetPrivateKey()),
		Since: timeFrom(c, "since", p.GetSince()), DS: p.GetDs(),
	}
}

// ZoneToProto converts a zone, with its private keys: see Zone.Public.
func ZoneToProto(z Zone) *pb.Zone {
	p := &pb.Zone{
		Name: string(z.Name), Text: z.Text, Dnssec: z.DNSSEC, KeyAlgorithm: keyAlgorithms.to(z.KeyAlgorithm),
		Revision: z.Revision, Serial: z.Serial(),
	}
	for _, a := range z.Aliases {
		p.Aliases = append(p.Aliases, &pb.ZoneAlias{Name: a.Name, AcceleratorId: string(a.Accelerator)})
	}
	for _, k := range z.Keys {
		p.Keys = append(p.Keys, &pb.ZoneKey{
			Tag: uint32(k.Tag), Algorithm: keyAlgorithms.to(k.Algorithm), State: keyStates.to(k.State),
			PublicKey: bytes.Clone(k.Public), PrivateKey: bytes.Clone(k.Private), Since: timeTo(k.Since), Ds: k.DS,
		})
	}
	return p
}

// Public returns the zone without private keys.
func (z Zone) Public() Zone {
	z = z.Clone()
	for i := range z.Keys {
		z.Keys[i].Private = nil
	}
	return z
}

// SteeringFromProto converts steering; each 0 becomes its default.
func SteeringFromProto(p *pb.Steering) (Steering, error) {
	c := newCheck("steering")
	return steeringFrom(c, p), c.err()
}

func steeringFrom(c check, p *pb.Steering) Steering {
	s := Steering{
		TTL:          durationFrom(c, "ttl", p.GetTtl(), DefaultSteeringTTL),
		AddressesMax: int(min(p.GetAddressesMax(), 1<<30)),
		Networks: listFrom(c, "networks", p.GetNetworks(), SteeringNetworksMax,
			func(c check, field string, n *pb.SteeringNetwork) SteeringNetwork {
				prefix, err := netip.ParsePrefix(n.GetPrefix())
				if err != nil {
					c.wrong(field+".prefix", "%s is not a network; write it like 192.0.2.0/24", show(n.GetPrefix()))
				}
				return SteeringNetwork{Prefix: prefix, Site: SiteName(n.GetSite())}
			}),
		Weights: listFrom(c, "weights", p.GetWeights(), SnapshotSitesMax,
			func(_ check, _ string, w *pb.SteeringWeight) SteeringWeight {
				return SteeringWeight{Site: SiteName(w.GetSite()), Percent: int(min(w.GetPercent(), 1<<30))}
			}),
		DefaultSite: SiteName(p.GetDefaultSite()), IgnoreECS: p.GetIgnoreEcs(), Revision: p.GetRevision(),
		NameServers: listFrom(c, "name_servers", p.GetNameServers(), NameServersMax,
			func(_ check, _ string, n string) string { return domainFrom(n) }),
		ExplorePercent: int(min(p.GetExplorePercent(), 1<<30)), ExploreOff: p.GetExploreOff(), IgnoreRTT: p.GetIgnoreRtt(),
	}
	if s.AddressesMax == 0 {
		s.AddressesMax = DefaultSteeringAddressesMax
	}
	if s.ExplorePercent == 0 {
		s.ExplorePercent = DefaultExplorePercent
	}
	return s
}

// SteeringToProto converts steering.
func SteeringToProto(s Steering) *pb.Steering {
	p := &pb.Steering{
		Ttl: durationpb.New(s.TTL), AddressesMax: uint32(s.AddressesMax), DefaultSite: string(s.DefaultSite),
		IgnoreEcs: s.IgnoreECS, Revision: s.Revision,
		ExplorePercent: uint32(s.ExplorePercent), ExploreOff: s.ExploreOff, IgnoreRtt: s.IgnoreRTT,
	}
	p.NameServers = append(p.NameServers, s.NameServers...)
	for _, n := range s.Networks {
		p.Networks = append(p.Networks, &pb.SteeringNetwork{Prefix: n.Prefix.String(), Site: string(n.Site)})
	}
	for _, w := range s.Weights {
		p.Weights = append(p.Weights, &pb.SteeringWeight{Site: string(w.Site), Percent: uint32(w.Percent)})
	}
	return p
}
