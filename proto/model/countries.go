package model

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// CountryCode is a country by ISO 3166-1 alpha-2, in upper case.
type CountryCode string

// countryCodes are those that are assigned (ISO 3166 Maintenance Agency), and XK, which databases use for Kosovo.
const countryCodes = " AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS " +
	"BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI " +
	"FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR " +
	"IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM " +
	"MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT " +
	"PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM " +
	"TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW "

// Known reports whether there is such a country.
func (c CountryCode) Known() bool {
	return len(c) == 2 && c[0] != ' ' && c[1] != ' ' && strings.Contains(countryCodes, " "+string(c)+" ")
}

// CountryList is the networks of one country.
type CountryList struct {
	Country  CountryCode
	Networks []byte // as PackNetworks makes them
}

func countryListFrom(_ check, p *pb.CountryList) CountryList {
	return CountryList{CountryCode(p.GetCountry()), slices.Clone(p.GetNetworks())}
}

func countryListTo(l CountryList) *pb.CountryList {
	return &pb.CountryList{Country: string(l.Country), Networks: slices.Clone(l.Networks)}
}

func countryListKey(l *CountryList) CountryCode { return l.Country }

// CountryList returns the networks of a country, or nil.
func (s *Snapshot) CountryList(c CountryCode) *CountryList {
	return find(s.CountryLists, c, countryListKey)
}

// NamedCountries returns the countries that guards name, sorted.
func NamedCountries(listeners []Listener) []CountryCode {
	var all []CountryCode
	for i := range listeners {
		g := &listeners[i].Guard
		all = append(append(all, g.AllowCountries...), g.DenyCountries...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// countries checks the lists of a snapshot. A country without a list is no error: nodes do without.
func (s *Snapshot) countries(c check) {
	byKey(c, "country_lists", s.CountryLists, countryListKey)
	total := 0
	for i := range s.CountryLists {
		l := &s.CountryLists[i]
		lc := c.atKey("country_lists", string(l.Country))
		if !l.Country.Known() {
			lc.wrong("country", "is not a code of ISO 3166-1 like DE")
		}
		n, err := CountNetworks(l.Networks)
		if err != nil {
			lc.wrong("networks", "%v", err)
		}
		total += n
	}
	if total > CountryNetworksMax {
		c.wrong("country_lists", "have %d networks; at most %d are possible", total, CountryNetworksMax)
	}
}

// CountrySource says where a country's list came from.
type CountrySource struct {
	Controller string    // whose database it was
	Built      time.Time // when the database was made
	Hash       []byte    // SHA-256 of its files
	Type       string    // what it calls itself
}

// CountrySourceFromProto converts what a controller stored.
func CountrySourceFromProto(p *pb.CountrySource) CountrySource {
	return CountrySource{p.GetController(), p.GetBuilt().AsTime(), slices.Clone(p.GetHash()), p.GetType()}
}

// CountrySourceToProto converts a source.
func CountrySourceToProto(s CountrySource) *pb.CountrySource {
	return &pb.CountrySource{Controller: s.Controller, Built: timestamppb.New(s.Built), Hash: slices.Clone(s.Hash),
		Type: s.Type}
}

// CountryDatabase says what the newest country database of a cluster has.
type CountryDatabase struct {
	CountrySource
	Loaded   time.Time
	Networks map[CountryCode]int // how many each country has
}

// CountryDatabaseFromProto converts what a controller stored.
func CountryDatabaseFromProto(p *pb.CountryDatabase) *CountryDatabase {
	d := &CountryDatabase{CountrySource: CountrySourceFromProto(p.GetSource()), Loaded: p.GetLoaded().AsTime(),
		Networks: make(map[CountryCode]int, len(p.GetNetworks()))}
	for code, n := range p.GetNetworks() {
		d.Networks[CountryCode(code)] = int(n)
	}
	return d
}

// CountryDatabaseToProto converts a database's description.
func CountryDatabaseToProto(d *CountryDatabase) *pb.CountryDatabase {
	p := &pb.CountryDatabase{Source: CountrySourceToProto(d.CountrySource), Loaded: timestamppb.New(d.Loaded),
		Networks: make(map[string]uint32, len(d.Networks))}
	for code, n := range d.Networks {
		p.Networks[string(code)] = uint32(n)
	}
	return p
}

// countryCodesFrom puts codes into the form that all of them have: upper case, sorted, once each. Whether they
// are known is checked later, so that the error can name the field's element as it was written.
func countryCodesFrom(c check, field string, in []string) []CountryCode {
	if !c.count(field, len(in), CountriesMax) || len(in) == 0 {
		return nil
	}
	out := make([]CountryCode, len(in))
	for i, s := range in {
		out[i] = CountryCode(strings.ToUpper(strings.TrimSpace(s)))
		if !out[i].Known() {
			c.wrong(index(field, i), "%s is not a country; write its code of ISO 3166-1, like DE or US", show(s))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (g *Guard) checkCountries(c check) {
	for field, codes := range map[string][]CountryCode{"allow_countries": g.AllowCountries,
		"deny_countries": g.DenyCountries} {
		if !c.count(field, len(codes), CountriesMax) {
			continue
		}
		for i, code := range codes {
			if !code.Known() {
				c.wrong(index(field, i), "%s is not a country; write its code of ISO 3166-1, like DE or US",
					show(string(code)))
			}
		}
	}
	for i, code := range g.DenyCountries {
		if slices.Contains(g.AllowCountries, code) {
			c.wrong(index("deny_countries", i), "%s is in allow_countries, too; leave it in one of them", code)
		}
	}
}
