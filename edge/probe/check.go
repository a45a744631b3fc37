package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// result is the outcome of one check; reason is empty exactly if the endpoint passed.
type result struct {
	reason  string
	latency time.Duration
}

// checker performs checks. Each uses a connection of its own, which is closed after it: a check is
// to see what a new client would see.
type checker struct {
	dialer   net.Dialer
	resolver *net.Resolver
}

// check asks host once, within c.Timeout, and tries a few addresses of a name in turn.
func (k *checker) check(ctx context.Context, host string, c *model.HealthCheck, rules *model.EndpointRules) result {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	addrs, err := k.resolve(ctx, host)
	if err != nil {
		return result{reason: brief("resolve", err)}
	}
	if len(addrs) > addressesMax {
		addrs = addrs[:addressesMax]
	}
	res := result{reason: "resolve: no address"}
	for i, addr := range addrs {
		to := netip.AddrPortFrom(addr, c.Port)
		if err := rules.Check(to); err != nil {
			res.reason = brief("refused", err)
			continue
		}
		// What is left of the time is shared by the addresses that are left.
		deadline, _ := ctx.Deadline()
		share := time.Until(deadline) / time.Duration(len(addrs)-i)
		res.reason = k.ask(ctx, to, host, c, time.Now().Add(share))
		if res.reason == "" {
			res.latency = time.Since(start)
			return res
		}
	}
	return res
}

func (k *checker) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	addrs, err := k.resolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// ask checks one address and returns why it failed, or "".
func (k *checker) ask(ctx context.Context, to netip.AddrPort, host string, c *model.HealthCheck,
	deadline time.Time) string {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := k.dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return brief("connect", err)
	}
	defer conn.Close()
	if c.Protocol == model.HealthTCP {
		return ""
	}
	// A cancelled context must end the reads below too.
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if err := conn.SetDeadline(deadline); err != nil {
		return brief("connect", err)
	}
	if c.Protocol == model.HealthHTTPS {
		secure := tls.Client(conn, &tls.Config{
			// As load balancers do: an endpoint with an expired or self-signed certificate is not dead.
			// Old protocol versions are accepted for the same reason.
			InsecureSkipVerify: true,
			MinVersion:         tls.VersionTLS10,
			ServerName:         serverName(host, c.Host),
			NextProtos:         []string{"http/1.1"},
		})
		if err := secure.HandshakeContext(ctx); err != nil {
			return brief("tls", err)
		}
		conn = secure
	}
	code, err := fetch(conn, request(to, c))
	if err != nil {
		return brief("response", err)
	}
	codes, err := model.ParseCodes(c.ExpectedCodes)
	if err != nil {
		return brief("expected codes", err)
	}
	if !codes.Has(code) {
		return "status " + strconv.Itoa(code)
	}
	return ""
}

// request returns the bytes of a GET. It is written by hand since a check needs nothing that a
// client library adds: no redirects, no proxies, no reuse of connections.
func request(to netip.AddrPort, c *model.HealthCheck) string {
	host := c.Host
	if host == "" {
		host = to.String()
		standard := uint16(80)
		if c.Protocol == model.HealthHTTPS {
			standard = 443
		}
		if to.Port() == standard {
			host = strings.TrimSuffix(host, ":"+strconv.Itoa(int(standard)))
		}
	}
	path := c.Path
	if path == "" {
		path = model.DefaultHealthPath
	}
	return "GET " + oneLine(path) + " HTTP/1.1\r\nHost: " + oneLine(host) +
		"\r\nUser-Agent: nearcast-health-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
}

// oneLine drops what could end a header line early. Configuration is validated before; this holds
// even if it was not.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// serverName returns the TLS server name: the Host header's name, else the endpoint's.
func serverName(endpoint, host string) string {
	if host == "" {
		return endpoint
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

// fetch sends a request, returns the final status code, and reads a little of the body so that the
// connection ends in order.
func fetch(conn net.Conn, request string) (code int, err error) {
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, err
	}
	limited := &io.LimitedReader{R: conn, N: headerBytesMax}
	r := bufio.NewReader(limited)
	for range informationalMax + 1 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			if limited.N <= 0 {
				return 0, fmt.Errorf("headers longer than %d bytes", headerBytesMax)
			}
			return 0, err
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		limited.N = drainBytesMax
		// The deadline only moves nearer, or the context's end could be forgotten.
		if soon := time.Now().Add(drainWait); conn.SetReadDeadline(soon) == nil {
			io.Copy(io.Discard, r)
		}
		return resp.StatusCode, nil
	}
	return 0, fmt.Errorf("more than %d informational answers", informationalMax)
}

// brief says in a few words what an error was, without the addresses that the reader knows.
func brief(what string, err error) string {
	var timeout net.Error
	var dns *net.DNSError
	var errno syscall.Errno
	var text string
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		text = "timed out"
	case errors.As(err, &dns) && dns.IsNotFound:
		text = "no such host"
	case errors.As(err, &timeout) && timeout.Timeout():
		text = "timed out"
	case errors.As(err, &errno):
		text = errno.Error()
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		text = "closed without an answer"
	default:
		text = err.Error()
	}
	s := what + ": " + strings.ToValidUTF8(text, "?")
	if len(s) > reasonBytesMax {
		s = strings.ToValidUTF8(s[:reasonBytesMax-3], "") + "..."
	}
	return s
}
