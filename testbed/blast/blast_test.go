package blast

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

var destinations = []netip.AddrPort{
	netip.MustParseAddrPort("192.0.2.7:53"), netip.MustParseAddrPort("[2001:db8::7]:53"),
}

// wire is a cable between two namespaces whose far end takes frames as a driver does.
func wire(t *testing.T) (from, to *netns.NS) {
	t.Helper()
	set := netns.ForTest(t, "a cable")
	var err error
	if from, err = set.New("from"); err == nil {
		to, err = set.New("to")
	}
	must(t, err)
	must(t, netns.Veth(netns.End{NS: from, Dev: "wire"}, netns.End{NS: to, Dev: "wire"}))
	for _, d := range destinations {
		must(t, to.AddAddr("wire", netip.PrefixFrom(d.Addr(), d.Addr().BitLen())))
	}
	// Answers, if any, have somewhere to go.
	for i, all := range []string{"0.0.0.0/0", "::/0"} {
		hop := []string{"192.0.2.9", "2001:db8::9"}[i]
		must(t, to.AddRoute(netns.Route{Dst: netip.PrefixFrom(netip.MustParseAddr(hop), netip.MustParseAddr(hop).BitLen()), Dev: "wire"}))
		must(t, to.AddRoute(netns.Route{Dst: netip.MustParsePrefix(all), Dev: "wire", Via: netip.MustParseAddr(hop)}))
		must(t, to.AddNeighbour("wire", netip.MustParseAddr(hop), mac(t, from)))
	}
	return from, to
}

func mac(t *testing.T, ns *netns.NS) net.HardwareAddr {
	t.Helper()
	m, err := ns.MAC("wire")
	must(t, err)
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 30 s for %s", what)
		}
	}
}

// What is sent arrives at a socket, which takes nothing with a wrong checksum, and comes from the networks that
// are said. SYNs are answered.
func TestFramesAreTaken(t *testing.T) {
	from, to := wire(t)
	if out, err := to.Cmd(context.Background(), "ethtool", "-K", "wire", "gro", "on").CombinedOutput(); err != nil {
		t.Fatalf("ethtool: %v: %s", err, out)
	}
	for _, d := range destinations {
		for _, tcp := range []bool{false, true} {
			stream := Stream{TCP: tcp, From: mac(t, from), To: mac(t, to), Destination: d, Networks: 1000}
			name := map[bool]string{false: "UDP to ", true: "TCP to "}[tcp] + d.Addr().String()
			t.Run(name, func(t *testing.T) { taken(t, from, to, stream) })
		}
	}
}

func taken(t *testing.T, from, to *netns.NS, stream Stream) {
	s, err := New(from, "wire", stream)
	must(t, err)
	defer s.Close()
	must(t, s.Sink(from, "wire"))
	happened := func() uint64 {
		c, err := s.Counts()
		must(t, err)
		if stream.TCP {
			return c.SYNACKs
		}
		return c.Arrived
	}
	if stream.TCP {
		l, err := to.Listen(context.Background(), "tcp", stream.Destination)
		must(t, err)
		defer l.Close()
	} else {
		c, err := to.ListenPacket(context.Background(), "udp", stream.Destination)
		must(t, err)
		defer c.Close()
		must(t, s.Count(c))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, from, 0) }()
	eventually(t, "frames that the kernel made", func() bool { return happened() > 100 })
	cancel()
	must(t, <-done)
	before := happened()
	ctx, cancel = context.WithCancel(context.Background())
	go func() {
		_, err := Flood{Stream: stream, PerSecond: 10_000}.Run(ctx, from, "wire")
		done <- err
	}()
	eventually(t, "frames that we made", func() bool { return happened() > before+100 })
	cancel()
	must(t, <-done)
}

// Sources are in the networks that are said, each in one, and all of them occur.
func TestSources(t *testing.T) {
	for _, d := range destinations {
		x := flooder{v6: d.Addr().Is6(), nets: 50}
		s := Stream{From: make([]byte, 6), To: make([]byte, 6), Destination: d, Networks: 50}
		x.hosts = s.hosts()
		b, _, _ := s.frame()
		x.rnd = rand.New(rand.NewPCG(1, 2))
		seen := map[netip.Prefix]int{}
		for range 5000 {
			x.vary(b)
			source, _ := netip.AddrFromSlice(b[26:30])
			if x.v6 {
				source, _ = netip.AddrFromSlice(b[22:38])
			}
			found := 0
			for _, p := range Networks(50, x.v6) {
				if p.Contains(source) {
					seen[p]++
					found++
				}
			}
			if found != 1 {
				t.Fatalf("%v is in %d networks", source, found)
			}
		}
		if len(seen) != 50 {
			t.Errorf("sources are from %d of 50 networks", len(seen))
		}
	}
}

// The kernel's frames come from the same networks as ours.
func TestKernelsSources(t *testing.T) {
	from, to := wire(t)
	for _, d := range destinations {
		s, err := New(from, "wire", Stream{From: mac(t, from), To: mac(t, to), Destination: d, Networks: 20})
		must(t, err)
		defer s.Close()
		for range 200 {
			out := make([]byte, len(s.frame))
			_, err := s.objs.Send.Run(&ebpf.RunOptions{Data: s.frame, DataOut: out, Repeat: 1})
			must(t, err)
			source, _ := netip.AddrFromSlice(out[26:30])
			if d.Addr().Is6() {
				source, _ = netip.AddrFromSlice(out[22:38])
			}
			found := 0
			for _, p := range Networks(20, d.Addr().Is6()) {
				if p.Contains(source) {
					found++
				}
			}
			if found != 1 {
				t.Fatalf("%v is in %d networks", source, found)
			}
			if d.Addr().Is4() && checksum(uint64(sum(out[14:34]))) != 0xffff {
				t.Fatalf("the IP header's checksum is wrong: %x", out)
			}
		}
	}
}

// A cable's thread is found, and its time goes up with what it receives.
func TestPlace(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // of this test alone
	set := netns.ForTest(t, "a cable")
	from, err := set.New("from")
	must(t, err)
	to, err := set.New("to")
	must(t, err)
	dev := DeviceName()
	must(t, netns.Veth(netns.End{NS: from, Dev: "wire"}, netns.End{NS: to, Dev: dev}))
	p, err := Place(to, dev, 0)
	must(t, err)
	toMAC, err := to.MAC(dev)
	must(t, err)
	s, err := New(from, "wire", Stream{From: mac(t, from), To: toMAC, Destination: destinations[0], Networks: 1})
	must(t, err)
	defer s.Close()
	begin, err := p.CPU()
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, from, 0) }()
	eventually(t, "its CPU time", func() bool {
		now, err := p.CPU()
		must(t, err)
		return now > begin
	})
	cancel()
	must(t, <-done)
	entries, err := os.ReadDir(os.TempDir())
	must(t, err)
	for _, e := range entries {
		var fs unix.Statfs_t
		if unix.Statfs(os.TempDir()+"/"+e.Name(), &fs) == nil && fs.Type == unix.SYSFS_MAGIC {
			t.Errorf("%s is still mounted", e.Name())
		}
	}
}

func TestStreamIsChecked(t *testing.T) {
	good := Stream{From: make([]byte, 6), To: make([]byte, 6), Destination: destinations[0], Networks: 1}
	must(t, good.validate())
	for _, spoil := range []func(*Stream){
		func(s *Stream) { s.Networks = 0 },
		func(s *Stream) { s.Networks = NetworksMax + 1 },
		func(s *Stream) { s.To = nil },
		func(s *Stream) { s.Destination = netip.AddrPort{} },
	} {
		s := good
		spoil(&s)
		if s.validate() == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}
