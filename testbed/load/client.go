package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Dial opens a connection as a client of some city would; a world's hosts provide one each.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Times are what one request took, each from the moment before connecting.
type Times struct {
	Connect   time.Duration // the TCP handshake is done
	Handshake time.Duration // the TLS handshake is done; 0 without TLS
	FirstByte time.Duration // the first byte of the answer
	Total     time.Duration // the last byte
	Bytes     int64         // of the body
	Server    string        // who answered
}

// Fetch downloads size bytes of a Server's pattern on a fresh connection and checks each byte.
func Fetch(ctx context.Context, dial Dial, addr netip.AddrPort, size int64) (Times, error) {
	return fetch(ctx, dial, addr, size, nil)
}

// FetchTLS is Fetch through TLS 1.3 (a full handshake, no resumption).
func FetchTLS(ctx context.Context, dial Dial, addr netip.AddrPort, size int64) (Times, error) {
	// The certificate is the test server's own; who it is does not matter to what is measured.
	return fetch(ctx, dial, addr, size, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
}

func fetch(ctx context.Context, dial Dial, addr netip.AddrPort, size int64, config *tls.Config) (Times, error) {
	var t Times
	begin := time.Now()
	c, err := dial(ctx, "tcp", addr.String())
	if err != nil {
		return t, fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	t.Connect = time.Since(begin)
	if config != nil {
		tc := tls.Client(c, config)
		if err := tc.HandshakeContext(ctx); err != nil {
			return t, fmt.Errorf("TLS handshake: %w", err)
		}
		t.Handshake = time.Since(begin)
		c = tc
	}
	if _, err := fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: load\r\n\r\n", size); err != nil {
		return t, fmt.Errorf("send the request: %w", err)
	}
	first := &firstByteReader{r: c, begin: begin}
	r := bufio.NewReaderSize(first, 64<<10)
	length, server, err := readHead(r)
	if err != nil {
		return t, err
	}
	t.FirstByte, t.Server = first.at, server
	if length != size {
		return t, fmt.Errorf("answer has %d bytes, asked for %d", length, size)
	}
	t.Bytes, err = VerifyPattern(io.LimitReader(r, size), 0)
	t.Total = time.Since(begin)
	if err == nil && t.Bytes != size {
		err = fmt.Errorf("body ended after %d of %d bytes: %w", t.Bytes, size, io.ErrUnexpectedEOF)
	}
	return t, err
}

type firstByteReader struct {
	r     io.Reader
	begin time.Time
	at    time.Duration
}

func (f *firstByteReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if n > 0 && f.at == 0 {
		f.at = time.Since(f.begin)
	}
	return n, err
}

func readHead(r *bufio.Reader) (length int64, server string, err error) {
	status, err := r.ReadString('\n')
	if err != nil {
		return 0, "", fmt.Errorf("read the answer: %w", err)
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200") {
		return 0, "", fmt.Errorf("answer is %q", strings.TrimSpace(status))
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, "", fmt.Errorf("read the answer's header: %w", err)
		}
		line = strings.TrimSpace(line)
		if line == "" {
			return length, server, nil
		}
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "Content-Length":
			if length, err = strconv.ParseInt(value, 10, 64); err != nil {
				return 0, "", fmt.Errorf("answer's length: %w", err)
			}
		case "Server":
			server = value
		}
	}
}

// VerifyPattern reads r to its end and checks that it is the pattern from position pos on. It
// returns how many bytes were right, and an error at the first wrong one.
func VerifyPattern(r io.Reader, pos uint64) (int64, error) {
	buf, want := make([]byte, 64<<10), make([]byte, 64<<10)
	pattern, total := NewPattern(pos), int64(0)
	for {
		n, err := r.Read(buf)
		_, _ = pattern.Read(want[:n])
		if !bytes.Equal(buf[:n], want[:n]) {
			i := 0
			for buf[i] == want[i] {
				i++
			}
			return total + int64(i), fmt.Errorf("byte %d is %#02x, want %#02x", total+int64(i), buf[i], want[i])
		}
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("after %d bytes: %w", total, err)
		}
	}
}

// EchoDatagram sends one datagram and waits for its echo, sending again every resend until ctx ends
// (UDP may lose either). It returns the round trip of the copy that was answered.
func EchoDatagram(ctx context.Context, dial Dial, addr netip.AddrPort, payload []byte,
	resend time.Duration) (time.Duration, error) {
	c, err := dial(ctx, "udp", addr.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 65535)
	for ctx.Err() == nil {
		sent := time.Now()
		if _, err := c.Write(payload); err != nil {
			return 0, err
		}
		_ = c.SetReadDeadline(sent.Add(resend))
		n, err := c.Read(buf)
		switch {
		case err == nil && bytes.Equal(buf[:n], payload):
			return time.Since(sent), nil
		case err == nil:
			return 0, fmt.Errorf("echo of %d bytes differs from the %d sent", n, len(payload))
		case !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err):
			return 0, err
		}
	}
	return 0, fmt.Errorf("no echo: %w", ctx.Err())
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
