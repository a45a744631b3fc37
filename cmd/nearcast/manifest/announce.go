package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// SiteBGP says that a site's edges announce anycast pools. Written as the word none it takes that away.
type SiteBGP struct {
	LocalASN      uint32    `yaml:"local_asn"`
	RouterID      string    `yaml:"router_id,omitempty"`
	Pools         []string  `yaml:"pools,omitempty"`      // left out: all
	DrainTime     *Duration `yaml:"drain_time,omitempty"` // left out: 5s
	DrainPrepends uint32    `yaml:"drain_prepends,omitempty"`
	Communities   []string  `yaml:"communities,omitempty"`
	DryRun        bool      `yaml:"dry_run,omitempty"`

	none bool
}

// UnmarshalYAML takes a mapping, or none.
func (b *SiteBGP) UnmarshalYAML(unmarshal func(any) error) error {
	var word string
	if unmarshal(&word) == nil {
		if word != "none" {
			return fmt.Errorf("%q is not BGP; write {local_asn: N}, or none", word)
		}
		*b = SiteBGP{none: true}
		return nil
	}
	type plain SiteBGP
	return unmarshal((*plain)(b))
}

// MarshalYAML is what UnmarshalYAML reads.
func (b SiteBGP) MarshalYAML() (any, error) {
	if b.none {
		return "none", nil
	}
	type plain SiteBGP
	return plain(b), nil
}

// Peer is a BGP session of a site's edges. No controller tells a password: an export has PasswordSet in
// its place, which leaves alone what is there.
type Peer struct {
	Name            string   `yaml:"name"`
	Address         string   `yaml:"address"`
	ASN             uint32   `yaml:"asn"`
	Nodes           []string `yaml:"nodes,omitempty"`
	Password        string   `yaml:"password,omitempty"`
	PasswordFile    string   `yaml:"password_file,omitempty"` // see File.ReadSecrets
	PasswordSet     bool     `yaml:"password_set,omitempty"`
	TTLSecurity     bool     `yaml:"ttl_security,omitempty"`
	MultihopTTL     uint32   `yaml:"multihop_ttl,omitempty"`
	HoldTime        Duration `yaml:"hold_time,omitempty"`
	ConnectRetry    Duration `yaml:"connect_retry,omitempty"`
	RestartTime     Duration `yaml:"restart_time,omitempty"`
	Communities     []string `yaml:"communities,omitempty"`
	Prepends        uint32   `yaml:"prepends,omitempty"`
	LocalPreference uint32   `yaml:"local_preference,omitempty"`
	MED             *uint32  `yaml:"med,omitempty"` // left out: none
	MaxPrefixes     uint32   `yaml:"max_prefixes,omitempty"`
	BFD             bool     `yaml:"bfd,omitempty"`
	BFDInterval     Duration `yaml:"bfd_interval,omitempty"`
	BFDMultiplier   uint32   `yaml:"bfd_multiplier,omitempty"`
	Passive         bool     `yaml:"passive,omitempty"`
	LocalAddress    string   `yaml:"local_address,omitempty"`
	Port            uint32   `yaml:"port,omitempty"`
	Disabled        bool     `yaml:"disabled,omitempty"`

	secret string // what PasswordFile holds
}

// ReadSecrets reads the files that the file names for passwords, without their final line ends.
func (f *File) ReadSecrets(read func(path string) ([]byte, error)) error {
	var p problems
	for i := range f.Sites {
		for j := range f.Sites[i].Peers {
			peer := &f.Sites[i].Peers[j]
			if peer.PasswordFile == "" {
				continue
			}
			path := fmt.Sprintf("sites[%s].peers[%s].password_file", f.Sites[i].Name, peer.Name)
			text, err := read(peer.PasswordFile)
			peer.secret = strings.TrimRight(string(text), "\r\n")
			switch {
			case err != nil:
				p.add(path, "%v", err)
			case peer.secret == "":
				p.add(path, "%s is empty; leave it out for a session without a password", peer.PasswordFile)
			}
		}
	}
	return p.err()
}

func wantSiteBGP(b *SiteBGP) *pb.SiteBgp {
	m := &pb.SiteBgp{
		LocalAsn: b.LocalASN, RouterId: b.RouterID, Pools: b.Pools, DrainPrepends: b.DrainPrepends,
		Communities: b.Communities, DryRun: b.DryRun,
	}
	if b.DrainTime != nil {
		m.DrainTime = durationpb.New(time.Duration(*b.DrainTime))
	}
	return m
}

func siteBGPFile(b *pb.SiteBgp) *SiteBGP {
	if b == nil {
		return nil
	}
	out := &SiteBGP{
		LocalASN: b.GetLocalAsn(), RouterID: b.GetRouterId(), Pools: b.GetPools(),
		DrainPrepends: b.GetDrainPrepends(), Communities: b.GetCommunities(), DryRun: b.GetDryRun(),
	}
	if d := b.GetDrainTime(); d != nil && d.AsDuration() != model.DefaultDrainTime {
		drain := Duration(d.AsDuration())
		out.DrainTime = &drain
	}
	return out
}

func siteBGPText(b *pb.SiteBgp) string {
	text := fmt.Sprintf("as %d", b.GetLocalAsn())
	if len(b.GetPools()) > 0 {
		text += ", pools " + strings.Join(b.GetPools(), " ")
	}
	if b.GetDryRun() {
		text += ", dry run"
	}
	return text
}

func wantPeer(p *problems, path, site string, b Peer) *pb.BgpPeer {
	m := &pb.BgpPeer{
		Site: site, Name: b.Name, Address: b.Address, Asn: b.ASN, Nodes: b.Nodes,
		Password: cmp.Or(b.Password, b.secret), TtlSecurity: b.TTLSecurity, MultihopTtl: b.MultihopTTL,
		HoldTime: duration(b.HoldTime), ConnectRetry: duration(b.ConnectRetry),
		RestartTime: duration(b.RestartTime),
		Communities: b.Communities, Prepends: b.Prepends, LocalPreference: b.LocalPreference, Med: b.MED,
		MaxPrefixes: b.MaxPrefixes, Bfd: b.BFD, BfdInterval: duration(b.BFDInterval),
		BfdMultiplier: b.BFDMultiplier, Passive: b.Passive, LocalAddress: b.LocalAddress,
		Port: b.Port, Disabled: b.Disabled,
	}
	said := 0
	for _, is := range []bool{b.Password != "", b.PasswordFile != "", b.PasswordSet} {
		if is {
			said++
		}
	}
	if said > 1 {
		p.add(path+".password", "is said more than once; give one of password, password_file and password_set")
	}
	if b.PasswordFile != "" && b.secret == "" {
		p.add(path+".password_file", "was not read") // no session is to be without its password by mistake
	}
	m = normal(p, path, m, model.BGPPeerFromProto, model.BGPPeerToProto)
	m.Id, m.PasswordSet = "", false
	return m
}

func peerFile(b *pb.BgpPeer) Peer {
	unless := func(n, def uint32) uint32 {
		if n == def {
			return 0
		}
		return n
	}
	return Peer{
		Name: b.GetName(), Address: b.GetAddress(), ASN: b.GetAsn(), Nodes: b.GetNodes(),
		PasswordSet: b.GetPasswordSet(), TTLSecurity: b.GetTtlSecurity(), MultihopTTL: b.GetMultihopTtl(),
		HoldTime:     unlessDefault(b.GetHoldTime(), model.DefaultHoldTime),
		ConnectRetry: unlessDefault(b.GetConnectRetry(), model.DefaultConnectRetry),
		RestartTime:  unlessDefault(b.GetRestartTime(), 0),
		Communities:  b.GetCommunities(), Prepends: b.GetPrepends(),
		LocalPreference: b.GetLocalPreference(), MED: b.Med,
		MaxPrefixes: unless(b.GetMaxPrefixes(), model.DefaultMaxPrefixes), BFD: b.GetBfd(),
		BFDInterval:   unlessDefault(b.GetBfdInterval(), model.DefaultBFDInterval),
		BFDMultiplier: unless(b.GetBfdMultiplier(), model.DefaultBFDMultiplier), Passive: b.GetPassive(),
		LocalAddress: b.GetLocalAddress(), Port: unless(b.GetPort(), model.DefaultBGPPort),
		Disabled: b.GetDisabled(),
	}
}

// peersOf returns the sessions that a site has.
func (s *State) peersOf(site string) (peers []*pb.BgpPeer) {
	for _, b := range s.Peers {
		if b.GetSite() == site {
			peers = append(peers, b)
		}
	}
	return peers
}

// dropPeers deletes the sessions that the file does not have of sites that it names, or notes that they stay.
// That comes before all else: a site without BGP may have none, and a new one may want their addresses.
func (p *planner) dropPeers(in []Site) {
	for _, s := range in {
		if s.Peers == nil {
			continue
		}
		for _, have := range p.state.peersOf(s.Name) {
			name := s.Name + "/" + have.GetName()
			switch {
			case slices.ContainsFunc(s.Peers, func(f Peer) bool { return f.Name == have.GetName() }):
			case p.prune:
				p.delete(KindPeer, name, name, nil)
			default:
				p.plan.Left = append(p.plan.Left, "peer "+name)
			}
		}
	}
}

// siteBGP fills what a site is to announce, and demands that its sessions can stay. have is nil for a new
// site.
func (p *planner) siteBGP(path string, s Site, want, have *pb.Site) {
	switch {
	case s.BGP == nil:
		want.Bgp = have.GetBgp() // not touched
	case s.BGP.none:
		want.Bgp = nil
	default:
		want.Bgp.Drained = have.GetBgp().GetDrained()
		adoptOrder(have.GetBgp().GetPools(), &want.Bgp.Pools, self)
		adoptOrder(have.GetBgp().GetCommunities(), &want.Bgp.Communities, self)
	}
	if want.GetBgp() != nil {
		return
	}
	stay := len(p.state.peersOf(s.Name)) > 0 && (s.Peers == nil || !p.prune)
	if len(s.Peers) > 0 || s.BGP != nil && stay {
		p.add(path+".bgp", "is not there, and peers need it; write {local_asn: N}, or peers: [] with --prune")
	}
}

// wantedPeer is a session of the file, and what it is there.
type wantedPeer struct {
	path       string
	file       Peer
	want, have *pb.BgpPeer // have is nil for a new one
}

func (p *planner) peers(in []Site) {
	for _, s := range in {
		var old, added []*wantedPeer
		byName(p, fmt.Sprintf("sites[%s].peers", s.Name), s.Peers, p.state.peersOf(s.Name),
			func(b Peer) string { return b.Name }, (*pb.BgpPeer).GetName,
			func(path string, b Peer, have *pb.BgpPeer, found bool) {
				w := &wantedPeer{path: path, file: b, want: wantPeer(&p.problems, path, s.Name, b), have: have}
				if b.PasswordSet && !have.GetPasswordSet() {
					p.add(path+".password_set", "keeps the password that is there, and there is none; "+
						"give it with password or password_file")
				}
				if found {
					old = append(old, w)
				} else {
					added = append(added, w)
				}
			})
		for _, w := range p.peersInOrder(old) { // existing ones first: what they free, new ones may want
			p.peer(s.Name+"/"+w.file.Name, w)
		}
		for _, w := range added {
			p.create(KindPeer, s.Name+"/"+w.file.Name, w.want, nil, nil)
		}
	}
}

// peersInOrder returns sessions in an order in which each can take its address: after the one that has it.
func (p *planner) peersInOrder(waiting []*wantedPeer) (order []*wantedPeer) {
	for len(waiting) > 0 {
		next := slices.IndexFunc(waiting, func(w *wantedPeer) bool {
			return !slices.ContainsFunc(waiting, func(other *wantedPeer) bool {
				return other != w && w.want.GetAddress() == other.have.GetAddress() &&
					w.want.GetAddress() != w.have.GetAddress()
			})
		})
		if next < 0 {
			for _, w := range waiting {
				p.add(w.path+".address", "belongs to another peer, which wants that of this one; apply it in two steps")
			}
			return order
		}
		order = append(order, waiting[next])
		waiting = slices.Delete(waiting, next, next+1)
	}
	return order
}

// peer plans the change of a session that is there.
func (p *planner) peer(name string, w *wantedPeer) {
	have := stored(p, w.path, w.have, model.BGPPeerFromProto, model.BGPPeerToProto)
	adoptOrder(have.GetNodes(), &w.want.Nodes, self)
	adoptOrder(have.GetCommunities(), &w.want.Communities, self)
	changes := diff(have, w.want, "address", "asn", "nodes", "ttl_security", "multihop_ttl", "hold_time",
		"connect_retry", "restart_time", "communities", "prepends", "local_preference", "med", "max_prefixes", "bfd",
		"bfd_interval", "bfd_multiplier", "passive", "local_address", "port", "disabled")
	step := &Step{Kind: KindPeer, Name: name, Object: w.want, Self: &Ref{name},
		Revision: w.have.GetRevision()}
	was, given := w.have.GetPasswordSet(), w.want.GetPassword() != ""
	switch {
	case given && was:
		step.Maybe = len(changes) == 0
		changes = append(changes, Change{"password", "set", "as the file says"})
	case given:
		changes = append(changes, Change{"password", "", "set"})
	case was && !w.file.PasswordSet:
		changes = append(changes, Change{"password", "set", ""})
	}
	step.Changes = changes
	p.settle(step)
}
