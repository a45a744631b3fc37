package manifest

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// State is what is there.
type State struct {
	Regions      []*pb.Region
	Sites        []*pb.Site
	Pools        []*pb.Pool
	Targets      []*pb.Target
	Accelerators []*pb.Accelerator
	Listeners    []*pb.Listener
	Groups       []*pb.EndpointGroup
	Peers        []*pb.BgpPeer
	Zones        []*pb.Zone   // with their text
	Steering     *pb.Steering // nil: as it is by default
}

// Verb is what a step does.
type Verb string

// The verbs.
const (
	Create Verb = "create"
	Update Verb = "update"
	Delete Verb = "delete"
)

// Kind is what a step does it to.
type Kind string

// The kinds.
const (
	KindRegion      Kind = "region"
	KindSite        Kind = "site"
	KindPool        Kind = "pool"
	KindTarget      Kind = "target"
	KindAccelerator Kind = "accelerator"
	KindListener    Kind = "listener"
	KindGroup       Kind = "group"
	KindPeer        Kind = "peer"
	KindZone        Kind = "zone"
	KindSteering    Kind = "steering"
)

// Ref is an object whose id is known, or will be once a step has created it.
type Ref struct{ ID string }

// Step is one call of the admin API.
type Step struct {
	Verb Verb
	Kind Kind
	Name string // what people call it, like "web:443@eu-fra-1"

	// Object is what to create, or what holds the fields of Mask. Its own id and its parent's are
	// not filled: they are Self's and Parent's at the time of the step. Nil for deletes.
	Object proto.Message
	Mask   []string // the fields to update
	// Revision that the object must still have. 0: any.
	Revision uint64

	Self   *Ref // the object; a create fills it
	Parent *Ref // of a listener its accelerator, of a group its listener
	Root   *Ref // the accelerator that this is or is below; nil for other kinds

	Aliases []*Ref // the accelerators of a zone's aliases, in their order

	// Maybe is true of an update of which only its making tells whether it changes anything: it gives a
	// password, and what is there cannot be seen.
	Maybe bool

	Changes []Change // for people
}

// Change is one field that a step sets. From is empty for what is new, To for what goes.
type Change struct{ Field, From, To string }

// Plan is how the cluster becomes what a file says.
type Plan struct {
	Steps []*Step
	// Unchanged counts the objects that are already what the file says.
	Unchanged int
	// Left names what is below accelerators of the file, and not in it, and stays.
	Left []string
	// Accelerators are those that the file names.
	Accelerators []*Ref
}

// Options of Compare.
type Options struct {
	// Prune deletes what is below an accelerator of the file, in a list that the file has, and not in it.
	Prune bool
}

// Compare plans what must change in s so that it is what f says. Errors are model.FieldErrors with
// paths into the file, like "accelerators[web].listeners[0].ports".
func Compare(f *File, s *State, o Options) (*Plan, error) {
	p := &planner{state: s, prune: o.Prune, plan: &Plan{},
		loose: map[string][]*pb.PortOverride{}}
	p.regions(f.Regions)
	p.dropPeers(f.Sites)
	p.pools(f.Pools)
	nodePools := p.takeNodePools() // those name sites, and sites' BGP names the others
	p.sites(f.Sites)
	p.plan.Steps = append(p.plan.Steps, nodePools...)
	p.targets(f.Targets)
	p.peers(f.Sites)
	p.steering(f.Steering)
	p.accelerators(f.Accelerators)
	p.zones(f.Zones)
	if err := p.err(); err != nil {
		return nil, err
	}
	return p.plan, nil
}

type planner struct {
	problems
	state *State
	prune bool
	plan  *Plan
	// loose holds, by group id, overrides that an earlier step of the plan leaves.
	loose map[string][]*pb.PortOverride
}

// step adds a step.
func (p *planner) step(s *Step) { p.plan.Steps = append(p.plan.Steps, s) }

// settle adds an update if there are changes, and otherwise counts the object as unchanged.
func (p *planner) settle(s *Step) {
	if len(s.Changes) == 0 {
		p.plan.Unchanged++
		return
	}
	s.Verb = Update
	s.Mask = maskOf(s.Changes)
	p.step(s)
}

// maskOf is the fields of changes at the top of the message: a change of "health_check.interval" writes
// all of "health_check", one of "endpoints[10.0.0.1]" all of "endpoints".
func maskOf(changes []Change) []string {
	var mask []string
	for _, c := range changes {
		field := c.Field
		if i := strings.IndexAny(field, ".["); i >= 0 {
			field = field[:i]
		}
		if !slices.Contains(mask, field) {
			mask = append(mask, field)
		}
	}
	return mask
}

// byName finds an object by name, and notes names that the file has twice.
func byName[F, T any](p *planner, list string, in []F, have []T, fileName func(F) string, name func(T) string,
	each func(path string, want F, have T, found bool)) {
	seen := map[string]bool{}
	for i, want := range in {
		n := fileName(want)
		path := fmt.Sprintf("%s[%s]", list, n)
		if n == "" {
			path = fmt.Sprintf("%s[%d]", list, i)
		}
		if seen[n] {
			p.add(path, "is in the file twice; join them")
			continue
		}
		seen[n] = true
		at := slices.IndexFunc(have, func(h T) bool { return name(h) == n })
		if at < 0 {
			var none T
			each(path, want, none, false)
		} else {
			each(path, want, have[at], true)
		}
	}
}

func (p *planner) regions(in []Region) {
	byName(p, "regions", in, p.state.Regions, func(r Region) string { return r.Name }, (*pb.Region).GetName,
		func(path string, r Region, have *pb.Region, found bool) {
			want := wantRegion(&p.problems, path, r)
			switch {
			case !found:
				p.create(KindRegion, r.Name, want, nil, nil)
			case r.Description != "" && r.Description != have.GetDescription():
				p.add(path+".description", "is %q and cannot be changed; leave it out", have.GetDescription())
			default:
				p.plan.Unchanged++
			}
		})
}

func (p *planner) sites(in []Site) {
	byName(p, "sites", in, p.state.Sites, func(s Site) string { return s.Name }, (*pb.Site).GetName,
		func(path string, s Site, have *pb.Site, found bool) {
			want := wantSite(&p.problems, path, s)
			p.siteBGP(path, s, want, have)
			if !found {
				p.create(KindSite, s.Name, want, nil, nil)
				return
			}
			p.settle(&Step{Kind: KindSite, Name: s.Name, Object: want, Revision: have.GetRevision(),
				Self: &Ref{s.Name}, Changes: diff(have, want, "region", "latitude", "longitude", "bgp")})
		})
}

func (p *planner) pools(in []Pool) {
	byName(p, "pools", in, p.state.Pools, func(x Pool) string { return x.Name }, (*pb.Pool).GetName,
		func(path string, pool Pool, have *pb.Pool, found bool) {
			want := wantPool(&p.problems, path, pool)
			if !found {
				p.create(KindPool, pool.Name, want, nil, nil)
				return
			}
			for _, c := range diff(have, want, "kind", "zone") {
				p.add(path+"."+c.Field, "is %s and cannot be changed; make another pool", c.From)
			}
			adoptOrder(have.GetPrefixes(), &want.Prefixes, self)
			adoptOrder(have.GetSites(), &want.Sites, self)
			p.settle(&Step{Kind: KindPool, Name: pool.Name, Object: want, Revision: have.GetRevision(),
				Self: &Ref{pool.Name}, Changes: diff(have, want, "prefixes", "sites")})
		})
}

// takeNodePools takes the steps of node pools out of the plan.
func (p *planner) takeNodePools() (taken []*Step) {
	ofNodes := func(s *Step) bool {
		pool, is := s.Object.(*pb.Pool)
		return is && pool.GetKind() == pb.PoolKind_POOL_KIND_NODE
	}
	for _, s := range p.plan.Steps {
		if ofNodes(s) {
			taken = append(taken, s)
		}
	}
	p.plan.Steps = slices.DeleteFunc(p.plan.Steps, ofNodes)
	return taken
}

func (p *planner) targets(in []Target) {
	byName(p, "targets", in, p.state.Targets, func(t Target) string { return t.Name }, (*pb.Target).GetName,
		func(path string, t Target, have *pb.Target, found bool) {
			want := wantTarget(&p.problems, path, t)
			if !found {
				p.create(KindTarget, t.Name, want, nil, nil)
				return
			}
			p.settle(&Step{Kind: KindTarget, Name: t.Name, Object: want, Revision: have.GetRevision(),
				Self: &Ref{t.Name}, Changes: diff(have, want, withTags(t.Tags, "host", "region")...)})
		})
}

// withTags adds "tags" to fields if the file says tags.
func withTags(tags map[string]string, fields ...string) []string {
	if tags == nil {
		return fields
	}
	return append(fields, "tags")
}

// create adds a step that creates an object, and returns what its id will be in.
func (p *planner) create(kind Kind, name string, want proto.Message, parent, root *Ref) *Ref {
	self := &Ref{}
	if kind == KindAccelerator {
		root = self
	}
	p.step(&Step{Verb: Create, Kind: kind, Name: name, Object: want, Self: self, Parent: parent, Root: root,
		Changes: newChanges(want)})
	return self
}

func (p *planner) accelerators(in []Accelerator) {
	byName(p, "accelerators", in, p.state.Accelerators, func(a Accelerator) string { return a.Name },
		(*pb.Accelerator).GetName, func(path string, a Accelerator, have *pb.Accelerator, found bool) {
			want := wantAccelerator(&p.problems, path, a)
			if !found {
				root := p.create(KindAccelerator, a.Name, want, nil, nil)
				p.plan.Accelerators = append(p.plan.Accelerators, root)
				p.listeners(path, a, root)
				return
			}
			p.uniqueName(path, a.Name)
			have = stored(p, path, have, model.AcceleratorFromProto, model.AcceleratorToProto)
			for _, f := range []struct {
				field        string
				have, wanted []string
			}{{"pools", have.GetPools(), a.Pools}, {"addresses", have.GetAddresses(), want.GetAddresses()}} {
				if len(f.wanted) > 0 && !sameSet(f.have, f.wanted) {
					p.add(path+"."+f.field, "are %s and cannot be changed; make another accelerator, or leave them out",
						strings.Join(f.have, ", "))
				}
			}
			if a.Project != "" && a.Project != have.GetProject() {
				p.add(path+".project", "is %s and cannot be changed", have.GetProject())
			}
			root := &Ref{have.GetId()}
			p.plan.Accelerators = append(p.plan.Accelerators, root)
			p.settle(&Step{Kind: KindAccelerator, Name: a.Name, Object: want, Revision: have.GetRevision(),
				Self: root, Root: root, Changes: diff(have, want, withTags(a.Tags, "enabled", "ip_address_type")...)})
			p.listeners(path, a, root)
		})
}

// uniqueName demands that no two accelerators have the name by which the file means one.
func (p *planner) uniqueName(path, name string) {
	var ids []string
	for _, a := range p.state.Accelerators {
		if a.GetName() == name {
			ids = append(ids, a.GetId())
		}
	}
	if len(ids) > 1 {
		p.add(path+".name", "%d accelerators are called so (%s); give all but one another name",
			len(ids), strings.Join(ids, ", "))
	}
}

// stored is an object that is there with its defaults filled, so that it compares with one of the file.
func stored[P proto.Message, M any](p *planner, path string, have P, from func(P) (M, error),
	to func(M) P) P {
	v, err := from(have)
	if err != nil {
		p.add(path, "the cluster's own object is not understood; is this tool older than the controller? %v", err)
	}
	return to(v)
}

// wanted is a listener of the file, and what it is there.
type wanted struct {
	path string
	file Listener
	want *pb.Listener
	have *pb.Listener // nil: new
	self *Ref
}

func (p *planner) listeners(path string, a Accelerator, root *Ref) {
	var have []*pb.Listener
	for _, l := range p.state.Listeners {
		if l.GetAcceleratorId() == root.ID && root.ID != "" {
			have = append(have, stored(p, path, l, model.ListenerFromProto, model.ListenerToProto))
		}
	}
	if a.Listeners == nil {
		return
	}
	var all []*wanted
	for i, l := range a.Listeners {
		at := fmt.Sprintf("%s.listeners[%d]", path, i)
		w := &wanted{path: at, file: l, want: wantListener(&p.problems, at, l)}
		for j, other := range all {
			if clash(w.want, other.want) {
				p.add(at+".ports", "overlap with those of listeners[%d]; give each port to one listener", j)
			}
		}
		all = append(all, w)
	}
	extra := p.match(all, have)
	p.dropListeners(a.Name, extra, root)
	p.collisions(a.Name, all, extra)
	p.loosen(a.Name, all, extra, root)
	for _, w := range p.inOrder(all) { // existing ones first: what they free, new ones may want
		p.settle(listenerStep(a.Name, w, root))
	}
	for _, w := range all {
		if w.self = root; w.have != nil {
			w.self = &Ref{w.have.GetId()}
		} else {
			w.self = p.create(KindListener, ListenerLabel(a.Name, w.want), w.want, root, root)
		}
	}
	for _, w := range all {
		p.groups(a.Name, w, root)
	}
}

func listenerStep(accelerator string, w *wanted, root *Ref) *Step {
	adoptOrder(w.have.GetPortRanges(), &w.want.PortRanges, portRangeText)
	adoptOrder(w.have.GetProxyProtocolFrom(), &w.want.ProxyProtocolFrom, self)
	if have, want := w.have.GetGuard(), w.want.GetGuard(); want != nil {
		adoptOrder(have.GetAllowNetworks(), &want.AllowNetworks, self)
		adoptOrder(have.GetDenyNetworks(), &want.DenyNetworks, self)
	}
	return &Step{Kind: KindListener, Name: ListenerLabel(accelerator, w.have), Object: w.want,
		Revision: w.have.GetRevision(), Self: &Ref{w.have.GetId()}, Parent: root, Root: root,
		Changes: diff(w.have, w.want, withTags(w.file.Tags, "protocol", "port_ranges", "affinity",
			"tcp_idle_timeout",
			"udp_idle_timeout", "proxy_protocol_from", "max_flows", "max_flows_per_source", "guard")...)}
}

// dropListeners deletes listeners that the file does not have, or notes that they stay.
func (p *planner) dropListeners(accelerator string, extra []*pb.Listener, root *Ref) {
	for _, l := range extra {
		name := ListenerLabel(accelerator, l)
		if !p.prune {
			p.plan.Left = append(p.plan.Left, "listener "+name)
			continue
		}
		for _, g := range p.state.Groups {
			if g.GetListenerId() == l.GetId() {
				p.delete(KindGroup, name+"@"+g.GetRegion(), g.GetId(), root)
			}
		}
		p.delete(KindListener, name, l.GetId(), root)
	}
}

func (p *planner) delete(kind Kind, name, id string, root *Ref) {
	p.step(&Step{Verb: Delete, Kind: kind, Name: name, Self: &Ref{id}, Root: root})
}
