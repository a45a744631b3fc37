package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/proto/model"
)

// checkCountries checks what a guard newly names of countries against what the cluster's country database has.
// What listeners name already is not asked for again: a database that went away must not make listeners
// unchangeable.
func (c *Catalog) checkCountries(ch *change, before *model.Listener, l *model.Listener) error {
	var old []model.CountryCode
	if before != nil {
		old = model.NamedCountries([]model.Listener{*before})
	}
	g := &l.Guard
	path, fresh := "listener.guard.allow_countries", fresher(g.AllowCountries, old)
	if len(fresh) == 0 {
		path, fresh = "listener.guard.deny_countries", fresher(g.DenyCountries, old)
	}
	if len(fresh) == 0 || c.cfg.Countries == nil {
		return nil
	}
	d, known := c.cfg.Countries()
	if !known {
		return &Error{Code: Unavailable, Message: "what the country database has is not known yet; try again"}
	}
	if d == nil {
		e := precondition(ReasonNoCountries, "no controller has a country database, which says what networks %s has; "+
			"start one with --country-database FILE", join(fresh))
		e.Fields = model.FieldErrors{{Field: path, Message: e.Message}}
		return e
	}
	if len(g.AllowCountries) > 0 && !slices.ContainsFunc(g.AllowCountries,
		func(code model.CountryCode) bool { return d.Networks[code] > 0 }) {
		return field(ReasonNoCountries, "listener.guard.allow_countries",
			"the country database (%s) has no networks of %s, so nobody would be let in", d.Type, join(g.AllowCountries))
	}
	return ch.checkCountryRoom(d, path)
}

// checkCountryRoom checks that the networks of all countries that listeners name fit into a snapshot.
func (o *objects) checkCountryRoom(d *model.CountryDatabase, path string) error {
	var all []model.Listener
	for l := range o.listeners.all() {
		all = append(all, *l)
	}
	total := 0
	for _, code := range model.NamedCountries(all) {
		total += d.Networks[code]
	}
	if total <= model.CountryNetworksMax {
		return nil
	}
	message := fmt.Sprintf("the countries that listeners name would have %d networks together; at most %d are "+
		"possible: name fewer", total, model.CountryNetworksMax)
	return &Error{Code: LimitExceeded, Reason: ReasonLimit, Message: message,
		Fields: model.FieldErrors{{Field: path, Message: message}}}
}

func fresher(codes, old []model.CountryCode) []model.CountryCode {
	return slices.DeleteFunc(slices.Clone(codes), func(c model.CountryCode) bool { return slices.Contains(old, c) })
}

func join(codes []model.CountryCode) string {
	words := make([]string, len(codes))
	for i, c := range codes {
		words[i] = string(c)
	}
	return strings.Join(words, ", ")
}
