package wan

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// plan is the current state of everything that can change at run time, in the caller's words. Fabric.mu
// guards it; compile turns it into the immutable table that the engine follows.
type plan struct {
	hosts   []planHost
	byName  map[string]int  // host name to index
	places  map[string]bool // names of places
	links   map[pair]Link
	access  map[string]Access
	shapers map[string]Params
	faults  map[pair]Protocols
	routes  map[routeKey][]string
	base    []Route // each host's own prefixes
	local   Params

	book *stageBook
}

// stageBook numbers stages for good: the engine keeps a stage's bottleneck clock by its number. It is shared
// by all clones of a plan: a number given to a stage that then never comes to be does no harm.
type stageBook struct {
	id     map[stageKey]int
	keys   []stageKey
	counts []*counters
}

type planHost struct{ name, place string }

type pair struct{ from, to string }

type routeKey struct {
	prefix netip.Prefix
	from   string
}

type stageKind uint8

const (
	kindLink stageKind = iota
	kindUp
	kindDown
	kindShaper
	kindLocal
)

type stageKey struct {
	kind stageKind
	pair // a link's ends; others use from alone
}

func newPlan(s *Spec) (*plan, error) {
	p := &plan{
		byName: map[string]int{}, places: map[string]bool{}, links: map[pair]Link{}, access: map[string]Access{},
		shapers: map[string]Params{}, faults: map[pair]Protocols{}, routes: map[routeKey][]string{},
		local: s.Local, book: &stageBook{id: map[stageKey]int{}},
	}
	if err := p.addHosts(s.Hosts); err != nil {
		return nil, err
	}
	if err := s.Local.Validate(); err != nil {
		return nil, fmt.Errorf("local: %w", err)
	}
	for _, sh := range s.Shapers {
		if _, double := p.shapers[sh.Name]; double || sh.Name == "" {
			return nil, fmt.Errorf("shaper %q: name is empty or taken", sh.Name)
		}
		if err := p.setShaper(sh.Name, sh.Params); err != nil {
			return nil, err
		}
	}
	for _, l := range s.Links {
		if _, double := p.links[pair{l.From, l.To}]; double {
			return nil, fmt.Errorf("link %s to %s: there is one already", l.From, l.To)
		}
		if err := p.setLink(l); err != nil {
			return nil, err
		}
	}
	for _, a := range s.Access {
		if _, double := p.access[a.At]; double {
			return nil, fmt.Errorf("access at %s: there is one already", a.At)
		}
		if err := p.setAccess(a); err != nil {
			return nil, err
		}
	}
	for _, r := range s.Routes {
		if err := p.setRoute(r); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *plan) addHosts(hosts []Host) error {
	if len(hosts) == 0 || len(hosts) > hostsMax {
		return fmt.Errorf("%d hosts: must be 1 to %d", len(hosts), hostsMax)
	}
	owner := map[netip.Prefix]string{}
	for i, h := range hosts {
		if h.Name == "" || h.Name == everyHost || h.Name == coreName {
			return fmt.Errorf("host name %q is reserved", h.Name)
		}
		if _, double := p.byName[h.Name]; double {
			return fmt.Errorf("host %s: there is one already", h.Name)
		}
		p.byName[h.Name] = i
		place := h.Place
		if place == "" {
			place = h.Name
		}
		p.places[place] = true
		p.hosts = append(p.hosts, planHost{h.Name, place})
		for _, prefix := range h.allPrefixes() {
			if !prefix.IsValid() || prefix.Addr().Is4In6() || prefix.Addr().Zone() != "" {
				return fmt.Errorf("host %s: address or prefix %v is not valid", h.Name, prefix)
			}
			if other := owner[prefix]; other != "" && other != h.Name {
				return fmt.Errorf("host %s: %v belongs to %s as well; use Routes for anycast", h.Name, prefix, other)
			}
			owner[prefix] = h.Name
			p.base = append(p.base, Route{Prefix: prefix, From: everyHost, To: []string{h.Name}})
		}
	}
	for _, h := range p.hosts {
		if p.places[h.name] && h.place != h.name {
			return fmt.Errorf("host %s has the name of a place", h.name)
		}
	}
	return nil
}

// allPrefixes returns what is routed to the host, masked.
func (h *Host) allPrefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, a := range h.Addrs {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, p := range slices.Concat(h.Prefixes, h.Routed) {
		all = append(all, p.Masked())
	}
	return all
}

var errUnknownName = errors.New("no such host or place")

// known checks a name that may be a host, a place or "*".
func (p *plan) known(name string) error {
	if _, host := p.byName[name]; host || p.places[name] || name == everyHost {
		return nil
	}
	return fmt.Errorf("%q: %w", name, errUnknownName)
}

func (p *plan) knownPair(from, to string) error {
	return errors.Join(p.known(from), p.known(to))
}

func (p *plan) setLink(l Link) error {
	err := errors.Join(p.knownPair(l.From, l.To), l.Params.Validate())
	for _, v := range l.Via {
		if _, ok := p.shapers[v]; !ok {
			err = errors.Join(err, fmt.Errorf("no shaper %q", v))
		}
	}
	if err != nil {
		return fmt.Errorf("link %s to %s: %w", l.From, l.To, err)
	}
	p.links[pair{l.From, l.To}] = l
	return nil
}

func (p *plan) setShaper(name string, params Params) error {
	if err := params.Validate(); err != nil {
		return fmt.Errorf("shaper %s: %w", name, err)
	}
	p.shapers[name] = params
	return nil
}

func (p *plan) setAccess(a Access) error {
	err := errors.Join(p.known(a.At), a.Up.Validate(), a.Down.Validate())
	if a.At == everyHost {
		err = errors.New("every host can't share one access")
	}
	if err != nil {
		return fmt.Errorf("access at %s: %w", a.At, err)
	}
	p.access[a.At] = a
	return nil
}

func (p *plan) setRoute(r Route) error {
	err := p.known(r.From)
	for _, to := range r.To {
		if _, ok := p.byName[to]; !ok {
			err = errors.Join(err, fmt.Errorf("%q: %w", to, errUnknownName))
		}
	}
	if !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() {
		err = errors.Join(err, errors.New("prefix is not valid"))
	}
	if err != nil {
		return fmt.Errorf("route %v from %s: %w", r.Prefix, r.From, err)
	}
	p.routes[routeKey{r.Prefix.Masked(), r.From}] = slices.Clone(r.To)
	return nil
}

// clone returns a copy that can be changed and thrown away.
func (p *plan) clone() *plan {
	c := *p
	c.links, c.access, c.shapers = maps.Clone(p.links), maps.Clone(p.access), maps.Clone(p.shapers)
	c.faults, c.routes = maps.Clone(p.faults), maps.Clone(p.routes)
	return &c
}

// covers says how specifically name stands for a host: 2 by its name, 1 by its place, 0 as "*", -1 not at
// all.
func (h planHost) covers(name string) int {
	switch name {
	case h.name:
		return 2
	case h.place:
		return 1
	case everyHost:
		return 0
	}
	return -1
}

// linkOf finds the most specific link from one host to another.
func (p *plan) linkOf(from, to planHost) (Link, bool) {
	for _, f := range [...]string{from.name, from.place, everyHost} {
		for _, t := range [...]string{to.name, to.place, everyHost} {
			if l, ok := p.links[pair{f, t}]; ok {
				return l, true
			}
		}
	}
	return Link{}, false
}

// linkNamed returns the link with exactly these ends, or what the first pair of hosts they cover has now,
// which is what a new and more specific link starts from.
func (p *plan) linkNamed(from, to string) (Link, error) {
	if l, ok := p.links[pair{from, to}]; ok {
		return l, nil
	}
	for _, a := range p.hosts {
		for _, b := range p.hosts {
			if a.covers(from) < 0 || b.covers(to) < 0 {
				continue
			}
			if l, ok := p.linkOf(a, b); ok {
				l.From, l.To = from, to
				return l, nil
			}
		}
	}
	return Link{From: from, To: to}, p.knownPair(from, to)
}
