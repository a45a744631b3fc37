// Package wan answers: how do real sockets on one machine get a wide area network between them, with delay,
// jitter, loss, bottlenecks, anycast and faults that can change while they talk?
//
// A Fabric is a set of hosts, each a network namespace with one interface (eth0), joined in a core namespace:
//
//	host a                      core namespace                        host b
//	eth0 ──veth── h0 ──rule──▶ t0 (TUN) ──▶ engine ──▶ t1 (TUN) ──rule──▶ h1 ──veth── eth0
//
// The engine is one thread that reads what comes out of the TUNs, decides for every wire segment where it
// goes, whether it is lost and when it is due, and writes it into the TUN of its destination when that time
// has come:
//
//	read → route (by ingress host and destination) → blocked? → stages (access up, shapers, link, access
//	down: rate, queue, loss, delay, jitter) → lane (FIFO of one host pair) → write
//
// TCP and UDP superpackets (TSO, USO) stay whole as far as their segments share a fate and a due time, which
// is what makes a gigabit affordable. DESIGN.md says why it is built so; the accuracy test prints what it
// achieves.
//
//	set, _ := netns.Create("demo-")
//	f, _ := wan.Build(set, wan.Spec{
//		Hosts: []wan.Host{
//			{Name: "client", Place: "tokyo", Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.1")}},
//			{Name: "server", Place: "frankfurt", Addrs: []netip.Addr{netip.MustParseAddr("10.2.0.1")}},
//		},
//		Links:  wan.Both("tokyo", "frankfurt", wan.Params{Delay: 110 * time.Millisecond}),
//		Access: []wan.Access{{At: "tokyo", Up: wan.Params{Rate: 20e6}, Down: wan.Params{Rate: 100e6}}},
//	})
//	go f.Run(ctx)
//	f.NS("client").Cmd(ctx, "ping", "10.2.0.1").Run()
//	f.Cut("tokyo", "frankfurt")
package wan
