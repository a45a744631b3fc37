package catalog

import (
	"fmt"

	"github.com/nearcast/nearcast/proto/model"
)

// checkBalance refuses what no site can work with: one balance address for two of its nodes, of which each would
// take the other's packets, and more nodes than the kernel's tables have numbers. Other IP versions and ports than
// the rest of the site has are allowed, as a site moves to others node by node; the nodes note them.
func (ch *change) checkBalance(n *model.Node) error {
	if !balances(n, n.Site) {
		return nil
	}
	others := 0
	for _, other := range inOrder(ch.nodes.all(), nodeKind.key) {
		if other.ID == n.ID || !balances(other, n.Site) {
			continue
		}
		others++
		if other.BalanceAddress == n.BalanceAddress {
			return field(ReasonInUse, "node.balance_address", "node %s of site %s has %v: give each node its own "+
				"(--balance-address); if that machine is gone for good, delete or revoke it first", other.Name, n.Site,
				n.BalanceAddress)
		}
	}
	if others >= model.BalanceNodesMax {
		return &Error{Code: LimitExceeded, Reason: ReasonLimit, Message: fmt.Sprintf("node.balance_address: %d nodes of site "+
			"%s balance its flows already, and no more can: start this one without --balance-interfaces, or make it part of "+
			"another site", others, n.Site)}
	}
	return nil
}

// balances reports whether a node takes part in sharing a site's flows.
func balances(n *model.Node, site model.SiteName) bool {
	return n.Site == site && n.Edge && n.State != model.NodeRevoked && n.BalanceAddress.IsValid()
}
