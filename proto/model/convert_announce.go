package model

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file converts the configuration of announcements.

func siteBGPFrom(c check, p *pb.SiteBgp) *SiteBGP {
	if p == nil {
		return nil
	}
	b := &SiteBGP{
		LocalASN:      p.GetLocalAsn(),
		DrainTime:     durationOr(c, "drain_time", p.GetDrainTime(), DefaultDrainTime),
		DrainPrepends: smallInt(p.GetDrainPrepends()),
		DryRun:        p.GetDryRun(),
		Drained:       p.GetDrained(),
	}
	if s := p.GetRouterId(); s != "" {
		b.RouterID = addrFrom(c, "router_id", s)
	}
	if c.count("pools", len(p.GetPools()), SnapshotPoolsMax) {
		b.Pools = names[PoolName](p.GetPools())
	}
	if c.count("communities", len(p.GetCommunities()), CommunitiesMax) {
		b.Communities = names[Community](p.GetCommunities())
	}
	return b
}

func siteBGPTo(b *SiteBGP) *pb.SiteBgp {
	if b == nil {
		return nil
	}
	p := &pb.SiteBgp{
		LocalAsn:      b.LocalASN,
		Pools:         names[string](b.Pools),
		DrainTime:     durationpb.New(b.DrainTime),
		DrainPrepends: uint32(max(b.DrainPrepends, 0)),
		Communities:   names[string](b.Communities),
		DryRun:        b.DryRun,
		Drained:       b.Drained,
	}
	if b.RouterID.IsValid() {
		p.RouterId = b.RouterID.String()
	}
	return p
}

// durationOr is durationFrom for a field in which 0 is a value of its own.
func durationOr(c check, field string, p *durationpb.Duration, def time.Duration) time.Duration {
	if p != nil && p.CheckValid() == nil {
		return p.AsDuration()
	}
	return durationFrom(c, field, p, def)
}

// smallInt keeps what is too large for an int too large.
func smallInt(n uint32) int { return int(min(n, 1<<30)) }

// BGPPeerFromProto converts a session; each 0 becomes its default.
func BGPPeerFromProto(p *pb.BgpPeer) (BGPPeer, error) {
	c := newCheck("peer")
	return bgpPeerFrom(c, p), c.err()
}

func bgpPeerFrom(c check, p *pb.BgpPeer) BGPPeer {
	or := func(n uint32, def int) int {
		if n == 0 {
			return def
		}
		return smallInt(n)
	}
	b := BGPPeer{
		Site:            SiteName(p.GetSite()),
		Name:            p.GetName(),
		Port:            portFrom(c, "port", p.GetPort()),
		ASN:             p.GetAsn(),
		Password:        p.GetPassword(),
		TTLSecurity:     p.GetTtlSecurity(),
		MultihopTTL:     smallInt(p.GetMultihopTtl()),
		HoldTime:        durationFrom(c, "hold_time", p.GetHoldTime(), DefaultHoldTime),
		ConnectRetry:    durationFrom(c, "connect_retry", p.GetConnectRetry(), DefaultConnectRetry),
		RestartTime:     durationFrom(c, "restart_time", p.GetRestartTime(), 0),
		Prepends:        smallInt(p.GetPrepends()),
		LocalPreference: p.GetLocalPreference(),
		MaxPrefixes:     or(p.GetMaxPrefixes(), DefaultMaxPrefixes),
		BFD:             p.GetBfd(),
		BFDInterval:     durationFrom(c, "bfd_interval", p.GetBfdInterval(), DefaultBFDInterval),
		BFDMultiplier:   or(p.GetBfdMultiplier(), DefaultBFDMultiplier),
		Passive:         p.GetPassive(),
		Disabled:        p.GetDisabled(),
		Revision:        p.GetRevision(),
	}
	if b.Port == 0 {
		b.Port = DefaultBGPPort
	}
	if s := p.GetAddress(); s != "" {
		b.Address = addrFrom(c, "address", s)
	}
	if s := p.GetLocalAddress(); s != "" {
		b.LocalAddress = addrFrom(c, "local_address", s)
	}
	if p != nil && p.Med != nil {
		med := p.GetMed()
		b.MED = &med
	}
	if c.count("nodes", len(p.GetNodes()), SnapshotNodesMax) {
		b.Nodes = names[string](p.GetNodes())
	}
	if c.count("communities", len(p.GetCommunities()), CommunitiesMax) {
		b.Communities = names[Community](p.GetCommunities())
	}
	return b
}

// BGPPeerToProto converts a session, password included: it is for the store and for nodes.
func BGPPeerToProto(b BGPPeer) *pb.BgpPeer {
	p := &pb.BgpPeer{
		Id: string(b.ID()), Site: string(b.Site), Name: b.Name, Address: b.Address.String(), Asn: b.ASN,
		Nodes: names[string](b.Nodes), Password: b.Password, PasswordSet: b.Password != "",
		TtlSecurity: b.TTLSecurity, MultihopTtl: uint32(max(b.MultihopTTL, 0)),
		HoldTime: durationpb.New(b.HoldTime), ConnectRetry: durationpb.New(b.ConnectRetry),
		Communities: names[string](b.Communities), Prepends: uint32(max(b.Prepends, 0)),
		LocalPreference: b.LocalPreference, MaxPrefixes: uint32(max(b.MaxPrefixes, 0)), Bfd: b.BFD,
		BfdInterval: durationpb.New(b.BFDInterval), BfdMultiplier: uint32(max(b.BFDMultiplier, 0)),
		Passive: b.Passive, Port: uint32(b.Port), Disabled: b.Disabled, Revision: b.Revision,
	}
	if b.RestartTime != 0 {
		p.RestartTime = durationpb.New(b.RestartTime)
	}
	if b.LocalAddress.IsValid() {
		p.LocalAddress = b.LocalAddress.String()
	}
	if b.MED != nil {
		med := *b.MED
		p.Med = &med
	}
	return p
}

// BGPPeerToAnswer is BGPPeerToProto without the secret: it is for operators.
func BGPPeerToAnswer(b BGPPeer) *pb.BgpPeer {
	p := BGPPeerToProto(b)
	p.Password = ""
	return p
}
