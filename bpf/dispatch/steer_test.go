package dispatch

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onCPU runs fn in the client's namespace on one CPU. What it sends is received on that CPU, too.
func (w *world) onCPU(cpu int, fn func() error) error {
	return w.client.Do(func() error {
		var before, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return err
		}
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return err
		}
		defer unix.SchedSetaffinity(0, &before)
		return fn()
	})
}

// TestSteerTCPByCPU: a SYN goes to the socket of the CPU that works on it, and datagrams go by flow.
func TestSteerTCPByCPU(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{Steer: SteerTCPByCPU})
	var cpus unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &cpus))
	var tcp, udp []any
	for i := range 4 {
		tcp = append(tcp, w.tcp(t, fmt.Sprint("socket", i), loopback4))
		udp = append(udp, w.udp(t, "", loopback4))
	}
	must(t, d.SetSockets([]Group{{0, TCP, IPv4, conns(t, tcp...)}, {0, UDP, IPv4, conns(t, udp...)}}))
	must(t, d.Update([]Rule{{accelerated4, everyPort, TCP, 0}, {accelerated4, everyPort, UDP, 0}}))
	tried := 0
	for cpu := range 64 {
		if !cpus.IsSet(cpu) {
			continue
		}
		tried++
		want := fmt.Sprintf("socket%d %v", cpu%4, addrPort(v4, 80))
		err := w.onCPU(cpu, func() error {
			for range 20 {
				c, err := net.Dial("tcp4", addrPort(v4, 80).String())
				if err != nil {
					return err
				}
				b := make([]byte, 100)
				_ = c.SetReadDeadline(time.Now().Add(patience))
				n, err := c.Read(b)
				c.Close()
				if err != nil || string(b[:n]) != want {
					return fmt.Errorf("a connection of CPU %d met %q, %w, want %q", cpu, b[:n], err, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if tried == 0 {
		t.Error("no CPU was tried")
	}
	must(t, w.onCPU(firstOf(&cpus), func() error {
		for range 64 {
			c, err := net.Dial("udp4", addrPort(v4, 53).String())
			if err != nil {
				return err
			}
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
			c.Close()
		}
		return nil
	}))
	for _, c := range udp {
		wantDatagram(t, c.(*net.UDPConn), "hello") // 64 flows by hash over 4 sockets: each has some
	}
}

func firstOf(cpus *unix.CPUSet) int {
	for cpu := range 1024 {
		if cpus.IsSet(cpu) {
			return cpu
		}
	}
	return 0
}
