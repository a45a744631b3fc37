package load

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func startServer(t *testing.T) map[int]netip.AddrPort {
	t.Helper()
	at := map[int]netip.AddrPort{}
	s := &Server{Name: "unit"}
	// Free ports instead of the fixed ones, so that the test can run anywhere.
	s.Listen = func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, "127.0.0.1:0")
		if err == nil {
			_, port, _ := net.SplitHostPort(address)
			at[atoi(port)] = l.Addr().(*net.TCPAddr).AddrPort()
		}
		return l, err
	}
	ready := make(chan struct{})
	s.Packet = func(network, address string) (net.PacketConn, error) {
		p, err := net.ListenPacket(network, "127.0.0.1:0")
		if err == nil {
			at[PortUDP] = p.LocalAddr().(*net.UDPAddr).AddrPort()
		}
		close(ready) // the last socket that Run makes
		return p, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done: // before it had all its sockets
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return at
}

func atoi(s string) (n int) {
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}

var direct Dial = (&net.Dialer{}).DialContext

func TestFetchChecksEveryByte(t *testing.T) {
	at := startServer(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, size := range []int64{0, 1, 1000, 100_000, 3_000_001} {
		got, err := Fetch(ctx, direct, at[PortHTTP], size)
		if err != nil || got.Bytes != size || got.Server != "unit" || got.FirstByte <= 0 || got.Total < got.FirstByte {
			t.Errorf("Fetch(%d) = %+v, %v", size, got, err)
		}
		got, err = FetchTLS(ctx, direct, at[PortTLS], size)
		if err != nil || got.Bytes != size || got.Handshake <= got.Connect {
			t.Errorf("FetchTLS(%d) = %+v, %v", size, got, err)
		}
	}
}

func TestVerifyPatternFindsTheWrongByte(t *testing.T) {
	good, _ := io.ReadAll(io.LimitReader(NewPattern(5), 1000))
	if n, err := VerifyPattern(bytes.NewReader(good), 5); n != 1000 || err != nil {
		t.Fatalf("good pattern: %d, %v", n, err)
	}
	for _, i := range []int{0, 1, 7, 8, 999} {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if n, err := VerifyPattern(bytes.NewReader(bad), 5); n != int64(i) || err == nil {
			t.Errorf("wrong byte %d: found %d, %v", i, n, err)
		}
	}
	// Any shift must show: eight bytes lost, one doubled.
	if _, err := VerifyPattern(bytes.NewReader(append(good[:8:8], good[16:]...)), 5); err == nil {
		t.Error("eight lost bytes not seen")
	}
}

func TestServersSayWhatTheirPortsPromise(t *testing.T) {
	at := startServer(t)
	cases := []struct {
		port int
		send string
		want string
	}{
		{PortEcho, "hello", "hello"},
		{PortGreet, "x", "220 unit ready\r\nx"},
		{PortSink, "12345", "5"},
	}
	for _, c := range cases {
		conn, err := net.Dial("tcp", at[c.port].String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = io.WriteString(conn, c.send)
		_ = conn.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(conn); string(got) != c.want || err != nil {
			t.Errorf("port %d: %q, %v; want %q", c.port, got, err, c.want)
		}
		conn.Close()
	}
	conn, err := net.Dial("tcp", at[PortReset].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = conn.Write([]byte("x"))
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("reset port: %v, want a reset", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if rtt, err := EchoDatagram(ctx, direct, at[PortUDP], []byte("ping"), time.Second); err != nil || rtt <= 0 {
		t.Errorf("UDP echo: %v, %v", rtt, err)
	}
}
