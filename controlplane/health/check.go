package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Check probes host (an IP address or DNS name) once as hc says, within hc.Timeout, and returns nil if it
// passed, and otherwise why not, in words for people. hc.Port must be set. rules are asked about every
// address that host resolves to, so a name cannot lead the controller where endpoints must not lie; nil
// rules are the general ones.
//
// A name passes if one of its first three addresses does. Redirects are not followed, certificates not
// verified, as load balancers do; the connection is closed after each check.
func Check(ctx context.Context, host string, hc model.HealthCheck, rules *model.EndpointRules) error {
	if rules == nil {
		rules = model.NewEndpointRules(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, hc.Timeout)
	defer cancel()
	addrs, err := resolve(ctx, host)
	if err != nil {
		return fmt.Errorf("resolve: %w", brief(err))
	}
	addrs = addrs[:min(len(addrs), checkAddressesMax)]
	err = errors.New("resolve: no address")
	for i, addr := range addrs {
		to := netip.AddrPortFrom(addr, hc.Port)
		if err = rules.Check(to); err != nil {
			err = fmt.Errorf("refused: %w", err)
			continue
		}
		// What is left of the time is shared by the addresses that are left.
		deadline, _ := ctx.Deadline()
		share, end := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addrs)-i))
		err = ask(share, to, host, hc)
		end()
		if err == nil {
			return nil
		}
	}
	return err
}

func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// ask checks one address.
func ask(ctx context.Context, to netip.AddrPort, host string, hc model.HealthCheck) error {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		conn, err := d.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return nil, fmt.Errorf("connect: %w", brief(err))
		}
		return conn, nil
	}
	if hc.Protocol == model.HealthTCP {
		conn, err := dial(ctx, "", "")
		if err == nil {
			conn.Close()
		}
		return err
	}
	codes, err := model.ParseCodes(hc.ExpectedCodes)
	if err != nil {
		return fmt.Errorf("expected codes: %w", err)
	}
	req, err := request(ctx, to, hc)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	transport := &http.Transport{
		DialContext:       dial,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			// An endpoint with an expired or self-signed certificate, or an old protocol, is not dead.
			InsecureSkipVerify: true,
			MinVersion:         tls.VersionTLS10,
			ServerName:         serverName(host, hc),
		},
		MaxResponseHeaderBytes: headerBytesMax,
		DisableCompression:     true,
	}
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(req)
	if err != nil {
		return brief(err)
	}
	answer.Body.Close()   // unread: the connection is closed with it
	if ctx.Err() != nil { // closing the connection made it answer
		return errors.New("timeout")
	}
	if !codes.Has(answer.StatusCode) {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	return nil
}

// request asks for hc.Path. The Host header is hc.Host, or else the address, as the nodes' probes have it.
func request(ctx context.Context, to netip.AddrPort, hc model.HealthCheck) (*http.Request, error) {
	scheme, standard := "http", ":80"
	if hc.Protocol == model.HealthHTTPS {
		scheme, standard = "https", ":443"
	}
	path := hc.Path
	if path == "" {
		path = model.DefaultHealthPath
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+to.String()+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "nearcast-health-check")
	if req.Host = hc.Host; req.Host == "" {
		req.Host = strings.TrimSuffix(to.String(), standard)
	}
	return req, nil
}

// serverName is the TLS server name: hc.Host without a port, or else the endpoint's own name or address.
func serverName(host string, hc model.HealthCheck) string {
	if hc.Host == "" {
		return host
	}
	if name, _, err := net.SplitHostPort(hc.Host); err == nil {
		return name
	}
	return strings.Trim(hc.Host, "[]")
}

// brief cuts what repeats the address or our own code from an error's text, which reads "dial tcp
// 192.0.2.1:80: connect: connection refused".
func brief(err error) error {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("timeout")
	case errors.As(err, &dns) && dns.IsNotFound:
		return errors.New("no such host")
	case errors.As(err, &op) && op.Timeout():
		return errors.New("timeout")
	case errors.As(err, &op):
		var inner error = op.Err
		for {
			next := errors.Unwrap(inner)
			if next == nil {
				return inner
			}
			inner = next
		}
	}
	return err
}
