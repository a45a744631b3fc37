package manifest

import (
	"slices"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// match finds out which listener of the file is which one that is there, and returns those that none
// is. First by id; then by the same protocol and ports; then, where only one pair is possible, by ports
// in common, first with the same protocol and then with any.
func (p *planner) match(all []*wanted, have []*pb.Listener) (extra []*pb.Listener) {
	taken := map[*pb.Listener]bool{}
	for _, w := range all {
		if w.file.ID == "" {
			continue
		}
		i := slices.IndexFunc(have, func(l *pb.Listener) bool { return l.GetId() == w.file.ID })
		if i < 0 || taken[have[i]] {
			p.add(w.path+".id", "%q is no listener of this accelerator, or named twice; leave it out", w.file.ID)
			continue
		}
		w.have, taken[have[i]] = have[i], true
	}
	for _, like := range []func(a, b *pb.Listener) bool{
		func(a, b *pb.Listener) bool { return a.GetProtocol() == b.GetProtocol() && samePorts(a, b) },
		func(a, b *pb.Listener) bool { return a.GetProtocol() == b.GetProtocol() && sharePorts(a, b) },
		sharePorts,
	} {
		pairs := map[*wanted][]*pb.Listener{}
		suitors := map[*pb.Listener]int{}
		for _, w := range all {
			for _, l := range have {
				if w.have == nil && !taken[l] && like(w.want, l) {
					pairs[w] = append(pairs[w], l)
					suitors[l]++
				}
			}
		}
		for w, found := range pairs {
			if len(found) == 1 && suitors[found[0]] == 1 {
				w.have, taken[found[0]] = found[0], true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(have), func(l *pb.Listener) bool { return taken[l] })
}

func samePorts(a, b *pb.Listener) bool {
	text := func(l *pb.Listener) (parts []string) {
		for _, r := range l.GetPortRanges() {
			parts = append(parts, portRangeText(r))
		}
		return parts
	}
	return sameSet(text(a), text(b))
}

func sharePorts(a, b *pb.Listener) bool {
	for _, x := range a.GetPortRanges() {
		for _, y := range b.GetPortRanges() {
			if x.GetFrom() <= y.GetTo() && y.GetFrom() <= x.GetTo() {
				return true
			}
		}
	}
	return false
}

// clash reports whether two listeners want one port for one protocol.
func clash(a, b *pb.Listener) bool { // TCP is 1, UDP 2, both 3
	return a.GetProtocol()&b.GetProtocol() != 0 && sharePorts(a, b)
}

// collisions notes ports that the file wants and that a listener has which is not in the file and stays.
func (p *planner) collisions(accelerator string, all []*wanted, extra []*pb.Listener) {
	if p.prune {
		return
	}
	for _, w := range all {
		for _, l := range extra {
			if clash(w.want, l) {
				p.add(w.path+".ports", "overlap with those of listener %s (%s), which is not in the file; "+
					"put it in, or delete it with --prune", ListenerLabel(accelerator, l), l.GetId())
			}
		}
	}
}

// inOrder returns the listeners that are there in an order in which each can take its ports: after the
// one that has them now has let go of them.
func (p *planner) inOrder(all []*wanted) (order []*wanted) {
	waiting := slices.DeleteFunc(slices.Clone(all), func(w *wanted) bool { return w.have == nil })
	for len(waiting) > 0 {
		next := slices.IndexFunc(waiting, func(w *wanted) bool {
			return !slices.ContainsFunc(waiting, func(other *wanted) bool {
				return other != w && clash(w.want, other.have)
			})
		})
		if next < 0 {
			for _, w := range waiting {
				p.add(w.path+".ports", "belong to another listener, which wants ports of this one; "+
					"apply it in two steps, with other ports in between")
			}
			return order
		}
		order = append(order, waiting[next])
		waiting = slices.Delete(waiting, next, next+1)
	}
	return order
}
