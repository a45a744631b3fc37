package manifest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// carryOut does in memory what the steps ask of a controller. It demands what a controller does: that
// parents exist, that nothing below is left at a delete, and that ports of siblings never overlap.
func carryOut(t testing.TB, s *State, p *Plan) {
	t.Helper()
	for _, step := range p.Steps {
		switch step.Verb {
		case Create:
			create(t, s, step)
		case Update:
			update(t, s, step)
		case Delete:
			remove(t, s, step)
		}
		for _, g := range s.Groups {
			checkOverrides(t, s, step, g)
		}
		checkFleet(t, s, step)
		for i, a := range s.Listeners {
			for _, b := range s.Listeners[:i] {
				if a.GetAcceleratorId() == b.GetAcceleratorId() && clash(a, b) {
					t.Fatalf("after %s %s %s two listeners overlap: %v, %v", step.Verb, step.Kind, step.Name, a, b)
				}
			}
		}
	}
}

// checkOverrides demands of a group's overrides what a controller does: from a port of the listener, to
// one that is no listener's, and to one endpoint port from one listener port only.
func checkOverrides(t testing.TB, s *State, step *Step, g *pb.EndpointGroup) {
	at := func(id string) *pb.Listener {
		return s.Listeners[slices.IndexFunc(s.Listeners, func(l *pb.Listener) bool { return l.Id == id })]
	}
	own := at(g.ListenerId)
	for _, o := range g.PortOverrides {
		bad := !holds(own.PortRanges, o.ListenerPort)
		for _, l := range s.Listeners {
			bad = bad || l.AcceleratorId == own.AcceleratorId && holds(l.PortRanges, o.EndpointPort)
		}
		for _, other := range s.Groups {
			for _, x := range other.PortOverrides {
				bad = bad || at(other.ListenerId).AcceleratorId == own.AcceleratorId &&
					x.EndpointPort == o.EndpointPort && x.ListenerPort != o.ListenerPort
			}
		}
		if bad {
			t.Fatalf("after %s %s %s, group %s overrides %v of %v", step.Verb, step.Kind, step.Name, g.Region, o, own)
		}
	}
}

var lastID int

func create(t testing.TB, s *State, step *Step) {
	lastID++
	id := fmt.Sprintf("%08x", lastID)
	switch o := proto.Clone(step.Object).(type) {
	case *pb.Region:
		s.Regions = append(s.Regions, o)
	case *pb.Site:
		s.Sites = append(s.Sites, o)
	case *pb.Pool:
		s.Pools = append(s.Pools, o)
	case *pb.Target:
		s.Targets = append(s.Targets, o)
	case *pb.BgpPeer:
		o.Id, id = step.Name, step.Name
		s.Peers = append(s.Peers, o)
	case *pb.Zone:
		s.Zones = append(s.Zones, withAliases(t, s, o, step))
	case *pb.Accelerator:
		o.Id = id
		s.Accelerators = append(s.Accelerators, o)
	case *pb.Listener:
		o.Id, o.AcceleratorId = id, step.Parent.ID
		if !slices.ContainsFunc(s.Accelerators, func(a *pb.Accelerator) bool { return a.Id == o.AcceleratorId }) {
			t.Fatalf("listener %s has no parent %q", step.Name, o.AcceleratorId)
		}
		s.Listeners = append(s.Listeners, o)
	case *pb.EndpointGroup:
		o.Id, o.ListenerId = id, step.Parent.ID
		if !slices.ContainsFunc(s.Listeners, func(l *pb.Listener) bool { return l.Id == o.ListenerId }) {
			t.Fatalf("group %s has no parent %q", step.Name, o.ListenerId)
		}
		s.Groups = append(s.Groups, o)
	default:
		t.Fatalf("%T is created", o)
	}
	step.Self.ID = id
}

func update(t testing.TB, s *State, step *Step) {
	var stored proto.Message
	object := proto.Clone(step.Object)
	if z, is := object.(*pb.Zone); is {
		withAliases(t, s, z, step)
	}
	if _, is := object.(*pb.Steering); is && s.Steering == nil {
		s.Steering = wantSteering(&problems{}, &Steering{})
	}
	find := func(m proto.Message, key string) {
		if key == step.Self.ID && proto.MessageName(m) == proto.MessageName(step.Object) {
			stored = m
		}
	}
	for _, o := range s.Sites {
		find(o, o.Name)
	}
	for _, o := range s.Pools {
		find(o, o.Name)
	}
	for _, o := range s.Targets {
		find(o, o.Name)
	}
	for _, o := range s.Accelerators {
		find(o, o.Id)
	}
	for _, o := range s.Listeners {
		find(o, o.Id)
	}
	for _, o := range s.Groups {
		find(o, o.Id)
	}
	for _, o := range s.Peers {
		find(o, o.Id)
	}
	for _, o := range s.Zones {
		find(o, o.Name)
	}
	if s.Steering != nil {
		find(s.Steering, "steering")
	}
	if stored == nil || len(step.Mask) == 0 {
		t.Fatalf("update of %s %s (%v), mask %v", step.Kind, step.Name, step.Self, step.Mask)
	}
	for _, field := range step.Mask {
		fd := stored.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field))
		if from := object.ProtoReflect(); from.Has(fd) {
			stored.ProtoReflect().Set(fd, from.Get(fd))
		} else {
			stored.ProtoReflect().Clear(fd)
		}
	}
}

func remove(t testing.TB, s *State, step *Step) {
	before := len(s.Listeners) + len(s.Groups) + len(s.Peers)
	switch step.Kind {
	case KindListener:
		for _, g := range s.Groups {
			if g.ListenerId == step.Self.ID {
				t.Fatalf("listener %s is deleted with its group %s", step.Name, g.Region)
			}
		}
		s.Listeners = slices.DeleteFunc(s.Listeners, func(l *pb.Listener) bool { return l.Id == step.Self.ID })
	case KindPeer:
		s.Peers = slices.DeleteFunc(s.Peers, func(b *pb.BgpPeer) bool { return b.Id == step.Self.ID })
	case KindGroup:
		s.Groups = slices.DeleteFunc(s.Groups, func(g *pb.EndpointGroup) bool { return g.Id == step.Self.ID })
	}
	if len(s.Listeners)+len(s.Groups)+len(s.Peers) != before-1 {
		t.Fatalf("delete of %s %s (%v) deleted nothing", step.Kind, step.Name, step.Self)
	}
}

// TestRandomFiles: from any state to any file, the steps are taken, and then nothing is left to do.
func TestRandomFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	steps, exchanges := 0, 0
	for range 200 {
		s := &State{}
		for range 3 {
			f := randomFile(rng)
			p, err := Compare(f, seen(s), Options{Prune: true})
			if err != nil && strings.Contains(err.Error(), "in two steps") {
				exchanges++
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			steps += len(p.Steps)
			carryOut(t, s, p)
			if p = mustCompare(t, f, s, Options{Prune: true}); certain(p) > 0 {
				text, _ := f.Marshal()
				t.Fatalf("a second time it still changes something:\n%s\nfile\n%s", told(p), text)
			}
			exported := FromState(seen(s))
			if p = mustCompare(t, exported, s, Options{Prune: true}); len(p.Steps) > 0 {
				t.Fatalf("the export changes something:\n%s", told(p))
			}
		}
	}
	t.Logf("%d steps were taken, %d files wanted an exchange", steps, exchanges)
	if steps < 3000 || exchanges > 60 {
		t.Errorf("%d steps were taken, %d files wanted an exchange", steps, exchanges)
	}
}

func randomFile(rng *rand.Rand) *File {
	f := &File{}
	for _, name := range []string{"one", "two"} {
		a := Accelerator{Name: name, Listeners: []Listener{}}
		if rng.IntN(3) == 0 {
			a.Enabled = proto.Bool(false)
		}
		at := 1 + rng.IntN(50)
		for range rng.IntN(4) { // ports of one file never overlap
			l := Listener{Groups: []Group{}, Protocol: []string{"tcp", "udp", "tcp_udp"}[rng.IntN(3)]}
			for range 1 + rng.IntN(2) {
				to := at + rng.IntN(20)
				l.Ports = append(l.Ports, fmt.Sprintf("%d-%d", at, to))
				at = to + 1 + rng.IntN(30)
			}
			for _, region := range []string{"r1", "r2", "r3"} {
				if rng.IntN(2) == 0 {
					continue
				}
				g := Group{Region: region, Endpoints: []Endpoint{}}
				if rng.IntN(2) == 0 {
					g.HealthCheck = &HealthCheck{Port: uint32(rng.IntN(60)), Path: "/x", Protocol: "http"}
				}
				for i := range rng.IntN(3) {
					g.Endpoints = append(g.Endpoints, Endpoint{ID: fmt.Sprint("10.0.0.", i), Weight: proto.Uint32(rng.Uint32N(3))})
				}
				l.Groups = append(l.Groups, g)
			}
			a.Listeners = append(a.Listeners, l)
		}
		randomOverrides(rng, &a)
		f.Accelerators = append(f.Accelerators, a)
	}
	randomFleet(rng, f)
	return f
}

// randomOverrides adds overrides that a controller takes.
func randomOverrides(rng *rand.Rand, a *Accelerator) {
	var ranges []*pb.PortRange
	for _, l := range a.Listeners {
		r, _ := ParsePorts(strings.Join(l.Ports, ","))
		ranges = append(ranges, r...)
	}
	to := map[uint32]uint32{} // from endpoint port to listener port
	for i := range a.Listeners {
		own, _ := ParsePorts(strings.Join(a.Listeners[i].Ports, ","))
		for j := range a.Listeners[i].Groups {
			g := &a.Listeners[i].Groups[j]
			for k := range rng.IntN(3) {
				r := own[k%len(own)]
				from, end := r.From+rng.Uint32N(r.To-r.From+1), 1+rng.Uint32N(120)
				clashes := slices.ContainsFunc(g.PortOverrides, func(o PortOverride) bool {
					return o.ListenerPort == from || o.EndpointPort == end
				})
				if before, taken := to[end]; holds(ranges, end) || clashes || taken && before != from {
					continue
				}
				to[end] = from
				g.PortOverrides = append(g.PortOverrides, PortOverride{from, end})
			}
		}
	}
}

// FuzzParse: whatever a file holds, nothing panics, and what is understood can be written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("accelerators: [{name: a, listeners: [{ports: [1, 2-3]}]}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse(text)
		if err != nil {
			return
		}
		_, _ = Compare(file, &State{}, Options{Prune: true})
		out, err := file.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("its own text is refused: %v\n%s", err, out)
		}
		out2, err := again.Marshal()
		if err != nil || string(out2) != string(out) {
			t.Fatalf("it changes when it is read and written: %v\n%s\n%s", err, out, out2)
		}
	})
}

// FuzzParsePorts: what is read is within range, and its text is read as the same.
func FuzzParsePorts(f *testing.F) {
	f.Add("80,443,8000-8999")
	f.Add("1-65535")
	f.Add("0,65536,9-1,,-")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := ParsePorts(text)
		if err != nil {
			return
		}
		for _, r := range ranges {
			if r.From < 1 || r.From > r.To || r.To > 65535 {
				t.Fatalf("%q: %v", text, r)
			}
		}
		again, err := ParsePorts(PortsText(ranges))
		if err != nil || PortsText(again) != PortsText(ranges) {
			t.Fatalf("%q: %q, %v", text, PortsText(ranges), err)
		}
	})
}
