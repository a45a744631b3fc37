package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PeerID names a BGP session of a site: "SITE/NAME".
type PeerID string

// Defaults of BGP. Where RFC 4271 suggests a value that suits routers with full tables, ours is
// shorter: what stands behind these routes is clients who wait.
const (
	DefaultDrainTime            = 5 * time.Second
	DefaultHoldTime             = 30 * time.Second // RFC 4271 suggests 90 s
	DefaultConnectRetry         = 5 * time.Second  // RFC 4271 suggests 120 s
	DefaultMaxPrefixes          = 1_000_000        // a full table of today
	DefaultBFDInterval          = 300 * time.Millisecond
	DefaultBFDMultiplier        = 3
	DefaultAnnounceFloor        = 1
	DefaultBGPPort              = 179
	DefaultLocalPref            = 100
	GracefulShutdown            = Community("65535:0") // RFC 8326
	bgpPasswordMax              = 80                   // bytes, of Linux's TCP_MD5SIG
	asTrans                     = 23456                // RFC 6793: stands for numbers that old speakers cannot say
	largestASN           uint32 = 1<<32 - 2            // RFC 7300: the last one is reserved
)

// SiteBGP says how a site's nodes announce anycast pools.
type SiteBGP struct {
	LocalASN      uint32
	RouterID      netip.Addr // zero: each node's own IPv4 address
	Pools         []PoolName // empty: all anycast pools
	DrainTime     time.Duration
	DrainPrepends int
	Communities   []Community
	DryRun        bool
	Drained       bool // announcements are withdrawn by an operator
}

// Clone shares nothing with b.
func (b *SiteBGP) Clone() *SiteBGP {
	if b == nil {
		return nil
	}
	c := *b
	c.Pools, c.Communities = slices.Clone(b.Pools), slices.Clone(b.Communities)
	return &c
}

// BGPPeer is a session of a site's nodes with a router.
type BGPPeer struct {
	Site            SiteName
	Name            string
	Address         netip.Addr
	Port            uint16
	ASN             uint32
	Nodes           []string // names; empty: all the site's edges
	Password        string   // a secret: never in answers
	TTLSecurity     bool
	MultihopTTL     int // 0: a direct neighbour
	HoldTime        time.Duration
	ConnectRetry    time.Duration
	RestartTime     time.Duration // 0: no graceful restart
	Communities     []Community
	Prepends        int
	LocalPreference uint32  // internal BGP only; 0: 100
	MED             *uint32 // nil: none
	MaxPrefixes     int
	BFD             bool
	BFDInterval     time.Duration
	BFDMultiplier   int
	Passive         bool
	LocalAddress    netip.Addr // zero: the route decides
	Disabled        bool
	Revision        uint64
}

// ID returns SITE/NAME.
func (p *BGPPeer) ID() PeerID { return PeerID(string(p.Site) + "/" + p.Name) }

// Of reports whether a node has this session.
func (p *BGPPeer) Of(n *Node) bool {
	return n.Edge && n.Site == p.Site && (len(p.Nodes) == 0 || slices.Contains(p.Nodes, n.Name))
}

// Community is a BGP community as people write it: "65000:100" (RFC 1997), "4200000000:1:2" (large,
// RFC 8092) or a well-known name.
type Community string

// wellKnown are the names of RFC 1997 and RFC 3765 that an announcement may carry.
var wellKnown = map[Community]uint32{
	"no-export": 0xFFFFFF01, "no-advertise": 0xFFFFFF02, "no-export-subconfed": 0xFFFFFF03,
	"no-peer": 0xFFFFFF04,
}

// Parts returns the value of a community: one number of 32 bits, or three for a large one.
func (c Community) Parts() ([]uint32, error) {
	if n, ok := wellKnown[c]; ok {
		return []uint32{n}, nil
	}
	words := strings.Split(string(c), ":")
	bits := 16
	if len(words) == 3 {
		bits = 32
	}
	var parts []uint32
	for _, w := range words {
		n, err := strconv.ParseUint(w, 10, bits)
		if err != nil || len(words) != 2 && len(words) != 3 {
			return nil, fmt.Errorf("%s is no community; write it like 65000:100, 4200000000:1:2 or no-export",
				show(string(c)))
		}
		parts = append(parts, uint32(n))
	}
	if len(parts) == 2 {
		return []uint32{parts[0]<<16 | parts[1]}, nil
	}
	return parts, nil
}

// Peers returns the BGP sessions of a node, disabled ones included.
func (s *Snapshot) Peers(n *Node) []*BGPPeer {
	var all []*BGPPeer
	for i := range s.BGPPeers {
		if p := &s.BGPPeers[i]; p.Of(n) {
			all = append(all, p)
		}
	}
	return all
}

// Announces reports whether a site is to announce a pool.
func (b *SiteBGP) Announces(p *Pool) bool {
	return b != nil && p.Kind == PoolAnycast && !p.Withheld && (len(b.Pools) == 0 || slices.Contains(b.Pools, p.Name))
}

// Aggregate returns what is announced for a prefix of a pool: the aggregate that it lies in, or itself.
func Aggregate(aggregates []netip.Prefix, p netip.Prefix) netip.Prefix {
	for _, a := range aggregates {
		if a.Bits() <= p.Bits() && a.Contains(p.Addr()) {
			return a
		}
	}
	return p
}

func peerKey(p *BGPPeer) PeerID { return p.ID() }
