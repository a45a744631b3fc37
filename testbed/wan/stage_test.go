package wan

import (
	"math"
	"testing"
	"time"
)

const packetBytes = 1500

// pump sends n packets, spaced apart, through one stage and returns their delays and how many it lost.
func pump(p Params, n int, spacing time.Duration) (delays []int64, s *stage, lost []bool) {
	c := newStageConf(p, &counters{})
	st := newStage(7, 1)
	for i := range n {
		now := int64(time.Second) + int64(i)*int64(spacing)
		out, f := st.admit(c, now, packetBytes)
		lost = append(lost, f != passed)
		if f == passed {
			delays = append(delays, out-now)
		}
	}
	return delays, &st, lost
}

func count(lost []bool) (n float64) {
	for _, l := range lost {
		if l {
			n++
		}
	}
	return n
}

func mean(values []int64) float64 {
	var sum float64
	for _, v := range values {
		sum += float64(v)
	}
	return sum / float64(len(values))
}

func TestIndependentLoss(t *testing.T) {
	const n, p = 1_000_000, 0.01
	_, _, lost := pump(Params{Loss: p}, n, time.Microsecond)
	sigma := math.Sqrt(n * p * (1 - p))
	if got := count(lost); math.Abs(got-n*p) > 5*sigma {
		t.Errorf("lost %v of %d, want %v ± %v", got, n, n*p, 5*sigma)
	}
}

func TestBurstLoss(t *testing.T) {
	const n, p, burst = 2_000_000, 0.02, 5.0
	_, _, lost := pump(Params{Loss: p, Burst: burst}, n, time.Microsecond)
	bursts := 0.0
	for i, l := range lost {
		if l && (i == 0 || !lost[i-1]) {
			bursts++
		}
	}
	share, length := count(lost)/n, count(lost)/bursts
	// Bursts are independent, geometric: sigma of their mean length is sqrt(burst*(burst-1)/bursts).
	if math.Abs(length-burst) > 5*math.Sqrt(burst*(burst-1)/bursts) {
		t.Errorf("mean burst is %v of %v", length, burst)
	}
	if math.Abs(share-p) > 5*p*math.Sqrt(2*burst/(n*p)) {
		t.Errorf("lost %v of %v", share, p)
	}
	if _, _, all := pump(Params{Loss: 1, Burst: 3}, 100, time.Microsecond); count(all) != 100 {
		t.Errorf("loss 1 let %v packets pass", 100-count(all))
	}
}

func TestJitterKeepsOrderAndMean(t *testing.T) {
	for _, spacing := range []time.Duration{0, 10 * time.Microsecond, time.Millisecond, time.Second} {
		const jitter = 4 * time.Millisecond
		n := 200_000
		if spacing == 0 {
			n = 1000
		}
		delays, _, _ := pump(Params{Delay: 50 * time.Millisecond, Jitter: jitter}, n, spacing)
		for i, d := range delays {
			if d < int64(50*time.Millisecond) || d > int64(54*time.Millisecond) {
				t.Fatalf("spacing %v: delay %v", spacing, time.Duration(d))
			}
			if i > 0 && d+int64(spacing) < delays[i-1] {
				t.Fatalf("spacing %v: packet %d overtakes by %v", spacing, i,
					time.Duration(delays[i-1]-d-int64(spacing)))
			}
		}
		independent := float64(n) * math.Min(1, float64(spacing)/float64(jitterStep))
		if independent < 100 {
			continue
		}
		want := float64(50*time.Millisecond + jitter/2)
		sigma := float64(jitter) / math.Sqrt(12*independent)
		if got := mean(delays); math.Abs(got-want) > 6*sigma {
			t.Errorf("spacing %v: mean %v, want %v", spacing, time.Duration(got), time.Duration(want))
		}
	}
}

func TestRateAndQueue(t *testing.T) {
	// 12 Mbit/s is one packet a millisecond. 2,000 packets at once into a queue of ten.
	p := Params{Rate: 12e6, Queue: 10 * packetBytes}
	delays, _, lost := pump(p, 2000, 0)
	if len(delays) != 10 || delays[9] != int64(10*time.Millisecond) || count(lost) != 1990 {
		t.Errorf("%d passed, %v lost: %v", len(delays), count(lost), delays)
	}
	// Twice the rate: half is lost, and the queue stays full.
	delays, _, lost = pump(p, 10000, time.Millisecond/2)
	if share := count(lost) / 10000; math.Abs(share-0.5) > 0.01 {
		t.Errorf("at twice the rate %v are lost", share)
	}
	if last := time.Duration(delays[len(delays)-1]); last < 9*time.Millisecond || last > 10*time.Millisecond {
		t.Errorf("the last waited %v", last)
	}
	// Half the rate: nothing waits.
	delays, _, lost = pump(p, 1000, 2*time.Millisecond)
	if count(lost) != 0 || delays[999] != int64(time.Millisecond) {
		t.Errorf("at half the rate %v are lost, delay %v", count(lost), time.Duration(delays[999]))
	}
}

func TestNewParametersKeepTheQueue(t *testing.T) {
	slow, fast := newStageConf(Params{Rate: 12e6}, &counters{}), newStageConf(Params{Rate: 120e6}, &counters{})
	s := newStage(1, 1)
	now := int64(time.Second)
	for range 20 {
		s.admit(slow, now, packetBytes) // 20 ms of queue
	}
	out, f := s.admit(fast, now, packetBytes)
	want := now + int64(2100*time.Microsecond)
	if f != passed || math.Abs(float64(out-want)) > 1000 {
		t.Errorf("21st packet at ten times the rate leaves after %v", time.Duration(out-now))
	}
	if out, _ := s.admit(newStageConf(Params{}, &counters{}), now, packetBytes); out != now {
		t.Errorf("without a bottleneck it leaves after %v", time.Duration(out-now))
	}
}

func TestMTU(t *testing.T) {
	if _, _, lost := pump(Params{MTU: packetBytes - 1}, 5, 0); count(lost) != 5 {
		t.Error("packets above the MTU passed")
	}
	if _, _, lost := pump(Params{MTU: packetBytes}, 5, 0); count(lost) != 0 {
		t.Error("packets of the MTU were dropped")
	}
}
