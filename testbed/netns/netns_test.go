package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv("NETNS_TEST_OWNER") != "" {
		ownAndHang()
	}
	leak.Main(m)
}

// patience bounds waits that end at once unless something is broken.
const patience = 30 * time.Second

var (
	addrA, addrB   = netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("10.9.0.2/24")
	addrA6, addrB6 = netip.MustParsePrefix("fd00:9::1/64"), netip.MustParsePrefix("fd00:9::2/64")
)

// pair returns two namespaces on a wire.
func pair(t *testing.T) (a, b *NS) {
	t.Helper()
	set := ForTest(t, "two namespaces on a wire")
	a, b = mustNew(t, set, "a"), mustNew(t, set, "b")
	must(t, Veth(End{a, "eth0"}, End{b, "eth0"}))
	must(t, a.AddAddr("eth0", addrA))
	must(t, b.AddAddr("eth0", addrB))
	must(t, a.AddAddr("eth0", addrA6))
	must(t, b.AddAddr("eth0", addrB6))
	return a, b
}

func mustNew(t *testing.T, set *Set, name string) *NS {
	t.Helper()
	ns, err := set.New(name)
	must(t, err)
	return ns
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hostNS(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	return link
}

func TestSocketsCrossTheWire(t *testing.T) {
	a, b := pair(t)
	before := hostNS(t)
	for _, addr := range []netip.Addr{addrA.Addr(), addrA6.Addr()} {
		l, err := a.Listen(t.Context(), "tcp", netip.AddrPortFrom(addr, 0))
		must(t, err)
		c, err := b.DialContext(t.Context(), "tcp", l.Addr().String())
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(patience)))
		must(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)))
		s, err := l.Accept()
		must(t, err)
		_, err = s.Write([]byte("hello"))
		must(t, err)
		must(t, s.Close())
		got, err := io.ReadAll(c)
		must(t, err)
		if string(got) != "hello" {
			t.Errorf("over %v: got %q", addr, got)
		}
		must(t, c.Close())
		must(t, l.Close())
	}
	if after := hostNS(t); after != before {
		t.Errorf("the process moved from %s to %s", before, after)
	}
}

func TestPacketsAndLocalPrefix(t *testing.T) {
	a, b := pair(t)
	many := netip.MustParsePrefix("10.77.0.0/16")
	must(t, a.AddRoute(Route{Dst: many, Local: true}))
	must(t, b.AddRoute(Route{Dst: many, Via: addrA.Addr(), Dev: "eth0"}))
	s, err := a.ListenPacket(t.Context(), "udp4", netip.MustParseAddrPort("10.77.3.4:0"))
	must(t, err)
	defer s.Close()
	to := s.LocalAddr().(*net.UDPAddr).AddrPort()
	c, err := b.Dial(t.Context(), "udp4", netip.AddrPortFrom(addrB.Addr(), 0), to)
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("x"))
	must(t, err)
	must(t, s.SetReadDeadline(time.Now().Add(patience)))
	_, from, err := s.ReadFromUDPAddrPort(make([]byte, 8))
	must(t, err)
	if from.Addr() != addrB.Addr() {
		t.Errorf("came from %v", from)
	}
}

func TestDialRefusesNames(t *testing.T) {
	a, _ := pair(t)
	if _, err := a.DialContext(t.Context(), "tcp", "localhost:80"); err == nil {
		t.Error("dialled a name")
	}
}

func TestSysctlIsTheNamespaces(t *testing.T) {
	a, b := pair(t)
	must(t, a.Sysctl("net.ipv4.tcp_rmem", "4096 131072 67108861"))
	got, err := a.ReadSysctl("net.ipv4.tcp_rmem")
	must(t, err)
	if strings.Join(strings.Fields(got), " ") != "4096 131072 67108861" {
		t.Errorf("tcp_rmem in a is %q", got)
	}
	other, err := b.ReadSysctl("net.ipv4.tcp_rmem")
	must(t, err)
	if other == got {
		t.Errorf("tcp_rmem in b is %q too", other)
	}
	if err := a.Sysctl("net.ipv4.no_such_thing", "1"); err == nil {
		t.Error("an unknown sysctl was set")
	}
}

func TestRulesAndTables(t *testing.T) {
	a, b := pair(t)
	// b reaches 10.50.0.1 only by table 50, and only from its second address.
	must(t, a.AddRoute(Route{Dst: netip.MustParsePrefix("10.50.0.1/32"), Local: true}))
	must(t, a.AddRoute(Route{Dst: netip.MustParsePrefix("10.60.0.0/24"), Via: addrB.Addr(), Dev: "eth0"}))
	must(t, b.AddAddr("lo", netip.MustParsePrefix("10.60.0.1/32")))
	all := netip.MustParsePrefix("0.0.0.0/0")
	must(t, b.AddRoute(Route{Dst: all, Via: addrA.Addr(), Dev: "eth0", Table: 50}))
	rule := Rule{Pref: 100, From: netip.MustParsePrefix("10.60.0.1/32"), Table: 50}
	must(t, b.AddRule(rule))
	l, err := a.Listen(t.Context(), "tcp4", netip.MustParseAddrPort("10.50.0.1:80"))
	must(t, err)
	defer l.Close()
	from := netip.MustParseAddrPort("10.60.0.1:0")
	c, err := b.Dial(t.Context(), "tcp4", from, netip.MustParseAddrPort("10.50.0.1:80"))
	must(t, err)
	c.Close()
	if _, err := b.DialContext(t.Context(), "tcp4", "10.50.0.1:80"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without the rule's source: %v", err)
	}
	must(t, b.DelRule(rule))
	if _, err := b.Dial(t.Context(), "tcp4", from, netip.MustParseAddrPort("10.50.0.1:80")); err == nil {
		t.Error("dialled without the rule")
	}
}

// An IPv6 address can be connected to as soon as AddAddr has returned, on an interface that came up just before.
func TestAddressIsUsableAtOnce(t *testing.T) {
	set := ForTest(t, "two namespaces on a wire")
	for i := range 10 {
		a, b := mustNew(t, set, "a"+strconv.Itoa(i)), mustNew(t, set, "b"+strconv.Itoa(i))
		must(t, Veth(End{a, "eth0"}, End{b, "eth0"}))
		for _, dev := range []string{"lo", "eth0"} {
			p := netip.PrefixFrom(netip.MustParseAddr("fd00:9:"+strconv.Itoa(len(dev))+"::1"), 128)
			must(t, a.AddAddr(dev, p))
			l, err := a.Listen(t.Context(), "tcp", netip.AddrPortFrom(p.Addr(), 0))
			must(t, err)
			c, err := a.DialContext(t.Context(), "tcp", l.Addr().String())
			must(t, err)
			must(t, errors.Join(c.Close(), l.Close()))
		}
	}
	// Without a carrier the kernel does not take it into use, and nobody waits for it.
	a := mustNew(t, set, "alone")
	must(t, Veth(End{a, "eth0"}, End{mustNew(t, set, "other"), "eth0"}))
	must(t, set.Get("other").SetDown("eth0"))
	must(t, a.AddAddr("eth0", netip.MustParsePrefix("fd00:9::1/64")))
}

// Nobody is given a port twice, nor one that another process was given and does not use yet.
func TestFreePortIsNobodyElses(t *testing.T) {
	seen := map[uint16]bool{}
	for i := range 400 {
		p := FreePort(t)
		if i%2 == 1 {
			p = FreePorts(t, 3) + 2
		}
		if seen[p] {
			t.Fatalf("port %d twice", p)
		}
		seen[p] = true
		if mine, err := claimPort(int(p)); mine || err != nil {
			t.Fatalf("port %d can be claimed again: %v, %v", p, mine, err)
		}
	}
}

// While many come and go, none is taken for a leftover of one who died.
func TestClaimsUnderSweeps(t *testing.T) {
	RequireRoot(t, "claims")
	prefix := "sweep" + strconv.Itoa(os.Getpid()) + "s-"
	var done sync.WaitGroup
	for i := range 4 {
		done.Go(func() {
			for n := range 50 {
				set, err := Create(prefix + strconv.Itoa(i))
				if err == nil {
					_, err = Sweep(prefix)
				}
				if _, ok := FindOwner(prefix + strconv.Itoa(i)); err == nil && !ok {
					err = errors.New("no owner")
				}
				if err == nil {
					err = set.Close()
				}
				if err != nil {
					t.Errorf("%d, round %d: %v", i, n, err)
					return
				}
			}
		})
	}
	done.Wait()
}

func TestCommandRunsInside(t *testing.T) {
	a, _ := pair(t)
	out, err := a.Cmd(t.Context(), "readlink", "/proc/self/ns/net").Output()
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(a.Path(), &st))
	want := "net:[" + strconv.FormatUint(st.Ino, 10) + "]"
	if got := strings.TrimSpace(string(out)); got == hostNS(t) || got != want {
		t.Errorf("command ran in %s, namespace is %d", got, st.Ino)
	}
	mnt, err := a.Cmd(t.Context(), "readlink", "/proc/self/ns/mnt").CombinedOutput()
	must(t, err)
	if own, _ := os.Readlink("/proc/self/ns/mnt"); strings.TrimSpace(string(mnt)) != own {
		t.Errorf("command has mount namespace %s, not %s", mnt, own)
	}
	err = a.Cmd(t.Context(), "sh", "-c", "exit 3").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("exit 3 gave %v", err)
	}
	if err := a.Cmd(t.Context(), "/no/such/binary").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing binary gave %v", err)
	}
}

func TestContextEndsCommand(t *testing.T) {
	a, _ := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cmd := a.Cmd(ctx, "sleep", "1000")
	must(t, cmd.Start())
	cancel()
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "killed") {
		t.Errorf("wait: %v", err)
	}
}

func TestCloseKillsWhatRuns(t *testing.T) {
	RequireRoot(t, "processes in a namespace")
	set, err := Create("nct" + strconv.Itoa(os.Getpid()) + "-kill-")
	must(t, err)
	ns := mustNew(t, set, "a")
	// A process and a child that would outlive it.
	cmd := ns.Cmd(t.Context(), "sh", "-c", "sleep 1000 & echo up; sleep 1000")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, 2))
	must(t, err)
	if n := len(ns.Processes()); n < 2 {
		t.Errorf("%d processes in the namespace", n)
	}
	if len(set.Leaks()) < 3 {
		t.Errorf("the leak check sees only %v", set.Leaks())
	}
	must(t, set.Close())
	NoLeaks(t, set)
	_ = cmd.Wait()
	must(t, set.Close()) // twice is fine
	if err := ns.Do(func() error { return nil }); !errors.Is(err, errRemoved) {
		t.Errorf("Do after Close: %v", err)
	}
	if err := ns.Cmd(t.Context(), "true").Run(); !errors.Is(err, errRemoved) {
		t.Errorf("Cmd after Close: %v", err)
	}
	if _, err := set.New("late"); err == nil {
		t.Error("New after Close")
	}
}

func TestDoSurvivesGoexit(t *testing.T) {
	a, _ := pair(t)
	if err := a.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error from a function that ended its goroutine")
	}
	if err := a.Do(func() error { return nil }); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestNamesAreChecked(t *testing.T) {
	for _, bad := range []string{"", "A", "a/b", "a b", "..", strings.Repeat("x", prefixLenMax+1)} {
		if _, err := Create(bad); err == nil {
			t.Errorf("Create(%q) worked", bad)
		}
	}
	set := ForTest(t, "a namespace")
	mustNew(t, set, "a")
	if _, err := set.New("a"); err == nil {
		t.Error("the same name twice")
	}
	if names := Names(set.Prefix()); !slices.Equal(names, []string{set.Prefix() + "a"}) {
		t.Errorf("names are %v", names)
	}
	must(t, set.Delete("a"))
	if set.Get("a") != nil || len(Names(set.Prefix())) != 0 {
		t.Error("deleted namespace is still there")
	}
	if err := set.Delete("a"); err == nil {
		t.Error("deleted twice")
	}
}

func TestPrefixHasOneOwner(t *testing.T) {
	set := ForTest(t, "a claim")
	if _, err := Create(set.Prefix()); !errors.Is(err, ErrInUse) {
		t.Errorf("second owner: %v", err)
	}
	o, ok := FindOwner(set.Prefix())
	if !ok || o.PID != os.Getpid() {
		t.Errorf("owner %+v, %v", o, ok)
	}
	if _, ok := FindOwner("nct-nobody-"); ok {
		t.Error("nobody's prefix has an owner")
	}
}

// TestSweepRemovesWhatACrashLeft kills an owner that has a namespace with a process in it.
func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	RequireRoot(t, "leftovers of a crash")
	prefix := "sweep" + strconv.Itoa(os.Getpid()) + "-" // not of ForTest's kind: another test process would sweep it
	t.Cleanup(func() {
		if _, err := Sweep(prefix); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "NETNS_TEST_OWNER="+prefix)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line := make([]byte, 3)
	_, err = io.ReadFull(out, line)
	must(t, err)
	if string(line) != "up\n" {
		t.Fatalf("owner says %q", line)
	}
	if removed, err := Sweep(prefix); err != nil || len(removed) != 0 {
		t.Errorf("swept a living owner: %v, %v", removed, err)
	}
	space, err := os.Open(runDir + "/" + prefix + "a") // as long as it is open, its inode is no other one's
	must(t, err)
	defer space.Close()
	var st unix.Stat_t
	must(t, unix.Fstat(int(space.Fd()), &st))
	if got := len(processesIn(st.Ino)); got != 2 {
		t.Errorf("the owner has %d processes in its namespace", got)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	// One dies with its owner; the other one is left to Sweep.
	for end := time.Now().Add(patience); len(processesIn(st.Ino)) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left in the namespace: %v", processesIn(st.Ino))
		}
	}
	removed, err := Sweep(prefix)
	must(t, err)
	if !slices.Equal(removed, []string{prefix + "a"}) {
		t.Errorf("removed %v", removed)
	}
	if left := processesIn(st.Ino); len(left) != 0 {
		t.Errorf("left processes %v", left)
	}
	if _, err := os.Stat(claimPath(prefix)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("claim is still there: %v", err)
	}
}

// ownAndHang is the crashing owner of the test above, run as a process of its own.
func ownAndHang() {
	set, err := Create(os.Getenv("NETNS_TEST_OWNER"))
	if err != nil {
		panic(err)
	}
	ns, err := set.New("a")
	if err != nil {
		panic(err)
	}
	for _, sig := range []unix.Signal{unix.SIGKILL, 0} { // without the signal, Sweep has something to kill
		cmd := ns.Cmd(context.Background(), "sleep", "1000")
		cmd.SysProcAttr.Pdeathsig = sig
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	}
	os.Stdout.WriteString("up\n")
	select {}
}

func TestThreadIsNeverTheMainThread(t *testing.T) {
	for range 100 {
		tid := make(chan int)
		Thread(func() { tid <- unix.Gettid() })
		if <-tid == os.Getpid() {
			t.Fatal("ran on the main thread")
		}
	}
}
