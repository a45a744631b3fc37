package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Guard is what a listener lets in. Rates are written as ParseRate reads them.
type Guard struct {
	AllowNetworks    []string `yaml:"allow_networks,omitempty"`
	DenyNetworks     []string `yaml:"deny_networks,omitempty"`
	AllowCountries   []string `yaml:"allow_countries,omitempty"`
	DenyCountries    []string `yaml:"deny_countries,omitempty"`
	SourceRate       string   `yaml:"source_rate,omitempty"`
	TotalRate        string   `yaml:"total_rate,omitempty"`
	SYNRate          string   `yaml:"syn_rate,omitempty"`
	DropFragments    bool     `yaml:"drop_fragments,omitempty"`
	MaxAmplification uint32   `yaml:"max_amplification,omitempty"`
}

func wantGuard(p *problems, path string, g *Guard) *pb.Guard {
	if g == nil {
		return nil
	}
	rate := func(field, text string) *pb.GuardRate {
		r, err := ParseRate(text)
		if err != nil {
			p.add(path+"."+field, "%v", err)
		}
		return r
	}
	return &pb.Guard{
		AllowNetworks: g.AllowNetworks, DenyNetworks: g.DenyNetworks,
		AllowCountries: upper(g.AllowCountries), DenyCountries: upper(g.DenyCountries),
		SourceRate: rate("source_rate", g.SourceRate), TotalRate: rate("total_rate", g.TotalRate),
		SynRate: rate("syn_rate", g.SYNRate), DropFragments: g.DropFragments, MaxAmplification: g.MaxAmplification,
	}
}

func guardFile(g *pb.Guard) *Guard {
	if g == nil {
		return nil
	}
	return &Guard{
		AllowNetworks: g.GetAllowNetworks(), DenyNetworks: g.GetDenyNetworks(),
		AllowCountries: g.GetAllowCountries(), DenyCountries: g.GetDenyCountries(),
		SourceRate: RateText(g.GetSourceRate()), TotalRate: RateText(g.GetTotalRate()),
		SYNRate: RateText(g.GetSynRate()), DropFragments: g.GetDropFragments(),
		MaxAmplification: g.GetMaxAmplification(),
	}
}

// upper writes codes of countries as the controller keeps them.
func upper(codes []string) []string {
	var out []string
	for _, c := range codes {
		out = append(out, strings.ToUpper(strings.TrimSpace(c)))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ParseRate reads a rate like "100" (a second) or "100/500" (and 500 at once after a pause); empty and 0 are
// no limit.
func ParseRate(text string) (*pb.GuardRate, error) {
	if text == "" || text == "0" {
		return nil, nil
	}
	perSecond, burst, hasBurst := strings.Cut(text, "/")
	n, err := strconv.ParseUint(perSecond, 10, 32)
	var b uint64
	if err == nil && hasBurst {
		b, err = strconv.ParseUint(burst, 10, 32)
	}
	if err != nil || n == 0 || hasBurst && b == 0 {
		return nil, fmt.Errorf("%q is not a rate; write 100 (a second) or 100/500 (and 500 at once)", text)
	}
	return &pb.GuardRate{PerSecond: uint32(n), Burst: uint32(b)}, nil
}

// RateText is what ParseRate reads.
func RateText(r *pb.GuardRate) string {
	switch {
	case r.GetPerSecond() == 0:
		return ""
	case r.GetBurst() == 0 || r.GetBurst() == r.GetPerSecond():
		return fmt.Sprint(r.GetPerSecond())
	}
	return fmt.Sprintf("%d/%d", r.GetPerSecond(), r.GetBurst())
}

// GuardText says in words what a guard does.
func GuardText(g *pb.Guard) string {
	var parts []string
	add := func(format string, what any, there bool) {
		if there {
			parts = append(parts, fmt.Sprintf(format, what))
		}
	}
	add("only from %s", strings.Join(g.GetAllowNetworks(), ", "), len(g.GetAllowNetworks()) > 0)
	add("not from %s", strings.Join(g.GetDenyNetworks(), ", "), len(g.GetDenyNetworks()) > 0)
	add("only from the countries %s", strings.Join(g.GetAllowCountries(), ", "), len(g.GetAllowCountries()) > 0)
	add("not from the countries %s", strings.Join(g.GetDenyCountries(), ", "), len(g.GetDenyCountries()) > 0)
	add("%s/s a source", RateText(g.GetSourceRate()), g.GetSourceRate().GetPerSecond() > 0)
	add("%s/s in all", RateText(g.GetTotalRate()), g.GetTotalRate().GetPerSecond() > 0)
	add("SYN cookies above %s/s", RateText(g.GetSynRate()), g.GetSynRate().GetPerSecond() > 0)
	add("no %s", "fragments", g.GetDropFragments())
	add("answers up to %d times the question", g.GetMaxAmplification(), g.GetMaxAmplification() > 0)
	return strings.Join(parts, "; ")
}
