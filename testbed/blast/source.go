package blast

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

// Kernel flags and sizes of live frames (linux/bpf.h).
const (
	liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	burst      = 1 << 16
)

// Source sends one Stream.
type Source struct {
	objs  blastObjects
	frame []byte
	links []link.Link
}

// New loads the programs for a stream that leaves by an interface of the namespace. Frames of a Source pass no
// part of that namespace's network stack. The other end of the cable must take frames as a driver does: have a
// native XDP program, or generic receive offload.
func New(ns *netns.NS, dev string, s Stream) (*Source, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	spec, err := loadBlast()
	if err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	out := &Source{}
	frame, ipSum, l4Sum := s.frame()
	value := blastStream{Networks: uint32(s.Networks), Hosts: s.hosts(), Length: uint32(len(frame)), IpSum: ipSum, L4Sum: l4Sum}
	if s.TCP {
		value.Tcp = 1
	}
	if s.Destination.Addr().Is6() {
		value.V6 = 1
	}
	padded := make([]byte, 4*len(value.Frame))
	if copy(padded, frame) < len(frame) {
		return nil, fmt.Errorf("a frame of %d bytes is longer than %d", len(frame), len(padded))
	}
	for i := range value.Frame {
		value.Frame[i] = binary.NativeEndian.Uint32(padded[4*i:])
	}
	out.frame = frame
	err = ns.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			value.Interface = uint32(i.Index)
		}
		return err
	})
	if err == nil {
		err = spec.Variables["stream"].Set(value)
	}
	if err == nil {
		err = spec.LoadAndAssign(&out.objs, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	return out, nil
}

// Run sends, as fast as one CPU can, until ctx ends.
func (s *Source) Run(ctx context.Context, ns *netns.NS, cpu int) error {
	return ns.Do(func() error {
		home, err := bindThread(cpu)
		if err != nil {
			return err
		}
		defer home()
		for ctx.Err() == nil {
			_, err := s.objs.Send.Run(&ebpf.RunOptions{Data: s.frame, Repeat: burst, Flags: liveFrames})
			if err != nil {
				return fmt.Errorf("send live frames (Linux 5.18): %w", err)
			}
		}
		return nil
	})
}

// bindThread binds the calling thread to a CPU. The function that it returns takes that back.
func bindThread(cpu int) (home func(), err error) {
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("bind to CPU %d: %w", cpu, err)
	}
	return func() { _ = unix.SchedSetaffinity(0, &before) }, nil
}

// Sink has what comes back to an interface of the namespace counted, and thrown away.
func (s *Source) Sink(ns *netns.NS, dev string) error {
	return ns.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: s.objs.Sink, Interface: i.Index, Flags: link.XDPDriverMode})
		if err != nil {
			return fmt.Errorf("attach sink to %s: %w", dev, err)
		}
		s.links = append(s.links, l)
		return nil
	})
}

// Count has what reaches a UDP socket counted, and thrown away, so that nobody has to read it.
func (s *Source) Count(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	serr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_BPF, s.objs.Arrived.FD())
	})
	return errors.Join(serr, err)
}

// Counts are what a Source has seen since it was made.
type Counts struct {
	Back    uint64 // packets that came back to the Sink
	SYNACKs uint64 // of these
	Arrived uint64 // packets that reached the socket
}

// Counts returns the counts.
func (s *Source) Counts() (c Counts, err error) {
	for i, to := range []*uint64{&c.Back, &c.SYNACKs, &c.Arrived} {
		per := make([]uint64, runtime.NumCPU())
		if err := s.objs.Counts.Lookup(uint32(i), &per); err != nil {
			return c, fmt.Errorf("read counts: %w", err)
		}
		for _, n := range per {
			*to += n
		}
	}
	return c, nil
}

// Close takes the sinks away.
func (s *Source) Close() error {
	var errs []error
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, s.objs.Close())...)
}
