package kernel

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/proto/model"
)

// countryLists are the lists of a snapshot as the guard takes them. Those that a snapshot brings again stay the
// same slices, which the guard then does not look at.
type countryLists map[model.CountryCode]countryList

type countryList struct {
	packed   []byte
	networks []netip.Prefix
}

// unpack returns the lists of a snapshot that listeners of this node name. A list that cannot be read, which the
// snapshot's own check forbids, is missing.
func (old countryLists) unpack(s *model.Snapshot, self model.NodeID) countryLists {
	lists := countryLists{}
	for _, code := range model.NamedCountries(served(s, self)) {
		l := s.CountryList(code)
		if l == nil {
			continue
		}
		if have, ok := old[code]; ok && bytes.Equal(have.packed, l.Networks) {
			lists[code] = have
			continue
		}
		networks, err := model.UnpackNetworks(l.Networks)
		if err != nil {
			continue
		}
		lists[code] = countryList{l.Networks, networks}
	}
	return lists
}

// served are the listeners that this node serves.
func served(s *model.Snapshot, self model.NodeID) []model.Listener {
	return slices.DeleteFunc(slices.Clone(s.Listeners), func(l model.Listener) bool {
		on, _ := addressesOf(s, self, &l)
		return len(on) == 0
	})
}

// missing returns the countries that listeners of this node name, and of which there is no list.
func (lists countryLists) missing(s *model.Snapshot, self model.NodeID) []model.CountryCode {
	return slices.DeleteFunc(model.NamedCountries(served(s, self)), func(c model.CountryCode) bool {
		_, there := lists[c]
		return there
	})
}

// enter says which countries of a listener the guard is to deny and to allow, and enters their lists among the
// rules. One without a list is not denied, and none is needed to be let in while the list of one that is allowed
// is missing: the guard fails open.
func (lists countryLists) enter(l *model.Listener, g *guard.Listener, into map[string][]netip.Prefix) {
	take := func(codes []model.CountryCode) (all []string, whole bool) {
		for _, code := range codes {
			if list, there := lists[code]; there {
				into[string(code)] = list.networks
				all = append(all, string(code))
			}
		}
		return all, len(all) == len(codes)
	}
	g.DenyCountries, _ = take(l.Guard.DenyCountries)
	if allowed, whole := take(l.Guard.AllowCountries); whole {
		g.AllowCountries = allowed
	} else {
		g.Allow = "" // it lets in who is on it or from an allowed country, and who that is is not known
	}
}

// countryNote says which countries this node knows no networks of.
func countryNote(missing []model.CountryCode) string {
	codes := make([]string, len(missing))
	for i, c := range missing {
		codes[i] = string(c)
	}
	return fmt.Sprintf("there is no list of the networks of %s, which listeners' guards name: they are not denied, and "+
		"listeners that allow them let everybody in; give a controller --country-database", strings.Join(codes, ", "))
}
