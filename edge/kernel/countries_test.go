package kernel

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func packed(networks ...string) []byte {
	var all []netip.Prefix
	for _, n := range networks {
		all = append(all, netip.MustParsePrefix(n))
	}
	return model.PackNetworks(all)
}

func TestCountryRules(t *testing.T) {
	s := guarded()
	s.Listeners[0].Guard.AllowCountries = []model.CountryCode{"AT", "DE"}
	s.Listeners[2].Guard.DenyCountries = []model.CountryCode{"KP"}
	s.Listeners[3].Guard.DenyCountries = []model.CountryCode{"FR"} // of an accelerator that is off
	s.CountryLists = []model.CountryList{{Country: "AT", Networks: packed("198.18.0.0/16")},
		{Country: "FR", Networks: packed("198.20.0.0/16")}, {Country: "KP", Networks: packed("198.19.0.0/16", "2001:db8::/32")}}
	lists := countryLists{}.unpack(s, "self")
	if missing := lists.missing(s, "self"); !slices.Equal(missing, []model.CountryCode{"DE"}) {
		t.Errorf("missing are %v", missing)
	}
	r := lists.rules(s, "self")
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(r.Countries) != 2 || len(r.Countries["KP"]) != 2 {
		t.Errorf("countries %v", r.Countries)
	}
	for _, l := range r.Listeners {
		switch {
		case strings.HasPrefix(l.Name, "l1/") && (l.AllowCountries != nil || l.Deny == ""):
			t.Errorf("while a list is missing: %+v", l)
		case l.Name == "l3/tcp" && (!slices.Equal(l.DenyCountries, []string{"KP"}) || l.Allow == ""):
			t.Errorf("a denied country beside allowed networks: %+v", l)
		}
	}
	if note := countryNote([]model.CountryCode{"DE", "KP"}); !strings.Contains(note, "DE, KP") ||
		!strings.Contains(note, "--country-database") {
		t.Error(note)
	}

	s.CountryLists = append(s.CountryLists, model.CountryList{Country: "DE", Networks: packed("198.21.0.0/16")})
	s.CountryLists[2].Networks = slices.Clone(s.CountryLists[2].Networks)
	again := lists.unpack(s, "self")
	if &again["KP"].networks[0] != &lists["KP"].networks[0] {
		t.Error("a list that came again was unpacked again")
	}
	for _, l := range again.rules(s, "self").Listeners {
		if strings.HasPrefix(l.Name, "l1/") && !slices.Equal(l.AllowCountries, []string{"AT", "DE"}) {
			t.Errorf("with all lists: %+v", l)
		}
	}
}
