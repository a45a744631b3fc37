// Package announce answers: which prefixes does this node announce by BGP, to whom, and why or why not?
//
//	snapshot, doors, gossip, what was before ─▶ Decide (pure) ─▶ Plan ─▶ speaker (gobgp) ─▶ routers
//	                                                              └────▶ report, gossip, metrics
//
// An address is announced only when it can be served, becomes less wanted before it is withdrawn (RFC
// 8326), and is withdrawn before anything closes. That tunnels are down or no controller answers is no
// reason to withdraw: neither is known here. The last sites that announce a prefix go on doing so even if
// they want not to (the floor), since a fleet whose every site believes to be sick is more likely wrong
// than sick. Nothing but what the configuration names can leave: every session's export filter is the list
// of planned prefixes, and nothing that routers send is taken.
package announce
