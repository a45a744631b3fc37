package guard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Reason says what became of a packet, and why. The order is the program's.
type Reason uint32

// The reasons.
const (
	PassForeign   Reason = iota // not for an accelerated address, not IP, or too short to tell
	PassListener                // a listener wants it
	PassOther                   // no listener's, but the address is not exclusive; ICMP; a later fragment
	Answered                    // the program itself answered a SYN with a cookie
	DropMalformed               // lengths or flags that no sender means
	DropSpoofed                 // a source address that can't be one
	DropFragment                // the address or the listener takes no fragments
	DropNobody                  // exclusive address, and no listener wants it
	DropDenied                  // by the listener's lists
	DropSource                  // the source is beyond its rate
	DropListener                // the listener is beyond its rate
	DropCookie                  // in a flood: an ACK that belongs to nothing and holds no valid cookie
	DropCountry                 // by the country of the source
	reasons
)

var reasonNames = [reasons]string{"foreign", "listener", "other", "answered", "malformed", "spoofed",
	"fragment", "nobody", "denied", "source", "total", "cookie", "country"}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Dropped says whether packets of this reason are dropped.
func (r Reason) Dropped() bool { return r >= DropMalformed }

// Count is how many packets had a reason.
type Count struct{ Packets, Bytes uint64 }

// Counts returns the packets of every reason since Load.
func (g *Guard) Counts() (map[Reason]Count, error) {
	out := make(map[Reason]Count, reasons)
	for r := range reasons {
		var perCPU []guardCount
		if err := g.objs.Counts.Lookup(uint32(r), &perCPU); err != nil {
			return nil, fmt.Errorf("read counter %v: %w", r, err)
		}
		var sum Count
		for _, c := range perCPU {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		out[r] = sum
	}
	return out, nil
}

// Event is a dropped packet.
type Event struct {
	Reason      Reason
	Proto       Proto // IP protocol number; 0 for what could not be read as far
	Source      netip.AddrPort
	Destination netip.AddrPort
	Length      int           // bytes on the wire
	Time        time.Duration // of the kernel's monotonic clock
}

// Events calls fn for every sampled drop until ctx ends. One goroutine may do so; what comes while the ring
// (256 KB, 3,000 events) is full is lost.
func (g *Guard) Events(ctx context.Context, fn func(Event)) error {
	r, err := ringbuf.NewReader(g.objs.Events)
	if err != nil {
		return fmt.Errorf("open ring of events: %w", err)
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
			return fmt.Errorf("read event: %w", err)
		}
		var e guardEvent
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &e); err != nil {
			return fmt.Errorf("decode event: %w", err)
		}
		fn(e.event())
	}
}

func (e guardEvent) event() Event {
	return Event{
		Reason: Reason(e.Reason), Proto: Proto(e.Protocol), Length: int(e.Length), Time: time.Duration(e.TimeNs),
		Source:      netip.AddrPortFrom(addressOf(e.Family, e.Source), e.SourcePort),
		Destination: netip.AddrPortFrom(addressOf(e.Family, e.Destination), e.DestinationPort),
	}
}

func addressOf(family uint8, words [4]uint32) netip.Addr {
	var raw [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(raw[4*i:], w)
	}
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(raw[:4]))
	}
	return netip.AddrFrom16(raw)
}
