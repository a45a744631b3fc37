package tune

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// Stats count what the program did since it was loaded.
type Stats struct {
	Connections uint64 // of sockets with a leg
	Raised      uint64 // started with a learned window
	Unknown     uint64 // network not known, or too long ago
	PathChanged uint64 // known, but the handshake took much longer than it should
	Crowded     uint64 // known, but other connections had just been given its window
	Overshot    uint64 // a raised first flight lost too much; its network's window was halved
	Learned     uint64 // connections that ended
	SamplesLost uint64 // the ring of samples was full
}

// Stats reads the counters.
func (t *Tuner) Stats() (Stats, error) {
	var s Stats
	for i, n := range []*uint64{&s.Connections, &s.Raised, &s.Unknown, &s.PathChanged, &s.Crowded, &s.Overshot,
		&s.Learned, &s.SamplesLost} {
		var perCPU []uint64
		if err := t.objs.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return s, fmt.Errorf("read counter %d: %w", i, err)
		}
		for _, v := range perCPU {
			*n += v
		}
	}
	return s, nil
}

// Network is what is known of a client network.
type Network struct {
	Prefix   netip.Prefix
	Window   int           // segments, before age is taken off
	RTT      time.Duration // smallest, averaged over connections
	Overshot int           // times that a raised first flight lost too much
	Learned  uint64        // connections that taught it
}

func network(key uint64, n tuneNetwork) Network {
	return Network{
		Prefix: prefixOf(key), Window: int(n.Window), RTT: time.Duration(n.RttUs) * time.Microsecond,
		Overshot: int(n.Overshot), Learned: n.Learned,
	}
}

// Network returns what is known of an address's network.
func (t *Tuner) Network(a netip.Addr) (n Network, known bool, err error) {
	var value tuneNetwork
	key := networkOf(a)
	err = t.objs.Networks.Lookup(key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Network{}, false, nil
	}
	if err != nil {
		return Network{}, false, fmt.Errorf("look up network of %v: %w", a, err)
	}
	return network(key, value), true, nil
}

// Networks calls yield for every known network until it returns false.
func (t *Tuner) Networks(yield func(Network) bool) error {
	var key uint64
	var value tuneNetwork
	for entries := t.objs.Networks.Iterate(); ; {
		if !entries.Next(&key, &value) {
			return entries.Err()
		}
		if !yield(network(key, value)) {
			return nil
		}
	}
}

// Forget makes an address's network unknown.
func (t *Tuner) Forget(a netip.Addr) error {
	err := t.objs.Networks.Delete(networkOf(a))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget network of %v: %w", a, err)
	}
	return nil
}

// Sample is what a connection saw.
type Sample struct {
	Prefix        netip.Prefix // of the other end
	Leg           Leg
	Duration      time.Duration
	BytesAcked    uint64 // sent, and received by the other end
	BytesReceived uint64
	RTT           time.Duration // smallest
	RTTSmoothed   time.Duration // at the end
	Delivered     int           // segments
	Retransmitted int           // segments
	Window        int           // initial window given; 0: the kernel's
	LearnedWindow int           // of the network, afterwards
	Best          int           // segments a smallest RTT that the path was seen to deliver
}

// Samples calls fn for every sample until ctx ends. One goroutine may do so; fn must be quick, as what the
// ring (256 KB, 3,000 samples) can't hold is lost and counted.
func (t *Tuner) Samples(ctx context.Context, fn func(Sample)) error {
	r, err := ringbuf.NewReader(t.objs.Samples)
	if err != nil {
		return fmt.Errorf("open ring of samples: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	defer r.Close()
	var record ringbuf.Record
	for {
		err := r.ReadInto(&record)
		if errors.Is(err, os.ErrClosed) {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read sample: %w", err)
		}
		var s tuneSample
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &s); err != nil {
			return fmt.Errorf("decode sample: %w", err)
		}
		fn(s.sample())
	}
}

func (s tuneSample) sample() Sample {
	us := func(n uint32) time.Duration { return time.Duration(n) * time.Microsecond }
	return Sample{
		Prefix: prefixOf(s.Network), Leg: Leg(s.Leg), Duration: time.Duration(s.DurationNs),
		BytesAcked: s.BytesAcked, BytesReceived: s.BytesReceived,
		RTT: us(s.RttUs), RTTSmoothed: us(s.RttSmoothedUs),
		Delivered: int(s.Delivered), Retransmitted: int(s.Retransmitted),
		Window: int(s.Window), LearnedWindow: int(s.LearnedWindow), Best: int(s.Best),
	}
}
