// Package netns answers: how does a test or a lab get network namespaces, wire them, run code and processes
// in them, and leave nothing behind?
//
// A Set owns a family of namespaces that share a name prefix. They are ordinary named namespaces, so
// `ip netns exec PREFIXNAME …` works on them. A Set is claimed by a lock file that the kernel releases when
// the owner dies: Sweep finds the leftovers of crashed owners by it and never touches a living one.
//
//	set := netns.ForTest(t, "two hosts on a wire")     // skips (or fails) without root; cleans up
//	a, _ := set.New("a")
//	b, _ := set.New("b")
//	netns.Veth(netns.End{NS: a, Dev: "eth0"}, netns.End{NS: b, Dev: "eth0"})
//	a.AddAddr("eth0", netip.MustParsePrefix("10.0.0.1/24"))
//	l, _ := a.Listen(ctx, "tcp", netip.MustParseAddrPort("10.0.0.1:80"))
//	cmd := b.Cmd(ctx, "curl", "http://10.0.0.1/")
//
// Sockets stay in the namespace in which they were created, whatever goroutine uses them later: so code needs
// Do only around the creation of sockets, and a namespace's own thread only lives as long as that takes.
package netns
