package wan

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

// loopback is an engine without namespaces: message sockets stand in for the TUNs. Their buffers hold all that a test
// sends: the engine, as it should, drops what is not taken, and who reads may be slow.
type loopback struct {
	*Fabric
	ends []int // by host: what the host's side writes to and reads from
}

const loopbackBuffer = 64 << 20

func newLoopback(t *testing.T, spec Spec) *loopback {
	t.Helper()
	lb := &loopback{Fabric: &Fabric{plan: mustPlan(t, spec)}}
	for range spec.Hosts {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
		for _, fd := range pair {
			err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, loopbackBuffer)
			if err != nil {
				err = errors.New("CAP_NET_ADMIN (for large socket buffers)")
			}
			netns.Require(t, "an engine between message sockets", err)
		}
		must(t, unix.SetNonblock(pair[0], true))
		limit := unix.NsecToTimeval(int64(patience))
		must(t, unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
		must(t, unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
		lb.tuns, lb.ends = append(lb.tuns, pair[0]), append(lb.ends, pair[1])
	}
	var err error
	lb.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { unix.Close(lb.wake) })
	lb.engine = newEngine(lb.tuns, lb.wake, spec.Seed)
	lb.engine.tables.Store(lb.plan.compile())
	return lb
}

// start runs the engine until the test ends. What was written before, it reads in one round.
func (lb *loopback) start(t *testing.T) {
	ended := make(chan error, 1)
	netns.Thread(func() { ended <- lb.engine.run() })
	t.Cleanup(func() {
		_, err := unix.Write(lb.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		must(t, err)
		must(t, <-ended)
	})
}

// superBetween builds a random packet or superpacket between two of the hosts 10.0.0.1…; mark is its first
// byte.
func superBetween(rnd *rand.Rand, from, to int, mark byte) []byte {
	spec := superSpec{
		udp: rnd.IntN(2) == 0, tcpOptions: 12, id: uint16(rnd.Uint32()), seq: rnd.Uint32(),
		flags: byte(rnd.Uint32()), segment: 100 + rnd.IntN(1300),
	}
	spec.payload = make([]byte, 1+rnd.IntN(min(40*spec.segment, 60000)))
	for i := range spec.payload {
		spec.payload[i] = mark
	}
	b := spec.build()
	ip := b[vnetBytes:]
	copy(ip[12:], []byte{10, 0, 0, byte(from + 1), 10, 0, 0, byte(to + 1)})
	// The sums again, over the new addresses.
	ip[10], ip[11] = 0, 0
	s := ^fold(sum16(ip[:20], 0))
	ip[10], ip[11] = byte(s>>8), byte(s)
	proto, at := byte(protoTCP), 20+16
	if spec.udp {
		proto, at = protoUDP, 20+6
	}
	s = fold(pseudoSum(ip, proto, len(ip)-20))
	ip[at], ip[at+1] = byte(s>>8), byte(s)
	return b
}

// TestEngineMovesEveryByte sends random packets and superpackets between three hosts over lines of different
// delay, behind shared bottlenecks that cut superpackets apart, and compares all that arrives, in order for
// each pair of hosts, with what a naive segmenter makes of all that was sent.
func TestEngineMovesEveryByte(t *testing.T) {
	const hosts, each = 3, 150
	spec := Spec{Seed: 5, Links: []Link{
		{From: "*", To: "*", Params: Params{Delay: 3 * time.Millisecond, Jitter: 2 * time.Millisecond}},
		{From: "h1", To: "h2", Params: Params{Delay: time.Millisecond, Rate: 100e6, Queue: 64 << 20}},
		{From: "h2", To: "h3", Params: Params{}},
	}}
	for i := range hosts {
		name := "h" + string(rune('1'+i))
		spec.Hosts = append(spec.Hosts, numbered(name, i))
		line := Params{Rate: 200e6, Queue: 64 << 20}
		spec.Access = append(spec.Access, Access{At: name, Up: line, Down: line})
	}
	lb := newLoopback(t, spec)
	lb.start(t)
	var sent, got [hosts][hosts][][]byte // by from and to: wire packets
	var done sync.WaitGroup
	for from := range hosts {
		rnd := rand.New(rand.NewPCG(8, uint64(from)))
		var plan [][]byte
		for i := range each {
			to := (from + 1 + rnd.IntN(hosts-1)) % hosts
			b := superBetween(rnd, from, to, byte(i))
			plan = append(plan, b)
			sent[from][to] = append(sent[from][to], naive(b)...)
		}
		done.Go(func() { lb.sendPlan(t, from, plan) })
	}
	want := [hosts]int{}
	for from := range hosts {
		for to := range hosts {
			want[to] += len(sent[from][to])
		}
	}
	for to := range hosts {
		done.Go(func() {
			for n := 0; n < want[to]; {
				buf := make([]byte, 1<<17)
				length, err := unix.Read(lb.ends[to], buf)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					t.Errorf("host %d has read %d of %d packets: %v", to, n, want[to], err)
					return
				}
				packets := naive(buf[:length])
				from := int(packets[0][15]) - 1
				got[from][to] = append(got[from][to], packets...)
				n += len(packets)
			}
		})
	}
	done.Wait()
	for from := range hosts {
		for to := range hosts {
			comparePackets(t, from, to, sent[from][to], got[from][to])
		}
	}
	if n := lb.engine.totals.writeErrors.Load() + lb.engine.totals.malformed.Load(); n != 0 {
		t.Errorf("%d dropped without need", n)
	}
}

// sendPlan writes packets with a breath between them, so that those of the others come in between.
func (lb *loopback) sendPlan(t *testing.T, from int, plan [][]byte) {
	for _, b := range plan {
		for {
			_, err := unix.Write(lb.ends[from], b)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				t.Errorf("host %d: %v", from, err)
				return
			}
			break
		}
		time.Sleep(200 * time.Microsecond)
	}
}

func comparePackets(t *testing.T, from, to int, want, got [][]byte) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%d to %d: %d packets, want %d", from, to, len(got), len(want))
	}
	for i := range min(len(want), len(got)) {
		if !bytes.Equal(want[i], got[i]) {
			t.Errorf("%d to %d: packet %d differs\nwant %.100x\ngot  %.100x", from, to, i, want[i], got[i])
			return
		}
	}
}

// TestSharedBottleneck: two cities' traffic to one host shares its access line, in the order of arrival there
// and not in the order in which it set out. All set out at one time, before the engine first looks.
func TestSharedBottleneck(t *testing.T) {
	spec := Spec{
		Links: []Link{
			{From: "h1", To: "h3", Params: Params{Delay: 200 * time.Millisecond}},
			{From: "h2", To: "h3", Params: Params{Delay: time.Millisecond}},
		},
		// 1,000 bytes take 10 ms.
		Access: []Access{{At: "h3", Down: Params{Rate: 800e3, Queue: 1 << 20}}},
	}
	for i := range 3 {
		spec.Hosts = append(spec.Hosts, numbered("h"+string(rune('1'+i)), i))
	}
	lb := newLoopback(t, spec)
	single := superSpec{udp: true, segment: 1 << 15, payload: make([]byte, 1000-28)}
	send := func(from int) {
		b := single.build()
		copy(b[vnetBytes+12:], []byte{10, 0, 0, byte(from + 1), 10, 0, 0, 3})
		if _, err := unix.Write(lb.ends[from], b); err != nil {
			t.Fatal(err)
		}
	}
	send(0) // the far one sets out first
	for range 5 {
		send(1)
	}
	var order []byte
	buf := make([]byte, 1<<17)
	start := time.Now()
	lb.start(t)
	for range 6 {
		n, err := unix.Read(lb.ends[2], buf)
		for err == unix.EINTR {
			n, err = unix.Read(lb.ends[2], buf)
		}
		must(t, err)
		order = append(order, buf[:n][vnetBytes+15])
	}
	if string(order) != "\x02\x02\x02\x02\x02\x01" {
		t.Errorf("arrived in order %v", order)
	}
	if d := time.Since(start); d < 190*time.Millisecond {
		t.Errorf("the far one came after %v", d)
	}
}

// TestEngineForwardAllocatesNothing: a packet costs no garbage once the lanes have grown.
func TestEngineForwardAllocatesNothing(t *testing.T) {
	p := Params{Delay: time.Millisecond, Rate: 10e6, Queue: 1 << 30, Loss: 0.1}
	spec := Spec{Links: []Link{{From: "*", To: "*", Params: p}}}
	for i := range 2 {
		spec.Hosts = append(spec.Hosts, numbered("h"+string(rune('1'+i)), i))
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(null)
	e := newEngine([]int{null, null}, null, 1)
	defer e.pool.unmap()
	e.clock = newClock()
	e.tables.Store(mustPlan(t, spec).compile())
	e.loadTable()
	must(t, e.ensureChunk())
	c := e.chunk
	n := copy(c.b, superBetween(rand.New(rand.NewPCG(1, 1)), 0, 1, 7))
	now := e.clock.now()
	round1 := func() {
		now += int64(time.Second)
		e.route(packet{buf: c, from: 0, to: n}, 0, round{arrived: now, horizon: now})
		e.releaseDue(now + int64(time.Second))
	}
	round1()
	if allocs := testing.AllocsPerRun(100, round1); allocs != 0 {
		t.Errorf("%v allocations a packet", allocs)
	}
	if c.refs != 1 {
		t.Errorf("%d references left", c.refs)
	}
}
