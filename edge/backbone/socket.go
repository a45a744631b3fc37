package backbone

import (
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// readChunk reads at most n bytes, waiting for them without holding memory. c is nil at the end
// (err is nil then) and on an error.
func readChunk(rc syscall.RawConn, m *Memory, n int) (c *chunk, err error) {
	var rerr error
	werr := rc.Read(func(fd uintptr) bool {
		c = m.get(n)
		var k int
		for {
			k, rerr = unix.Read(int(fd), c.b[c.w:min(len(c.b), c.w+n)])
			if rerr != unix.EINTR {
				break
			}
		}
		if k > 0 {
			c.w += k
			return true
		}
		m.put(c)
		c = nil
		return rerr != unix.EAGAIN
	})
	switch {
	case c != nil:
		return c, nil
	case werr != nil:
		return nil, werr
	case rerr != nil:
		return nil, os.NewSyscallError("read", rerr)
	}
	return nil, nil
}
