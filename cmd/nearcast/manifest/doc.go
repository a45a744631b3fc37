// Package manifest answers: what does a configuration file ask for, and what must change so that it is so?
//
// A file (Parse) names accelerators with all that is below them, pools, sites with their BGP sessions,
// regions, targets, DNS zones, and how names are answered.
// Compare looks at it beside what is there (State) and returns a Plan: the steps that make the cluster
// what the file says, in an order in which the controller takes them. FromState is the way back: the
// file of what is there, which Compare finds nothing to change in.
//
// Rules:
//   - What a file does not name is left alone. With Prune, what is below an accelerator that the file
//     names, in a list that the file has (even an empty one), and not in that list, is deleted.
//     So it is with the BGP sessions of a site.
//   - A field that is left out has its default. Left out are not touched: tags, pools, addresses, project,
//     a site's bgp and peers, all of a zone.
//   - Secrets never come out: an export says that a password is set, which leaves it as it is. Whether one
//     that the file gives is the one that is there only a controller can tell (Step.Maybe).
//   - Accelerators, pools, sites, regions and targets are known by name, groups by region, endpoints by
//     id, peers by site and name, listeners by their ports and protocol, or if these change by id.
//
// Nothing here talks to a controller: planning is pure.
package manifest
