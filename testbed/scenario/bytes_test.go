package scenario

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/wan"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestBytes shows that what clients send and get is what arrives: every byte, in order, whatever the
// network does to the packets.
func TestBytes(t *testing.T) {
	d := raise(t, "main", nil, world.Options{})
	t.Run("half-close", d.halfClose)
	t.Run("server speaks first", d.serverFirst)
	t.Run("reset travels as reset", d.reset)
	t.Run("idle connections stay", d.idle)
	t.Run("a million datagrams", d.datagrams)
	t.Run("datagrams of every size", d.datagramSizes)
	t.Run("clients that never read", d.neverRead)
	t.Run("a gibibyte at 1 % loss", d.gibibyte)
	t.Run("UDP blocked between nodes", d.udpBlocked)
}

func (d *deployment) dial(t *testing.T, city string, port int) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	c, err := d.Dial(city)(ctx, "tcp", d.at(port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

// halfClose ends the client's side first and still gets everything: the sink answers only then.
func (d *deployment) halfClose(t *testing.T) {
	c := d.dial(t, "jakarta", load.PortSink)
	const size = 5_000_000
	if _, err := io.Copy(c, io.LimitReader(load.NewPattern(0), size)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != fmt.Sprint(size) {
		t.Fatalf("answer %q, %v; want %d", answer, err, size)
	}
}

func (d *deployment) serverFirst(t *testing.T) {
	c := d.dial(t, "jakarta", load.PortGreet)
	line := make([]byte, 4)
	if _, err := io.ReadFull(c, line); err != nil || string(line) != "220 " {
		t.Fatalf("greeting %q, %v", line, err)
	}
}

func (d *deployment) reset(t *testing.T) {
	c := d.dial(t, "jakarta", load.PortReset)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v, want a reset", err)
	}
	// The other way: the endpoint's side of a flow that the client resets goes away too.
	c = d.dial(t, "jakarta", load.PortSource)
	if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetLinger(0)
	c.Close()
	eventually(t, 60*time.Second, "the endpoint's connection ends", func() error {
		if n := metric(t, d.Nodes["sin-1"], "nearcast_relay_tcp_flows"); n != 0 {
			return fmt.Errorf("%v flows left on the edge", n)
		}
		return nil
	})
}

func (d *deployment) idle(t *testing.T) {
	c := d.dial(t, "jakarta", load.PortEcho)
	for i := range 3 {
		msg := fmt.Sprintf("message %d", i)
		if _, err := io.WriteString(c, msg); err != nil {
			t.Fatal(err)
		}
		in := make([]byte, len(msg))
		if _, err := io.ReadFull(c, in); err != nil || string(in) != msg {
			t.Fatalf("echo %q, %v", in, err)
		}
		time.Sleep(2 * time.Second) // silence is what is tested
	}
}

func (d *deployment) datagrams(t *testing.T) {
	g := &load.Datagrams{Dial: d.Dial("jakarta"), Addr: d.at(load.PortUDP),
		Clients: 200, Total: 1_000_000, Window: 8, SizeMax: 1200, Seed: 7}
	begin := time.Now()
	if err := g.Run(d.ctx); err != nil {
		t.Fatal(err)
	}
	lost := g.Sent.Load() - g.Echoed.Load()
	t.Logf("%d datagrams from %d clients in %.0f s, %d lost, %d foreign, %d damaged", g.Sent.Load(), g.Clients,
		time.Since(begin).Seconds(), lost, g.Foreign.Load(), g.Damaged.Load())
	if g.Foreign.Load() != 0 || g.Damaged.Load() != 0 {
		t.Error("datagrams reached the wrong client or were changed")
	}
	if lost > g.Sent.Load()/1000 {
		t.Errorf("%d of %d datagrams lost on a network that loses none", lost, g.Sent.Load())
	}
}

func (d *deployment) datagramSizes(t *testing.T) {
	payload := make([]byte, 65507)
	if _, err := io.ReadFull(load.NewPattern(0), payload); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 500, 1200, 1400, 1472, 1473, 4000, 9000, 65507} {
		ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
		_, err := load.EchoDatagram(ctx, d.Dial("jakarta"), d.at(load.PortUDP), payload[:size], 2*time.Second)
		cancel()
		if err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// neverRead opens 1,000 connections that ask for endless data and read none of it, and 1,000 seconds'
// worth of patience is not needed: memory must stand still soon.
func (d *deployment) neverRead(t *testing.T) {
	edge, gateways := d.Nodes["sin-1"], []*world.Process{d.Nodes["fra-1"], d.Nodes["fra-2"]}
	memory := func() (edgeBytes, gatewayBytes float64) {
		for _, g := range gateways {
			gatewayBytes = max(gatewayBytes, metric(t, g, "process_resident_memory_bytes"))
		}
		return metric(t, edge, "process_resident_memory_bytes"), gatewayBytes
	}
	e0, g0 := memory()
	for range 1000 {
		c := d.dial(t, "jakarta", load.PortSource)
		_ = c.SetReadBuffer(4096)
	}
	// The pipes fill, as fast as the machine can; then nothing may grow any more.
	eventually(t, 4*time.Minute, "memory stands still while clients do not read", func() error {
		e1, g1 := memory()
		time.Sleep(10 * time.Second)
		e2, g2 := memory()
		t.Logf("edge: %s before, %s filled, %s ten seconds later; gateway: %s, %s, %s",
			mib(e0), mib(e1), mib(e2), mib(g0), mib(g1), mib(g2))
		if e2 > e1*1.1+16<<20 || g2 > g1*1.1+16<<20 {
			return errors.New("it grows")
		}
		return nil
	})
	if _, err := d.fetchFrom("jakarta"); err != nil {
		t.Errorf("others suffer: %v", err)
	}
}

func (d *deployment) gibibyte(t *testing.T) {
	lossy := func(loss float64) {
		for _, link := range wan.Both("sin", "fra", wan.Params{}) {
			if err := d.Fabric.Update(link.From, link.To, func(p *wan.Params) { p.Loss = loss }); err != nil {
				t.Fatal(err)
			}
		}
	}
	lossy(0.01)
	defer lossy(0)
	const size = 1 << 30
	c := d.dial(t, "jakarta", world.ListenHTTP)
	_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
	fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: x\r\n\r\n", size)
	begin := time.Now()
	head := make([]byte, 0, 1024)
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			t.Fatal(err)
		}
		head = append(head, b[0])
	}
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, io.LimitReader(c, size))
	if err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	took := time.Since(begin)
	_, _ = io.Copy(want, io.LimitReader(load.NewPattern(0), size))
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Error("SHA-256 differs")
	}
	t.Logf("1 GiB in %.1f s: %.0f Mbit/s, SHA-256 equal", took.Seconds(), size*8/took.Seconds()/1e6)
}

func (d *deployment) udpBlocked(t *testing.T) {
	for _, link := range wan.Both("sin", "fra", wan.Params{}) {
		if err := d.Fabric.Block(link.From, link.To, wan.UDP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Fabric.Unblock(link.From, link.To, wan.UDP) }()
	}
	took := eventually(t, 30*time.Second, "datagrams ride the carriers", func() error {
		ctx, cancel := context.WithTimeout(d.ctx, 2*time.Second)
		defer cancel()
		_, err := load.EchoDatagram(ctx, d.Dial("jakarta"), d.at(load.PortUDP), []byte("over TCP"), time.Second)
		return err
	})
	t.Logf("UDP blocked between the nodes: a datagram was answered after %v", took.Round(time.Millisecond))
	eventually(t, 2*time.Minute, "status says so", func() error {
		text, err := d.CLI(d.ctx, "status")
		if err != nil || !strings.Contains(text, "UDP") {
			return fmt.Errorf("status does not speak of UDP: %v", err)
		}
		return nil
	})
}
