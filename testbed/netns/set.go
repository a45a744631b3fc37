package netns

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// Set is a family of namespaces with a common name prefix and one owner: the process that created it.
// All methods may be called concurrently.
type Set struct {
	prefix string
	claim  *os.File // locked for as long as the Set lives

	mu     sync.Mutex
	closed bool
	spaces map[string]*NS // by short name
}

// Create claims prefix and returns an empty Set. Leftovers that a dead owner of the same prefix left are
// removed first. ErrInUse is returned (wrapped) when a living process owns the prefix.
// The prefix is 1–24 characters of a–z, 0–9 and '-', and by habit ends with '-'.
func Create(prefix string) (*Set, error) {
	if err := checkName(prefix, prefixLenMax); err != nil {
		return nil, fmt.Errorf("namespace prefix %q: %w", prefix, err)
	}
	if err := prepareRunDir(); err != nil {
		return nil, err
	}
	claim, err := takeClaim(prefix)
	if err != nil {
		return nil, err
	}
	// What carries the prefix now has no living owner: we hold the claim.
	if _, err := removeAll(prefix); err != nil {
		return nil, errors.Join(fmt.Errorf("remove leftovers of %q: %w", prefix, err), dropClaim(claim))
	}
	return &Set{prefix: prefix, claim: claim, spaces: map[string]*NS{}}, nil
}

// Prefix returns the prefix of all names in the Set.
func (s *Set) Prefix() string { return s.prefix }

// New makes a namespace called prefix+name, with lo up and IPv6 duplicate address detection, router
// solicitation and reverse path filtering off: in a testbed they only cost time.
func (s *Set) New(name string) (*NS, error) {
	if err := checkName(name, nameLenMax); err != nil {
		return nil, fmt.Errorf("namespace name %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("new namespace %q: set %q is closed", name, s.prefix)
	}
	if s.spaces[name] != nil {
		return nil, fmt.Errorf("new namespace %q: already in set %q", name, s.prefix)
	}
	ns, err := create(name, s.prefix+name)
	if err != nil {
		return nil, fmt.Errorf("new namespace %q: %w", s.prefix+name, err)
	}
	s.spaces[name] = ns
	return ns, nil
}

// Get returns the namespace called prefix+name, or nil.
func (s *Set) Get(name string) *NS {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spaces[name]
}

// All returns the namespaces of the Set in order of their names.
func (s *Set) All() []*NS {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*NS, 0, len(s.spaces))
	for _, ns := range s.spaces {
		all = append(all, ns)
	}
	slices.SortFunc(all, func(a, b *NS) int { return strings.Compare(a.name, b.name) })
	return all
}

// Delete kills what still runs in the namespace called prefix+name and removes it.
func (s *Set) Delete(name string) error {
	s.mu.Lock()
	ns := s.spaces[name]
	delete(s.spaces, name)
	s.mu.Unlock()
	if ns == nil {
		return fmt.Errorf("delete namespace %q: not in set %q", name, s.prefix)
	}
	return ns.remove()
}

// Close kills what still runs in the Set's namespaces, removes them all and gives the prefix free. It does as
// much as it can and returns all errors joined. A second Close does nothing.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	for name, ns := range s.spaces {
		delete(s.spaces, name)
		errs = append(errs, ns.remove())
	}
	errs = append(errs, dropClaim(s.claim))
	return errors.Join(errs...)
}

// Leaks lists, for people, what is left of the Set: namespace names with its prefix, and processes that run in its
// namespaces. After Close the list should be empty. Of a namespace that was removed it knows no processes: its inode
// may be another one's by now. Whoever removes it is told by an error when a process stayed.
func (s *Set) Leaks() []string {
	leaks := Names(s.prefix)
	for _, ns := range s.All() {
		for _, p := range ns.Processes() {
			leaks = append(leaks, fmt.Sprintf("process %d (%s)", p.PID, p.Command))
		}
	}
	return leaks
}

// checkName refuses what would be awkward as a file name, in a shell or in `ip netns`.
func checkName(name string, lenMax int) error {
	if name == "" || len(name) > lenMax {
		return fmt.Errorf("must have 1 to %d characters", lenMax)
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("character %q is not one of a-z, 0-9 and '-'", r)
		}
	}
	return nil
}
