package blast

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

const (
	floodBatch = 64 // frames a system call
	floodEvery = time.Millisecond
	behindMax  = 20 * time.Millisecond // of frames that are made up for, when the machine was busy
)

// Flood sends a Stream at a rate, from one CPU, by a packet socket.
type Flood struct {
	Stream
	PerSecond int
	CPU       int
}

// flooder has all that a system call needs, made once.
type flooder struct {
	fd      int
	v6, tcp bool
	hosts   uint32
	nets    uint32
	ipSum   uint32
	l4Sum   uint32
	frames  [floodBatch][]byte
	vectors [floodBatch]unix.Iovec
	heads   [floodBatch]message
	rnd     *rand.Rand
}

// message is struct mmsghdr.
type message struct {
	head unix.Msghdr
	sent uint32
	_    [4]byte
}

// Run sends out of an interface of the namespace until ctx ends, and returns how many frames went.
func (f Flood) Run(ctx context.Context, ns *netns.NS, dev string) (sent int, err error) {
	if err := f.validate(); err != nil {
		return 0, err
	}
	err = ns.Do(func() error {
		home, err := bindThread(f.CPU)
		if err != nil {
			return err
		}
		defer home()
		x, err := f.open(dev)
		if err != nil {
			return err
		}
		defer unix.Close(x.fd)
		begin, due := time.Now(), 0.0
		for last := begin; ctx.Err() == nil; {
			now := time.Now()
			// What could not be sent in time is not sent in one lump: that is no rate.
			due += float64(f.PerSecond) * min(now.Sub(last), behindMax).Seconds()
			for last = now; due >= floodBatch; due -= floodBatch {
				n, err := x.batch()
				if err != nil {
					return err
				}
				sent += n
			}
			pause := unix.NsecToTimespec(int64(floodEvery))
			_ = unix.Nanosleep(&pause, nil) // the runtime's timers are late by as much again
		}
		return nil
	})
	return sent, err
}

func (f Flood) open(dev string) (*flooder, error) {
	i, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, err
	}
	frame, ipSum, l4Sum := f.frame()
	x := &flooder{tcp: f.TCP, v6: f.Destination.Addr().Is6(), hosts: f.hosts(), nets: uint32(f.Networks), ipSum: ipSum, l4Sum: l4Sum,
		rnd: rand.New(rand.NewPCG(3, 4))}
	if x.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	err = unix.Bind(x.fd, &unix.SockaddrLinklayer{Ifindex: i.Index})
	if err == nil {
		err = unix.SetsockoptInt(x.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	if err != nil {
		unix.Close(x.fd)
		return nil, fmt.Errorf("prepare packet socket on %s: %w", dev, err)
	}
	for i := range x.frames {
		x.frames[i] = append([]byte(nil), frame...)
		x.vectors[i].Base = &x.frames[i][0]
		x.vectors[i].SetLen(len(frame))
		x.heads[i].head.Iov = &x.vectors[i]
		x.heads[i].head.SetIovlen(1)
	}
	return x, nil
}

// batch sends so many frames, each of another source.
func (x *flooder) batch() (sent int, err error) {
	for i := range x.frames {
		x.vary(x.frames[i])
	}
	n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(x.fd), uintptr(unsafe.Pointer(&x.heads[0])), floodBatch, 0, 0, 0)
	if e != 0 && !errors.Is(e, unix.ENOBUFS) && !errors.Is(e, unix.EINTR) {
		return 0, fmt.Errorf("send frames: %w", e)
	}
	if e != 0 {
		return 0, nil
	}
	return int(n), nil
}

// vary is what blast.c's send does.
func (x *flooder) vary(b []byte) {
	random, other := x.rnd.Uint32(), x.rnd.Uint32()
	block := uint32(uint64(random)*uint64(x.nets)>>32) * 0x9E3779B1 & (NetworksMax - 1)
	l4, sum := b[34:], uint64(x.l4Sum)
	native := binary.NativeEndian
	if x.v6 {
		be.PutUint32(b[22:], 0x2a<<24|block)
		be.PutUint32(b[26:], other&x.hosts)
		l4, sum = b[54:], sum+uint64(native.Uint32(b[22:]))+uint64(native.Uint32(b[26:]))
	} else {
		be.PutUint32(b[26:], 1<<29|block<<10|other&x.hosts)
		sum += uint64(native.Uint32(b[26:]))
		native.PutUint16(b[24:], checksum(uint64(x.ipSum)+uint64(native.Uint32(b[26:]))))
	}
	be.PutUint16(l4, uint16(other>>16)|1024)
	sum += uint64(native.Uint16(l4))
	if x.tcp {
		native.PutUint32(l4[4:], random)
		native.PutUint16(l4[16:], checksum(sum+uint64(random)))
		return
	}
	native.PutUint16(l4[6:], checksum(sum))
}
