// Package snapshot answers: what are the nodes told?
package snapshot

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/proto/model"
)

// Build compiles a State and the health verdicts into what every node is told, numbered revision: the
// greater of the store revisions that the two came from. It is pure: the same input makes the same
// snapshot, byte for byte, at every controller. The snapshot has passed Consistent; an error means that
// the State breaks a rule that the catalog should have kept, and that nothing must be sent.
//
// Left out is what no node acts on: tags, times, who is revoked, lists of countries that no guard names. An
// endpoint without a verdict is HealthInitial.
func Build(s *catalog.State, verdicts map[health.Key]health.Verdict, lists map[model.CountryCode][]byte,
	revision uint64) (*model.Snapshot, error) {
	snap := &model.Snapshot{
		Revision:              revision,
		Cluster:               s.Cluster,
		Accelerators:          slices.Clone(s.Accelerators),
		Listeners:             slices.Clone(s.Listeners),
		Groups:                slices.Clone(s.Groups),
		Pools:                 slices.Clone(s.Pools),
		Regions:               slices.Clone(s.Regions),
		Sites:                 slices.Clone(s.Sites),
		Nodes:                 slices.Clone(s.Nodes),
		GossipKeys:            s.GossipKeys,
		EndpointAllowNetworks: s.Settings.EndpointAllowNetworks,
		BGPPeers:              slices.Clone(s.BGPPeers),
		AnnounceAggregates:    s.Settings.AnnounceAggregates,
		Subnets:               slices.Clone(s.Subnets),
		CustomRoutingGroups:   slices.Clone(s.CustomRoutingGroups),
		Zones:                 slices.Clone(s.Zones),
		Steering:              s.Steering,
		DNSSuffix:             strings.ToLower(strings.TrimSuffix(s.Settings.DNSSuffix, ".")),
		CookieSecrets:         s.Cookies,
		CountryLists:          named(s.Listeners, lists),
	}
	snap.Nodes = slices.DeleteFunc(snap.Nodes, func(n model.Node) bool { return n.State == model.NodeRevoked })
	for i := range snap.Accelerators {
		a := &snap.Accelerators[i]
		a.Tags, a.Created, a.Modified, a.Status = nil, time.Time{}, time.Time{}, model.InProgress
	}
	if s.Settings.AnnounceFloor != model.DefaultAnnounceFloor { // the default is left out, as ever before
		snap.AnnounceFloor = s.Settings.AnnounceFloor
	}
	for i := range snap.Listeners {
		snap.Listeners[i].Tags = nil
	}
	for i := range snap.Groups {
		g := &snap.Groups[i]
		g.Tags = nil
		g.Endpoints = judged(g.ID, g.Endpoints, verdicts)
	}
	for i := range snap.Subnets {
		snap.Subnets[i].Tags = nil
	}
	for i := range snap.CustomRoutingGroups {
		snap.CustomRoutingGroups[i].Tags = nil
	}
	snap.Sort()
	if err := snap.Consistent(); err != nil {
		return nil, fmt.Errorf("snapshot %d is not consistent: %w", revision, err)
	}
	return snap, nil
}

// named returns the lists of the countries that guards name. Those that are too many are left out, like those that
// are not there: a node notes that and does without, which is better than no configuration.
func named(listeners []model.Listener, lists map[model.CountryCode][]byte) (all []model.CountryList) {
	total := 0
	for _, code := range model.NamedCountries(listeners) {
		networks, there := lists[code]
		n, err := model.CountNetworks(networks)
		if !there || err != nil || total+n > model.CountryNetworksMax {
			continue
		}
		total += n
		all = append(all, model.CountryList{Country: code, Networks: networks})
	}
	return all
}

// judged returns a copy of a group's endpoints with their verdicts.
func judged(group model.GroupID, endpoints []model.Endpoint,
	verdicts map[health.Key]health.Verdict) []model.Endpoint {
	endpoints = slices.Clone(endpoints)
	for i := range endpoints {
		e := &endpoints[i]
		v := verdicts[health.Key{Group: group, Endpoint: e.ID}]
		e.Health, e.HealthReason = v.State, reason(v.Reason)
	}
	return endpoints
}

// reason makes a prober's words fit for a snapshot: one endpoint with a strange answer must not make the
// whole configuration invalid.
func reason(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > model.ReasonMax {
		s = strings.ToValidUTF8(s[:model.ReasonMax], "")
	}
	return s
}
