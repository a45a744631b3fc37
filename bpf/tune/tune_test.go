package tune

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/wan"
)

// attached is a Tuner that learns the client leg.
func attached(tb testing.TB, cfg Config, p Policy) *Tuner {
	tb.Helper()
	netns.RequireRoot(tb, "sock_ops")
	t, err := Load(cfg)
	must(tb, err)
	tb.Cleanup(func() { t.Close() })
	must(tb, t.SetPolicy(Client, p))
	err = t.Attach()
	if errors.Is(err, ErrNoCgroup) {
		netns.Require(tb, "sock_ops", err)
	}
	must(tb, err)
	return t
}

func (t *Tuner) mustStats(tb testing.TB) Stats {
	tb.Helper()
	s, err := t.Stats()
	must(tb, err)
	return s
}

// settled waits until the program has seen the end of n connections.
func settled(tb testing.TB, t *Tuner, n uint64) Stats {
	tb.Helper()
	eventually(tb, fmt.Sprintf("%d connections ended", n), func() bool { return t.mustStats(tb).Learned >= n })
	return t.mustStats(tb)
}

func TestLearnsFromADownload(t *testing.T) {
	for name, at := range map[string]struct{ edge, client netip.Addr }{
		"IPv4": {edgeAddr, clientAddr}, "IPv6": {edgeV6, clientV6},
	} {
		t.Run(name, func(t *testing.T) {
			tuner := attached(t, Config{}, Policy{WindowMax: 512, SampleEvery: 1})
			w := newWorld(t, tuner)
			samples := make(chan Sample, 10)
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- tuner.Samples(ctx, func(s Sample) { samples <- s }) }()

			from := netip.AddrPortFrom(at.edge, 80)
			w.download(t, from, 1000)
			settled(t, tuner, 1)
			first := next(t, samples)
			n, known, err := tuner.Network(at.client)
			if !known || err != nil || n.Window <= 20 || n.Window > 512 || n.Learned == 0 {
				t.Errorf("learned %+v, %v, %v", n, known, err)
			}
			if n.RTT < 19*time.Millisecond || n.RTT > time.Second {
				t.Errorf("learned an RTT of %v", n.RTT)
			}
			// On a busy machine a handshake may be as late as on another path.
			var s Stats
			var second Sample
			for n := uint64(2); n < 20 && s.Raised == 0; n++ {
				w.download(t, from, 1000)
				s = settled(t, tuner, n)
				second = next(t, samples)
			}
			if s.Unknown != 1 || s.Raised != 1 || s.Connections != 2+s.PathChanged {
				t.Errorf("stats %+v", s)
			}
			if first.Window != 0 || second.Window != n.Window && s.PathChanged == 0 || second.BytesAcked < 1e6 ||
				!second.Prefix.Contains(at.client) || second.Leg != Client {
				t.Errorf("samples %+v, then %+v", first, second)
			}
			stop()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			must(t, tuner.Forget(at.client))
			if _, known, err := tuner.Network(at.client); known || err != nil {
				t.Errorf("known after it was forgotten: %v, %v", known, err)
			}
		})
	}
}

// next waits for what a channel brings.
func next[T any](tb testing.TB, c <-chan T) (v T) {
	tb.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		tb.Fatal("nothing came")
	}
	return v
}

// Sockets that nobody marked are not ours, and a ceiling of 10 leaves windows alone.
func TestLeavesOthersAlone(t *testing.T) {
	tuner := attached(t, Config{}, Policy{WindowMax: 512})
	w := newWorld(t, nil)
	w.download(t, w.listener, 100)
	w.download(t, w.listener, 100)
	if s := tuner.mustStats(t); s != (Stats{}) {
		t.Errorf("stats %+v", s)
	}
}

func TestCeilingAndAge(t *testing.T) {
	tuner := attached(t, Config{}, Policy{WindowMax: 40})
	w := newWorld(t, tuner)
	w.download(t, w.listener, 1000)
	settled(t, tuner, 1)
	if n, known, _ := tuner.Network(clientAddr); !known || n.Window != 40 {
		t.Errorf("learned %+v under a ceiling of 40", n)
	}
	// Ten half-lives later nothing is left of it. (The clock of the program is the kernel's.)
	must(t, tuner.SetPolicy(Client, Policy{WindowMax: 40, HalfLife: time.Nanosecond}))
	w.download(t, w.listener, 10)
	if s := settled(t, tuner, 2); s.Raised != 0 || s.Unknown != 2 {
		t.Errorf("stats %+v", s)
	}
	must(t, tuner.SetPolicy(Client, Policy{WindowMax: 10}))
	w.download(t, w.listener, 10)
	if s := settled(t, tuner, 3); s.Raised != 0 || s.Unknown != 2 {
		t.Errorf("stats with windows left alone: %+v", s)
	}
}

// Connections that open at once share the window.
func TestCrowdSharesOneWindow(t *testing.T) {
	tuner := attached(t, Config{}, Policy{WindowMax: 100, SampleEvery: 1})
	w := newWorld(t, tuner)
	w.download(t, w.listener, 2000)
	settled(t, tuner, 1)
	must(t, tuner.objs.Networks.Put(networkOf(clientAddr), tuneNetwork{
		Window: 100, RttUs: 1e9, UpdatedNs: now(t), // an RTT of a quarter of an hour: nothing refills meanwhile
	}))
	for range 5 {
		w.download(t, w.listener, 10)
	}
	s := settled(t, tuner, 6)
	if s.Raised != 1 || s.Crowded != 4 {
		t.Errorf("stats %+v", s)
	}
}

func now(tb testing.TB) uint64 {
	var ts unix.Timespec
	must(tb, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return uint64(ts.Nano())
}

// A network that lost its speed loses its window in the first flight that finds out.
func TestLossHalvesTheWindow(t *testing.T) {
	tuner := attached(t, Config{}, Policy{WindowMax: 512})
	w := newWorld(t, tuner)
	// An RTT that no handshake exceeds, and a line that no machine is too slow to flood.
	learned := tuneNetwork{Window: 512, RttUs: 1e6, UpdatedNs: now(t)}
	must(t, tuner.objs.Networks.Put(networkOf(clientAddr), learned))
	w.setLine(t, wan.Params{Delay: 10 * time.Millisecond, Rate: 2e6, Queue: 8_000})
	w.download(t, w.listener, 400)
	s := settled(t, tuner, 1)
	n, _, err := tuner.Network(clientAddr)
	if s.Overshot != 1 || n.Window != 256 || n.Overshot != 1 || err != nil {
		t.Errorf("stats %+v, network %+v, %v", s, n, err)
	}
}

// A handshake that takes far longer than the network's RTT starts as if nothing were known.
func TestAnotherPathStartsAnew(t *testing.T) {
	tuner := attached(t, Config{}, Policy{WindowMax: 512})
	w := newWorld(t, tuner)
	learned := tuneNetwork{Window: 300, RttUs: 20000, UpdatedNs: now(t)}
	must(t, tuner.objs.Networks.Put(networkOf(clientAddr), learned))
	w.setLine(t, wan.Params{Delay: 100 * time.Millisecond, Rate: 100e6})
	w.download(t, w.listener, 10)
	if s := settled(t, tuner, 1); s.PathChanged != 1 || s.Raised != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestCongestionControlOfALeg(t *testing.T) {
	tuner := attached(t, Config{}, Policy{})
	must(t, tuner.SetPolicy(Carrier, Policy{CongestionControl: "reno"}))
	must(t, tuner.SetPolicy(Endpoint, Policy{CongestionControl: "no-such-thing"}))
	set := netns.ForTest(t, "sock_ops")
	ns, err := set.New("a")
	must(t, err)
	usual, err := ns.ReadSysctl("net.ipv4.tcp_congestion_control")
	must(t, err)
	for leg, want := range map[Leg]string{Client: usual, Carrier: "reno", Endpoint: usual} {
		l, err := ns.Listen(context.Background(), "tcp", netip.MustParseAddrPort("127.0.0.1:0"))
		must(t, err)
		defer l.Close()
		must(t, tuner.Mark(l.(*net.TCPListener), leg))
		d := net.Dialer{Control: tuner.Control(leg)}
		d.SetMultipathTCP(false)
		var dialled net.Conn
		must(t, ns.Do(func() (err error) {
			dialled, err = d.Dial("tcp", l.Addr().String())
			return err
		}))
		defer dialled.Close()
		accepted, err := l.Accept()
		must(t, err)
		defer accepted.Close()
		for side, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
			if got := congestion(t, c); got != want {
				t.Errorf("leg %d, %s side: %s, want %s", leg, side, got, want)
			}
		}
	}
}

func congestion(tb testing.TB, c net.Conn) (name string) {
	raw, err := c.(syscall.Conn).SyscallConn()
	must(tb, err)
	must(tb, raw.Control(func(fd uintptr) {
		name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}))
	must(tb, err)
	return name
}

func TestWhatIsLearnedOutlivesTheProcess(t *testing.T) {
	netns.RequireRoot(t, "pins")
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	cfg := Config{PinDir: filepath.Join(dir, "nearcast"), NetworksMax: 1000}
	first := attached(t, cfg, Policy{})
	must(t, first.objs.Networks.Put(networkOf(clientAddr), tuneNetwork{Window: 123}))
	must(t, first.Close())
	cfg.NetworksMax = 2000 // the room of a pinned map stays what it was
	second := attached(t, cfg, Policy{})
	var found []Network
	must(t, second.Networks(func(n Network) bool { found = append(found, n); return true }))
	if len(found) != 1 || found[0].Window != 123 || !found[0].Prefix.Contains(clientAddr) {
		t.Errorf("found %+v", found)
	}
	if n := second.objs.Networks.MaxEntries(); n != 1000 {
		t.Errorf("room for %d", n)
	}
}

func TestNetworkKeys(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.77": "192.0.2.0/24", "::ffff:192.0.2.1": "192.0.2.0/24", "0.0.0.1": "0.0.0.0/24",
		"2001:db8:1:2::3": "2001:db8:1::/48", "ffff:ffff:ffff::1": "ffff:ffff:ffff::/48",
	} {
		if got := prefixOf(networkOf(netip.MustParseAddr(a))); got.String() != want {
			t.Errorf("%s: %v, want %s", a, got, want)
		}
	}
}

func TestCgroupDir(t *testing.T) {
	hybrid := "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
		"32 23 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
	for name, tc := range map[string]struct{ mounts, groups, want string }{
		"hybrid":     {hybrid, "1:name=systemd:/\n0::/system.slice/nearcast.service\n", "/sys/fs/cgroup/unified/system.slice/nearcast.service"},
		"top":        {hybrid, "0::/\n", "/sys/fs/cgroup/unified"},
		"container":  {"5 1 0:28 /docker/x /sys/fs/cgroup rw - cgroup2 none rw\n", "0::/docker/x/y\n", "/sys/fs/cgroup/y"},
		"outside":    {"5 1 0:28 /docker/x /sys/fs/cgroup rw - cgroup2 none rw\n", "0::/other\n", ""},
		"version 1":  {"31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "0::/\n", ""},
		"odd mount":  {"5 1 0:28 / /mnt/a\\040b rw - cgroup2 none rw\n", "0::/x\n", "/mnt/a b/x"},
		"no version": {hybrid, "1:name=systemd:/\n", ""},
	} {
		got, err := cgroupDir(tc.mounts, tc.groups)
		if got != tc.want || (tc.want == "") != errors.Is(err, ErrNoCgroup) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestBadPolicies(t *testing.T) {
	for _, p := range []Policy{{CongestionControl: "sixteen-is-much-"}, {WindowMax: -1}, {WindowMax: 20000},
		{HalfLife: -1}, {SampleEvery: -1}} {
		if p.Validate() == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
}
