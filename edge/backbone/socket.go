package backbone

import (
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/proto/wire"
)

// tcpRecovery is TCP_CA_Recovery of linux/tcp.h: from this state on the kernel repairs a loss.
const tcpRecovery = 3

// tcpSample is what TCP_INFO says about a connection at one moment.
type tcpSample struct {
	ok          bool
	caState     uint8
	backoff     uint8
	rtt, minRTT time.Duration
	cwndBytes   int
	unacked     int    // bytes
	segments    uint32 // sent with data, ever, repeated ones included
	repeated    uint32
}

// sampleTCP asks the kernel; ok is false for what is no TCP socket.
func sampleTCP(conn net.Conn) (s tcpSample) {
	control(conn, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		s = tcpSample{
			ok: true, caState: info.Ca_state, backoff: info.Backoff,
			rtt:       time.Duration(info.Rtt) * time.Microsecond,
			minRTT:    time.Duration(info.Min_rtt) * time.Microsecond,
			cwndBytes: int(info.Snd_cwnd) * int(info.Snd_mss),
			unacked:   int(info.Unacked) * int(info.Snd_mss),
			segments:  info.Data_segs_out, repeated: info.Total_retrans,
		}
	})
	return s
}

// setupSocket sets what every carrier's socket needs. Nothing here is fatal: a carrier without it
// is slower and still right.
func setupSocket(conn net.Conn, congestionControl string, log *slog.Logger) {
	if tc, ok := conn.(*net.TCPConn); ok {
		_ = tc.SetNoDelay(true)
		_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
		})
	}
	control(conn, func(fd int) {
		err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notsentLowat)
		if err != nil {
			log.Debug("carrier without TCP_NOTSENT_LOWAT", "error", err)
		}
		if congestionControl == "" {
			// Until loss is known, whatever the host's default: BBR stalls a shared connection for
			// 200 ms now and then to measure the round trip.
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
			return
		}
		err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestionControl)
		if err != nil {
			log.Warn("carrier keeps the host's congestion control", "wanted", congestionControl, "error", err)
		}
	})
}

// chooseCongestionControl sets BBR, or CUBIC. Where the host does not let us, things stay as they
// are.
func chooseCongestionControl(conn net.Conn, bbr bool) {
	name := "cubic"
	if bbr {
		name = "bbr"
	}
	control(conn, func(fd int) {
		_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	})
}

// paceSocket has the kernel spread what a congestion window allows over the round trip. A window that
// is open after a pause would else leave at line rate, and overflow the first queue it meets.
func paceSocket(conn net.Conn) {
	control(conn, func(fd int) {
		_ = unix.SetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, pacingRateMax)
	})
}

func control(conn net.Conn, f func(fd int)) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	if rc, err := sc.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// keepWindows tells the kernel to keep the congestion windows of idle connections, for this network
// namespace. Carriers are idle between bursts; with the default they would slow-start at each.
func keepWindows(log *slog.Logger) {
	const path = "/proc/sys/net/ipv4/tcp_slow_start_after_idle"
	if now, err := os.ReadFile(path); err == nil && len(now) > 0 && now[0] == '0' {
		return
	}
	if err := os.WriteFile(path, []byte("0\n"), 0); err != nil {
		log.Warn("carriers lose their congestion windows when idle: set net.ipv4.tcp_slow_start_after_idle to 0",
			"error", err)
		return
	}
	log.Info("set net.ipv4.tcp_slow_start_after_idle to 0")
}

// A fdReader reads from a descriptor into chunks, and waits without holding memory. It takes more at
// once as long as there is more: each system call of a bulk transfer moves as much as a carrier
// writes in one go.
type fdReader struct {
	rc     syscall.RawConn
	memory *Memory
	try    func(fd uintptr) bool // readOnce, once made
	room   int                   // how much may be read now
	want   int                   // chunks to offer
	chunks [readChunks]*chunk
	vector [readChunks][]byte
	iov    [readChunks]unix.Iovec
	n      int
	err    error
}

func newFDReader(rc syscall.RawConn, m *Memory) *fdReader {
	r := &fdReader{rc: rc, memory: m, want: 1}
	r.try = r.readOnce
	return r
}

// read reads at most room bytes, into chunks that are the caller's then. None and no error is the
// end.
func (r *fdReader) read(room int) (chunks []*chunk, err error) {
	r.room, r.n, r.err = room, 0, nil
	if err := r.rc.Read(r.try); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, os.NewSyscallError("read", r.err)
	}
	used, left := 0, r.n
	for used < len(r.chunks) && r.chunks[used] != nil && left > 0 {
		c := r.chunks[used]
		c.w += min(left, len(r.vector[used]))
		left -= c.w - c.r
		used++
	}
	if used == r.want && r.chunks[used-1].room() == 0 {
		r.want = min(2*r.want, readChunks)
	} else {
		r.want = 1
	}
	for i := used; i < len(r.chunks) && r.chunks[i] != nil; i++ {
		r.memory.put(r.chunks[i])
		r.chunks[i] = nil
	}
	return r.chunks[:used], nil
}

// readOnce is called when there may be something to read. It reports false if there was nothing.
func (r *fdReader) readOnce(fd uintptr) bool {
	offered, room := 0, r.room
	for offered < r.want && room > 0 {
		c := r.memory.get(wire.DataMax)
		r.chunks[offered] = c
		r.vector[offered] = c.b[c.w:min(len(c.b), c.w+room)]
		room -= len(r.vector[offered])
		offered++
	}
	for i, v := range r.vector[:offered] {
		r.iov[i].Base = &v[0]
		r.iov[i].SetLen(len(v))
	}
	errno := unix.EINTR
	for errno == unix.EINTR { // it never blocks: the runtime need not know
		var n uintptr
		n, _, errno = unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&r.iov[0])), uintptr(offered))
		r.n = int(n)
	}
	if r.err = nil; errno != 0 {
		r.n, r.err = 0, errno
	}
	if r.n > 0 {
		return true
	}
	for i := range offered {
		r.memory.put(r.chunks[i])
		r.chunks[i] = nil
	}
	r.n = 0
	return r.err != unix.EAGAIN
}
