package listen

import (
	"fmt"
	"maps"
	"slices"
	"syscall"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// metrics count what the Set does.
type metrics struct {
	all          []prometheus.Collector
	accepted     prometheus.Counter
	acceptErrors prometheus.Counter
	readErrors   prometheus.Counter
	answersFull  prometheus.Counter
	answersError prometheus.Counter
}

func newMetrics(s *Set) *metrics {
	m := &metrics{}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "nearcast_listen_" + name, Help: help})
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		opts := prometheus.GaugeOpts{Name: "nearcast_listen_" + name, Help: help}
		m.all = append(m.all, prometheus.NewGaugeFunc(opts, f))
	}
	m.accepted = counter("accepted_total", "TCP connections accepted from clients.")
	m.acceptErrors = counter("accept_errors_total", "Times that no connection could be accepted, for lack of descriptors mostly.")
	m.readErrors = counter("read_errors_total", "Times that a UDP socket could not be read.")
	m.answersFull = counter("answer_sockets_full_total",
		"Datagrams dropped because there were too many sockets to answer from.")
	m.answersError = counter("answer_socket_errors_total",
		"Datagrams dropped because no socket to answer from could be opened: another process has the port, mostly.")
	gauge("sockets", "Open sockets for accelerated addresses: one a port, or few with the kernel's dispatcher.", func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.sockets) + len(s.shared.sockets))
	})
	gauge("answer_sockets", "Sockets that answers to datagrams leave from, with the kernel's dispatcher.", func() float64 {
		return float64(s.answers.count.Load())
	})
	gauge("sockets_missing", "Ports of accelerated addresses that could not be opened.", func() float64 {
		return float64(s.Missing())
	})
	gauge("kernel_drops", "Datagrams that the kernel dropped because the open UDP sockets' buffers were full.", func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := uint64(0)
		for _, k := range slices.AppendSeq(slices.Clone(s.shared.sockets), maps.Values(s.sockets)) {
			for _, c := range k.udp {
				n += c.Stats().KernelDrops
			}
		}
		return float64(n)
	})
	gauge("backlog_drops", "SYNs that the kernel dropped because too many connections waited at the open TCP sockets.", func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := uint64(0)
		for _, k := range s.sockets {
			if k.tcp != nil {
				n += socketDrops(k.tcp)
			}
		}
		for _, k := range s.shared.sockets {
			if k.tcp != nil {
				n += socketDrops(k.tcp)
			}
		}
		return float64(n)
	})
	return m
}

// socketDrops returns what the kernel dropped at a socket (SO_MEMINFO of socket(7): nine counters, the
// last of which it is).
func socketDrops(c syscall.Conn) uint64 {
	var info [9]uint32
	rc, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(info))
		_, _, _ = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return uint64(info[len(info)-1])
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// control sets the options of a listening socket before it is bound. Its connections inherit them.
func control(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		for _, o := range []struct {
			level, name, value int
			what               string
		}{
			{unix.SOL_IP, unix.IP_FREEBIND, 1, "IP_FREEBIND"},
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE"},
			{unix.SOL_TCP, unix.TCP_KEEPIDLE, keepAliveIdle, "TCP_KEEPIDLE"},
			{unix.SOL_TCP, unix.TCP_KEEPINTVL, keepAliveInterval, "TCP_KEEPINTVL"},
			{unix.SOL_TCP, unix.TCP_KEEPCNT, keepAliveCount, "TCP_KEEPCNT"},
			{unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, notsentLowat, "TCP_NOTSENT_LOWAT"},
		} {
			if e := unix.SetsockoptInt(int(fd), o.level, o.name, o.value); e != nil && err == nil {
				err = fmt.Errorf("set %s: %w", o.what, e)
			}
		}
	})
	if err == nil {
		err = cerr
	}
	return err
}
