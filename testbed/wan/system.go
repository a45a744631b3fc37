package wan

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openTUN makes a TUN interface in the calling thread's namespace that hands superpackets over whole.
func openTUN(name string) (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, fmt.Errorf("make tun %s: %w", name, err)
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.2: UDP trains are segmented by the kernel
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp)
	}
	if err != nil {
		return -1, fmt.Errorf("set offloads of tun %s: %w", name, err)
	}
	return fd, nil
}

// The engine's reads, writes and short sleeps are raw system calls: the Go scheduler doesn't hear of them,
// and so can't give the engine's processor (P) away, which would cost more than the call. The P is held
// meanwhile.

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func rawWrite(fd int, b []byte) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return e
}

func rawWrite2(fd int, a, b []byte) unix.Errno {
	iov := [2]unix.Iovec{{Base: &a[0], Len: uint64(len(a))}, {Base: &b[0], Len: uint64(len(b))}}
	_, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), 2)
	return e
}

// rawPoll waits up to d for one of fds, holding the P.
func rawPoll(fds []unix.PollFd, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
}

// idlePoll waits up to d for one of fds and lets other goroutines have the P.
func idlePoll(fds []unix.PollFd, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Ppoll(fds, &ts, nil) //nolint:errcheck // EINTR is a wake-up like any other
}

// clock tells and waits for CLOCK_MONOTONIC time in ns. Go's own monotonic clock is the same one, at an
// offset, and reading it doesn't enter the kernel.
type clock struct {
	start time.Time
	base  int64
}

func newClock() clock {
	var ts unix.Timespec
	start := time.Now()
	// Can't fail: the clock exists on every Linux, and ts is ours.
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) //nolint:errcheck
	return clock{start: start, base: ts.Nano()}
}

func (c *clock) now() int64 { return c.base + int64(time.Since(c.start)) }

// rawSleepUntil sleeps until t, holding the P. Signals (the runtime sends itself some) don't end it.
func (c *clock) rawSleepUntil(t int64) {
	ts := unix.NsecToTimespec(t)
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME,
			uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if e != unix.EINTR {
			return
		}
	}
}

// becomeRealtime puts the calling thread ahead of all normal threads and lets its sleeps end on time. Without
// the privilege the engine works too, but is late under load, which its statistics show.
func becomeRealtime() error {
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	attr := unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realtimePriority,
		Flags: unix.SCHED_FLAG_RESET_ON_FORK,
	}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("become SCHED_FIFO: %w", err)
	}
	return nil
}
