package model

import (
	"net/netip"
	"slices"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Guard says which packets for a listener are dropped. The zero value drops none of a sane form.
type Guard struct {
	AllowNetworks, DenyNetworks []netip.Prefix // masked
	SourceRate, TotalRate       GuardRate      // new TCP flows and UDP packets on a node
	SYNRate                     GuardRate      // SYNs beyond it are answered with cookies
	DropFragments               bool
	MaxAmplification            uint32 // of UDP answers, by bytes; 0: no limit

	// AllowCountries and DenyCountries are sorted. Networks come first: of DenyNetworks, AllowNetworks,
	// DenyCountries and AllowCountries the first that a source is on decides, and a source that is on none is
	// dropped if there is something to be allowed by.
	AllowCountries, DenyCountries []CountryCode
}

// GuardRate is how much may come on one node. The zero value is no limit.
type GuardRate struct{ PerSecond, Burst uint32 }

// IsZero reports whether nothing is asked for.
func (g *Guard) IsZero() bool {
	return len(g.AllowNetworks) == 0 && len(g.DenyNetworks) == 0 && g.SourceRate == GuardRate{} &&
		g.TotalRate == GuardRate{} && g.SYNRate == GuardRate{} && !g.DropFragments && g.MaxAmplification == 0 &&
		len(g.AllowCountries) == 0 && len(g.DenyCountries) == 0
}

// InKernel reports whether something is asked for that only the kernel program does.
func (g *Guard) InKernel() bool {
	k := *g
	k.MaxAmplification = 0
	return !k.IsZero()
}

// Clone returns a copy that shares nothing with g.
func (g Guard) Clone() Guard {
	g.AllowNetworks, g.DenyNetworks = slices.Clone(g.AllowNetworks), slices.Clone(g.DenyNetworks)
	g.AllowCountries, g.DenyCountries = slices.Clone(g.AllowCountries), slices.Clone(g.DenyCountries)
	return g
}

// The largest numbers of a guard.
const (
	GuardRateMax          = 1_000_000_000
	GuardAmplificationMax = 100
)

func guardFrom(c check, p *pb.Guard) Guard {
	return Guard{
		AllowNetworks:    prefixesFrom(c, "allow_networks", p.GetAllowNetworks(), GuardNetworksMax),
		DenyNetworks:     prefixesFrom(c, "deny_networks", p.GetDenyNetworks(), GuardNetworksMax),
		SourceRate:       guardRateFrom(p.GetSourceRate()),
		TotalRate:        guardRateFrom(p.GetTotalRate()),
		SYNRate:          guardRateFrom(p.GetSynRate()),
		DropFragments:    p.GetDropFragments(),
		MaxAmplification: p.GetMaxAmplification(),
		AllowCountries:   countryCodesFrom(c, "allow_countries", p.GetAllowCountries()),
		DenyCountries:    countryCodesFrom(c, "deny_countries", p.GetDenyCountries()),
	}
}

func guardRateFrom(p *pb.GuardRate) GuardRate {
	r := GuardRate{p.GetPerSecond(), p.GetBurst()}
	if r.Burst == 0 {
		r.Burst = r.PerSecond
	}
	return r
}

// guardTo is nil for the zero value.
func guardTo(g Guard) *pb.Guard {
	if g.IsZero() {
		return nil
	}
	return &pb.Guard{
		AllowNetworks:    stringsTo(g.AllowNetworks),
		DenyNetworks:     stringsTo(g.DenyNetworks),
		SourceRate:       guardRateTo(g.SourceRate),
		TotalRate:        guardRateTo(g.TotalRate),
		SynRate:          guardRateTo(g.SYNRate),
		DropFragments:    g.DropFragments,
		MaxAmplification: g.MaxAmplification,
		AllowCountries:   names[string](g.AllowCountries),
		DenyCountries:    names[string](g.DenyCountries),
	}
}

func guardRateTo(r GuardRate) *pb.GuardRate {
	if r == (GuardRate{}) {
		return nil
	}
	return &pb.GuardRate{PerSecond: r.PerSecond, Burst: r.Burst}
}

func (g *Guard) check(c check, protocol Protocol) {
	g.checkNetworks(c, "allow_networks", g.AllowNetworks)
	g.checkNetworks(c, "deny_networks", g.DenyNetworks)
	g.checkCountries(c)
	g.SourceRate.check(c.at("source_rate"))
	g.TotalRate.check(c.at("total_rate"))
	g.SYNRate.check(c.at("syn_rate"))
	if g.SYNRate != (GuardRate{}) && !protocol.Has(TCP) {
		c.wrong("syn_rate", "is for TCP, which this listener does not take; leave it out")
	}
	if g.MaxAmplification > GuardAmplificationMax {
		c.wrong("max_amplification", "is %d; use 1 to %d, or 0 for no limit", g.MaxAmplification,
			GuardAmplificationMax)
	}
	if g.MaxAmplification != 0 && !protocol.Has(UDP) {
		c.wrong("max_amplification", "is for UDP, which this listener does not take; leave it out")
	}
}

func (g *Guard) checkNetworks(c check, field string, networks []netip.Prefix) {
	if !c.count(field, len(networks), GuardNetworksMax) {
		return
	}
	for i, p := range networks {
		if !p.IsValid() {
			c.wrong(index(field, i), "is missing; write it like 192.0.2.0/24")
		}
	}
}

func (r GuardRate) check(c check) {
	if r.PerSecond == 0 && r.Burst != 0 {
		c.wrong("per_second", "is 0 beside a burst of %d; give a rate, or leave out both", r.Burst)
	}
	if r.PerSecond > GuardRateMax {
		c.wrong("per_second", "is %d; use at most %d", r.PerSecond, GuardRateMax)
	}
	if r.Burst > GuardRateMax {
		c.wrong("burst", "is %d; use at most %d", r.Burst, GuardRateMax)
	}
}
