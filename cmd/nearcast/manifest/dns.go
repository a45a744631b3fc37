package manifest

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Zone is a DNS zone. What is left out is not touched; a new zone has no text, no aliases and no signatures
// then. Keys are no part of a file: they are made with the zone and never leave the controllers.
type Zone struct {
	Name         string      `yaml:"name"`
	Text         *string     `yaml:"text,omitempty"` // a zone file
	Aliases      []ZoneAlias `yaml:"aliases"`
	DNSSEC       *bool       `yaml:"dnssec,omitempty"`
	KeyAlgorithm string      `yaml:"key_algorithm,omitempty"` // of the next key
}

// ZoneAlias makes a name of a zone an accelerator's.
type ZoneAlias struct {
	Name        string `yaml:"name"`        // within the zone, "@" for the apex
	Accelerator string `yaml:"accelerator"` // its name, or its id
}

// Steering says how the names of accelerators on node pools are answered. A field that is left out has
// its default.
type Steering struct {
	TTL            Duration          `yaml:"ttl,omitempty"`
	AddressesMax   uint32            `yaml:"addresses_max,omitempty"`
	Networks       []SteeringNetwork `yaml:"networks,omitempty"`
	Weights        []SteeringWeight  `yaml:"weights,omitempty"`
	DefaultSite    string            `yaml:"default_site,omitempty"`
	IgnoreECS      bool              `yaml:"ignore_ecs,omitempty"`
	NameServers    []string          `yaml:"name_servers,omitempty"`
	ExplorePercent uint32            `yaml:"explore_percent,omitempty"`
	ExploreOff     bool              `yaml:"explore_off,omitempty"`
	IgnoreRTT      bool              `yaml:"ignore_rtt,omitempty"`
}

// SteeringNetwork is a network whose clients go to a site.
type SteeringNetwork struct {
	Prefix string `yaml:"prefix"`
	Site   string `yaml:"site"`
}

// SteeringWeight is the share of the clients for whom a site is the best that it gets.
type SteeringWeight struct {
	Site    string `yaml:"site"`
	Percent uint32 `yaml:"percent"`
}

func wantSteering(p *problems, s *Steering) *pb.Steering {
	m := &pb.Steering{
		Ttl: duration(s.TTL), AddressesMax: s.AddressesMax, DefaultSite: s.DefaultSite, IgnoreEcs: s.IgnoreECS,
		NameServers: s.NameServers, ExplorePercent: s.ExplorePercent, ExploreOff: s.ExploreOff,
		IgnoreRtt: s.IgnoreRTT,
	}
	for _, n := range s.Networks {
		m.Networks = append(m.Networks, &pb.SteeringNetwork{Prefix: n.Prefix, Site: n.Site})
	}
	for _, w := range s.Weights {
		m.Weights = append(m.Weights, &pb.SteeringWeight{Site: w.Site, Percent: w.Percent})
	}
	return normal(p, "steering", m, model.SteeringFromProto, model.SteeringToProto)
}

// steeringFile is nil where all is as it is by default.
func steeringFile(m *pb.Steering) *Steering {
	s, _ := model.SteeringFromProto(nil)
	def := model.SteeringToProto(s)
	out := &Steering{
		TTL: unlessDefault(m.GetTtl(), model.DefaultSteeringTTL), DefaultSite: m.GetDefaultSite(),
		IgnoreECS: m.GetIgnoreEcs(), NameServers: m.GetNameServers(), ExploreOff: m.GetExploreOff(),
		IgnoreRTT: m.GetIgnoreRtt(),
	}
	if m.GetAddressesMax() != def.GetAddressesMax() {
		out.AddressesMax = m.GetAddressesMax()
	}
	if m.GetExplorePercent() != def.GetExplorePercent() {
		out.ExplorePercent = m.GetExplorePercent()
	}
	for _, n := range m.GetNetworks() {
		out.Networks = append(out.Networks, SteeringNetwork{n.GetPrefix(), n.GetSite()})
	}
	for _, w := range m.GetWeights() {
		out.Weights = append(out.Weights, SteeringWeight{w.GetSite(), w.GetPercent()})
	}
	def.Revision = m.GetRevision()
	if m == nil || proto.Equal(m, def) {
		return nil
	}
	return out
}

func networkText(n *pb.SteeringNetwork) string { return n.GetPrefix() + "=" + n.GetSite() }

func weightText(w *pb.SteeringWeight) string {
	return fmt.Sprintf("%s=%d%%", w.GetSite(), w.GetPercent())
}

func (p *planner) steering(in *Steering) {
	if in == nil {
		return
	}
	want := wantSteering(&p.problems, in)
	have := stored(p, "steering", p.state.Steering, model.SteeringFromProto, model.SteeringToProto)
	adoptOrder(have.GetNetworks(), &want.Networks, networkText)
	adoptOrder(have.GetWeights(), &want.Weights, weightText)
	p.settle(&Step{Kind: KindSteering, Name: "of names", Object: want, Revision: have.GetRevision(),
		Self: &Ref{"steering"}, Changes: diff(have, want, "ttl", "addresses_max", "networks", "weights",
			"default_site", "ignore_ecs", "name_servers", "explore_percent", "explore_off", "ignore_rtt")})
}

// ZoneKey is the form of a zone's name by which it is known: lower case, without the final dot.
func ZoneKey(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func (p *planner) zones(in []Zone) {
	byName(p, "zones", in, p.state.Zones, func(z Zone) string { return ZoneKey(z.Name) }, (*pb.Zone).GetName,
		func(path string, z Zone, have *pb.Zone, found bool) {
			want, refs := p.wantZone(path, z, have)
			if !found {
				p.create(KindZone, ZoneKey(z.Name), want, nil, nil)
				step := p.plan.Steps[len(p.plan.Steps)-1]
				step.Aliases = refs
				step.Changes = append(p.aliasChanges(nil, want.GetAliases(), refs), step.Changes...)
				return
			}
			have = stored(p, path, have, model.ZoneFromProto, model.ZoneToProto)
			changes := textChanges(have.GetText(), want.GetText())
			changes = append(changes, p.aliasChanges(have.GetAliases(), want.GetAliases(), refs)...)
			changes = append(changes, diff(have, want, "dnssec", "key_algorithm")...)
			p.settle(&Step{Kind: KindZone, Name: have.GetName(), Object: want, Revision: have.GetRevision(),
				Self: &Ref{have.GetName()}, Aliases: refs, Changes: changes})
		})
}

// wantZone is what a zone is to be; refs are the accelerators of its aliases.
func (p *planner) wantZone(path string, z Zone, have *pb.Zone) (want *pb.Zone, refs []*Ref) {
	m := &pb.Zone{Name: z.Name, Text: have.GetText(), KeyAlgorithm: have.GetKeyAlgorithm()}
	if z.Text != nil {
		m.Text = *z.Text
	}
	if z.KeyAlgorithm != "" {
		m.KeyAlgorithm = enum[pb.ZoneKeyAlgorithm](&p.problems, path+".key_algorithm", z.KeyAlgorithm)
	}
	if z.Aliases == nil {
		m.Aliases = have.GetAliases()
		for _, a := range m.GetAliases() {
			refs = append(refs, &Ref{a.GetAcceleratorId()})
		}
	}
	for i, a := range z.Aliases {
		ref := p.accelerator(fmt.Sprintf("%s.aliases[%d].accelerator", path, i), a.Accelerator, have)
		refs = append(refs, ref)
		id := ref.ID
		if id == "" {
			id = unknownID
		}
		m.Aliases = append(m.Aliases, &pb.ZoneAlias{Name: a.Name, AcceleratorId: id})
	}
	want = normal(&p.problems, path, m, model.ZoneFromProto, model.ZoneToProto) // unsigned: it has no keys yet
	want.Dnssec, want.Serial = have.GetDnssec(), 0
	if z.DNSSEC != nil {
		want.Dnssec = *z.DNSSEC
	}
	return want, refs
}

// accelerator finds the accelerator that an alias of the file means: by name, or by id. It may be one that
// the plan creates, or one that is gone and that the zone's alias still has.
func (p *planner) accelerator(path, name string, have *pb.Zone) *Ref {
	var found []*Ref
	for _, a := range p.state.Accelerators {
		if name != "" && a.GetName() == name {
			found = append(found, &Ref{a.GetId()})
		}
	}
	for _, s := range p.plan.Steps {
		if s.Verb == Create && s.Kind == KindAccelerator && s.Name == name {
			found = append(found, s.Self)
		}
	}
	gone := slices.ContainsFunc(have.GetAliases(), func(a *pb.ZoneAlias) bool {
		return a.GetAcceleratorId() == name
	})
	known := slices.ContainsFunc(p.state.Accelerators, func(a *pb.Accelerator) bool { return a.GetId() == name })
	switch {
	case len(found) == 1:
		return found[0]
	case len(found) > 1:
		p.add(path, "%d accelerators are called %q; give the id of one", len(found), name)
	case name == "" || !known && !gone:
		p.add(path, "there is no accelerator %q, neither in the file nor in the cluster", name)
	}
	return &Ref{name}
}

// aliasChanges compares aliases, by the names of their accelerators.
func (p *planner) aliasChanges(have, want []*pb.ZoneAlias, refs []*Ref) (changes []Change) {
	to := map[string]string{}
	for i, a := range want {
		to[a.GetName()] = p.acceleratorName(refs[i])
	}
	for _, a := range have {
		from := p.acceleratorName(&Ref{a.GetAcceleratorId()})
		if to[a.GetName()] != from {
			changes = append(changes, Change{"aliases[" + a.GetName() + "]", from, to[a.GetName()]})
		}
		delete(to, a.GetName())
	}
	for _, a := range want {
		if name, is := to[a.GetName()]; is {
			changes = append(changes, Change{"aliases[" + a.GetName() + "]", "", name})
		}
	}
	return changes
}

func (p *planner) acceleratorName(r *Ref) string {
	for _, s := range p.plan.Steps {
		if s.Verb == Create && s.Kind == KindAccelerator && s.Self == r {
			return s.Name
		}
	}
	return p.state.acceleratorName(r.ID)
}

// acceleratorName is an accelerator's name where that alone tells which one is meant, and otherwise its id.
func (s *State) acceleratorName(id string) string {
	name, same := id, 0
	for _, a := range s.Accelerators {
		if a.GetId() == id && a.GetName() != "" {
			name = a.GetName()
		}
	}
	for _, a := range s.Accelerators {
		if a.GetName() == name {
			same++
		}
	}
	if same > 1 {
		return id
	}
	return name
}

// textLinesMax are the lines of a zone file that a plan shows.
const textLinesMax = 10

// textChanges tells the lines that go and come.
func textChanges(have, want string) (changes []Change) {
	if have == want {
		return nil
	}
	before, after := strings.Split(have, "\n"), strings.Split(want, "\n")
	count := map[string]int{}
	for _, line := range before {
		count[line]++
	}
	var come []string
	for _, line := range after {
		if count[line]--; count[line] < 0 {
			come = append(come, line)
			count[line] = 0
		}
	}
	for _, line := range before {
		if count[line] > 0 && strings.TrimSpace(line) != "" {
			count[line]--
			changes = append(changes, Change{"text", lineText(line), ""})
		}
	}
	for _, line := range come {
		if strings.TrimSpace(line) != "" {
			changes = append(changes, Change{"text", "", lineText(line)})
		}
	}
	switch more := len(changes) - textLinesMax; {
	case len(changes) == 0:
		return []Change{{"text", "the same lines", "in another order, or other empty ones"}}
	case more > 0:
		changes = append(changes[:textLinesMax], Change{"text", "", fmt.Sprintf("… and %d more lines", more)})
	}
	return changes
}

// lineText is a line of a zone file as a plan shows it.
func lineText(line string) string {
	line = strings.Join(strings.Fields(line), " ")
	if r := []rune(line); len(r) > 100 {
		line = string(r[:99]) + "…"
	}
	return line
}

func (s *State) zoneFile(z *pb.Zone) Zone {
	out := Zone{
		Name: z.GetName(), Text: proto.String(z.GetText()), Aliases: []ZoneAlias{},
		DNSSEC: proto.Bool(z.GetDnssec()), KeyAlgorithm: EnumText(z.GetKeyAlgorithm()),
	}
	for _, a := range z.GetAliases() {
		out.Aliases = append(out.Aliases, ZoneAlias{a.GetName(), s.acceleratorName(a.GetAcceleratorId())})
	}
	return out
}
