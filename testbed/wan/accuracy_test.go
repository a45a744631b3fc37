package wan

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
	"golang.org/x/sys/unix"
)

// report is the table that TestAccuracy prints (go test -v). What it asserts are statistics and bounds that
// follow from the lateness measured meanwhile; a wall clock on a busy machine proves nothing.
type report struct{ rows []string }

func (r *report) add(what, set, got, remark string) {
	r.rows = append(r.rows, fmt.Sprintf("%-38s %-22s %-34s %s", what, set, got, remark))
}

func TestAccuracy(t *testing.T) {
	netns.RequireRoot(t, "the accuracy report")
	var r report
	r.add("WHAT", "CONFIGURED", "MEASURED", "LATENESS OF THE ENGINE")
	t.Run("round trips", func(t *testing.T) { accuracyOfDelay(t, &r) })
	t.Run("round trips under load", func(t *testing.T) { accuracyUnderLoad(t, &r) })
	t.Run("loss", func(t *testing.T) { accuracyOfLoss(t, &r) })
	t.Run("loss within superpackets", func(t *testing.T) { accuracyOfTCPLoss(t, &r) })
	t.Run("rate", func(t *testing.T) { accuracyOfRate(t, &r) })
	t.Run("throughput", func(t *testing.T) { accuracyOfThroughput(t, &r) })
	t.Log("\n" + strings.Join(r.rows, "\n"))
}

// slack is what a measured time may be off: the engine's lateness of both directions and its tick, and what
// the rest of the machine may take to wake whoever is concerned. Of several round trips only the shortest is held
// against it: any other may have waited for a processor between two looks at the clock.
func slack(s Stats) time.Duration { return 2*(s.Lateness.Max+tick) + 50*time.Millisecond }

func summary(rtts []time.Duration) (mean, lowest, highest time.Duration) {
	for _, d := range rtts {
		mean += d
	}
	return mean / time.Duration(len(rtts)), slices.Min(rtts), slices.Max(rtts)
}

func us(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

func accuracyOfDelay(t *testing.T, r *report) {
	for _, c := range []struct {
		p Params
		n int
	}{
		{Params{Delay: time.Millisecond}, 100},
		{Params{Delay: 20 * time.Millisecond}, 20},
		{Params{Delay: 150 * time.Millisecond}, 4},
		{Params{Delay: 20 * time.Millisecond, Jitter: 4 * time.Millisecond}, 40},
	} {
		f := twoHosts(t, c.p)
		for _, family := range families {
			rtts := ping(t, f.NS("a"), family.b, c.n, time.Millisecond)
			mean, lowest, highest := summary(rtts)
			s := f.Stats()
			want := 2 * (c.p.Delay + c.p.Jitter/2)
			r.add("round trip "+family.name+", idle", fmt.Sprint(want, " ± ", c.p.Jitter),
				fmt.Sprintf("mean %v (%v to %v)", us(mean), us(lowest), us(highest)), s.Lateness.String())
			if lowest < 2*c.p.Delay-2*tick {
				t.Errorf("round trip of %v through twice %v", lowest, c.p.Delay)
			}
			if lowest > want+c.p.Jitter+slack(s) {
				t.Errorf("round trips of %v and more, want %v; engine %v", lowest, want, s.Lateness)
			}
		}
	}
}

// accuracyUnderLoad pings while TCP fills a bottleneck in the same engine on another line.
func accuracyUnderLoad(t *testing.T, r *report) {
	spec := Spec{
		Links: append(Both("a", "b", Params{Delay: 20 * time.Millisecond}),
			Both("c", "d", Params{Delay: 5 * time.Millisecond, Rate: 200e6})...),
	}
	for i, name := range []string{"a", "b", "c", "d"} {
		spec.Hosts = append(spec.Hosts, numbered(name, i))
	}
	f, _ := ForTest(t, "two lines", spec)
	done := make(chan error, 1)
	go func() {
		done <- pour(t.Context(), f.NS("c"), f.NS("d"), addr("10.0.0.4"), 40<<20)
	}()
	rtts := ping(t, f.NS("a"), addr("10.0.0.2"), 30, time.Millisecond)
	must(t, <-done)
	mean, lowest, highest := summary(rtts)
	s := f.Stats()
	r.add("round trip v4, 200 Mbit/s beside it", "40ms",
		fmt.Sprintf("mean %v (%v to %v)", us(mean), us(lowest), us(highest)), s.Lateness.String())
	if lowest < 40*time.Millisecond-2*tick || lowest > 40*time.Millisecond+slack(s) {
		t.Errorf("mean %v, lowest %v; engine %v", mean, lowest, s.Lateness)
	}
}

func accuracyOfLoss(t *testing.T, r *report) {
	const n = 60_000
	for _, p := range []Params{{Loss: 0.01}, {Loss: 0.05}, {Loss: 0.02, Burst: 5}} {
		p.Delay, p.Jitter = 5*time.Millisecond, 3*time.Millisecond
		f := twoHosts(t, p)
		in, at := sink(t, f.NS("b"), families[0].b)
		out := dialUDP(t, f.NS("a"), at)
		before := f.Stats()
		blast(t, out, n, 64, 500, time.Millisecond)
		var c Counters
		until(t, "all have been decided", func() bool {
			s := f.Stats()
			c = s.link("a", "b")
			return c.Packets+c.Lost+dropped(before, s) >= n
		})
		must(t, f.Set("a", "b", Params{}))
		const marker = 1 << 40
		until(t, "loss is off", func() bool { // the marker comes in order behind the others
			_, err := out.Write(binary.BigEndian.AppendUint64(nil, marker))
			must(t, err)
			return f.Stats().link("a", "b").Packets > c.Packets
		})
		got := drain(t, in, marker)
		s := f.Stats()
		sent := float64(c.Packets + c.Lost)
		share, bursts := float64(c.Lost)/sent, 0.0
		last := int64(-1)
		for _, seq := range got {
			if int64(seq) <= last {
				t.Fatalf("packet %d came after %d", seq, last)
			}
			if int64(seq) > last+1 {
				bursts++
			}
			last = int64(seq)
		}
		r.add("loss of UDP packets", fmt.Sprintf("%.3f, bursts of %v", p.Loss, max(1, p.Burst)),
			fmt.Sprintf("%.4f, bursts of %.2f, order kept", share, float64(c.Lost)/bursts), s.Lateness.String())
		// The variance of the number lost in bursts is up to twice their length times that of single ones.
		sigma := math.Sqrt(p.Loss * (1 - p.Loss) * max(1, 2*p.Burst) / sent)
		if math.Abs(share-p.Loss) > 5*sigma {
			t.Errorf("lost %.4f, want %.4f ± %.4f", share, p.Loss, 5*sigma)
		}
		late := f.NS("b").Drops()[hostDev].Rx // the machine was too busy to receive them
		if dropped(before, s) == 0 && uint64(len(got))+late != c.Packets {
			t.Errorf("%d arrived of %d that passed, %d were dropped on arrival", len(got), c.Packets, late)
		}
	}
}

// dropped is how many packets this machine was too busy for, on their way to the engine.
func dropped(before, after Stats) uint64 {
	return after.RingDrops + after.BacklogDrops - before.RingDrops - before.BacklogDrops
}

func accuracyOfTCPLoss(t *testing.T, r *report) {
	f := twoHosts(t, Params{Delay: time.Millisecond, Loss: 0.01})
	must(t, pour(t.Context(), f.NS("a"), f.NS("b"), families[1].b, 48<<20))
	c := f.Stats().link("a", "b")
	n := float64(c.Packets + c.Lost)
	share, sigma := float64(c.Lost)/n, math.Sqrt(0.01*0.99/n)
	r.add("loss of TCP segments in superpackets", "0.010", fmt.Sprintf("%.4f of %.0f", share, n),
		f.Stats().Lateness.String())
	if math.Abs(share-0.01) > 5*sigma {
		t.Errorf("lost %.4f of %.0f segments", share, n)
	}
}

// accuracyOfRate sends one train of datagrams in one call. So all of them meet the bottleneck together,
// however busy the sender is, and the time between the first and the last at the receiver is exactly known.
func accuracyOfRate(t *testing.T, r *report) {
	const size, train = 1400, 44
	for _, rate := range []int64{2e6, 10e6, 50e6} {
		f := twoHosts(t, Params{Delay: 2 * time.Millisecond, Rate: rate})
		in, at := sink(t, f.NS("b"), families[0].b)
		stampArrivals(t, in, at)
		out := dialUDP(t, f.NS("a"), at)
		raw, err := out.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
		}))
		must(t, err)
		_, err = out.Write(make([]byte, size*train))
		must(t, err)
		first, last := arrivals(t, in, train)
		span := last.Sub(first)
		want := time.Duration((train - 1) * (size + 28) * 8 * int64(time.Second) / rate)
		s := f.Stats()
		r.add("44 datagrams through a bottleneck", fmt.Sprintf("%v Mbit/s: %v", rate/1e6, us(want)),
			fmt.Sprintf("%v (%.2f %% off)", us(span), 100*(float64(span)/float64(want)-1)), s.Lateness.String())
		if off := (span - want).Abs(); off > slack(s) {
			t.Errorf("%v for %v; engine %v", span, want, s.Lateness)
		}
	}
}

// stampArrivals has the kernel stamp what arrives at a socket. It begins a moment after it is told to: until then
// a datagram is stamped when it is read.
func stampArrivals(t *testing.T, in *net.UDPConn, at netip.AddrPort) {
	t.Helper()
	raw, err := in.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	}))
	must(t, err)
	until(t, "datagrams are stamped when they arrive", func() bool {
		_, err := in.WriteToUDPAddrPort([]byte("to myself"), at)
		must(t, err)
		time.Sleep(10 * time.Millisecond)
		asked := time.Now().Round(0)
		arrived, _ := arrivals(t, in, 1)
		return asked.Sub(arrived) > 5*time.Millisecond
	})
}

// arrivals reads n datagrams and returns the kernel's stamps of the first and the last.
func arrivals(t *testing.T, in *net.UDPConn, n int) (first, last time.Time) {
	t.Helper()
	b, oob := make([]byte, 1<<16), make([]byte, 256)
	for i := range n {
		_, oobn, _, _, err := in.ReadMsgUDPAddrPort(b, oob)
		must(t, err)
		last = stamp(t, oob[:oobn])
		if i == 0 {
			first = last
		}
	}
	return first, last
}

// accuracyOfThroughput (with slow start in it) shows what a line carries and what it costs. The only bound:
// never more than its rate.
func accuracyOfThroughput(t *testing.T, r *report) {
	for _, c := range []struct {
		p     Params
		bytes int
	}{
		{Params{Delay: 10 * time.Millisecond, Rate: 50e6}, 12 << 20},
		{Params{Delay: 50 * time.Millisecond, Rate: 1e9, Queue: 16 << 20}, 200 << 20},
		{Params{Delay: 2 * time.Millisecond}, 512 << 20},
	} {
		if testing.Short() && c.bytes > 100<<20 {
			continue
		}
		f := twoHosts(t, c.p)
		start, cpu := time.Now(), f.Stats().CPU
		must(t, pour(t.Context(), f.NS("a"), f.NS("b"), families[0].b, c.bytes))
		took, s := time.Since(start), f.Stats()
		onWire := 8 * float64(s.link("a", "b").Bytes) / took.Seconds()
		rate := "no limit"
		if c.p.Rate > 0 {
			rate = fmt.Sprint(c.p.Rate/1e6, " Mbit/s")
		}
		r.add("one TCP flow", fmt.Sprintf("%s, %v", rate, 2*c.p.Delay),
			fmt.Sprintf("%.0f Mbit/s, engine %.2f CPU-s/GB", onWire/1e6,
				(s.CPU-cpu).Seconds()/float64(c.bytes)*1e9), s.Lateness.String())
		if c.p.Rate > 0 && onWire > 1.005*float64(c.p.Rate) {
			t.Errorf("%.1f Mbit/s through %.1f", onWire/1e6, float64(c.p.Rate)/1e6)
		}
	}
	smallPackets(t, r)
}

func smallPackets(t *testing.T, r *report) {
	const n = 200_000
	f := twoHosts(t, Params{Delay: 50 * time.Millisecond})
	_, at := sink(t, f.NS("b"), families[0].b)
	out := dialUDP(t, f.NS("a"), at)
	before := f.Stats()
	start := time.Now()
	blast(t, out, n, 64, 100, time.Millisecond)
	took := time.Since(start)
	var s Stats
	until(t, "all are delivered", func() bool {
		s = f.Stats()
		return s.Delivered-before.Delivered+dropped(before, s) >= n
	})
	r.add("small UDP packets", "100ms", fmt.Sprintf("%.0f/s, engine %.2f µs each, %d lost", n/took.Seconds(),
		float64((s.CPU-before.CPU).Microseconds())/n, dropped(before, s)), s.Lateness.String())
}
