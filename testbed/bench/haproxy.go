package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
)

// Ports of the peers' listeners on the nodes.
const (
	portPlainIn  = 10080 // HAProxy, edge: client side of the chain without TLS
	portTLSIn    = 10081 // HAProxy, edge: client side of the chain with TLS
	portPlainMid = 10180 // HAProxy, gateway
	portTLSMid   = 10181
	portNginxUDP = 10090
	portNginxMid = 10190
)

// The chain as its documentation recommends it for throughput: splicing where nothing is encrypted,
// TLS 1.3 with resumption and server-side keep-alive of the session, large buffers, both cores.
var haproxyConfig = template.Must(template.New("haproxy").Parse(`
global
    # Two descriptors a connection and two a pipe: a process may have 20,000 on many machines.
    maxconn 8500
    maxpipes 1000
    nbthread 2
    tune.bufsize 65536
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
    tune.ssl.cachesize 100000
defaults
    mode tcp
    timeout connect 5s
    timeout client 340s
    timeout server 340s
    option splice-auto
    option tcp-smart-connect
    no log
{{if .Edge}}
frontend plain_in
    bind :{{.PlainIn}}
    default_backend plain_out
backend plain_out
    server mid {{.Mid}}:{{.PlainMid}}
frontend tls_in
    bind :{{.TLSIn}}
    default_backend tls_out
backend tls_out
    server mid {{.Mid}}:{{.TLSMid}} ssl verify required ca-file {{.CA}} sni str(mid) verifyhost mid
{{else}}
frontend plain_mid
    bind :{{.PlainMid}}
    default_backend app
frontend tls_mid
    bind :{{.TLSMid}} ssl crt {{.Cert}}
    default_backend app
backend app
    server app {{.App}}
{{end}}
`))

// The UDP chain: nginx's stream module on both machines.
var nginxConfig = template.Must(template.New("nginx").Parse(`
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 2;
worker_rlimit_nofile 20000;
error_log {{.Dir}}/nginx-{{.Name}}-error.log crit;
pid {{.Dir}}/nginx-{{.Name}}.pid;
daemon off;
events { worker_connections 16000; }
stream {
    server {
        listen {{.Port}} udp reuseport;
        proxy_pass {{.To}};
        proxy_timeout 30s;
    }
}
`))

// peers writes the configurations of HAProxy and nginx and starts them on the two machines.
type peers struct {
	dir       string
	processes []*netns.Cmd
	byHost    map[string][]*netns.Cmd // "edge-haproxy" … for accounting
}

type chain struct {
	edge, gateway       *netns.NS
	gatewayAddr         netip.Addr // as the edge reaches it
	app                 netip.Addr // as the gateway reaches it
	appTCP, appUDP      int
	sequence            string // distinguishes files of several chains
	withNginx, withTLS  bool
	congestionClientLeg string
}

func (p *peers) start(ctx context.Context, c chain) error {
	if p.byHost == nil {
		p.byHost = map[string][]*netns.Cmd{}
	}
	cert := filepath.Join(p.dir, "mid.pem")
	if _, err := os.Stat(cert); err != nil {
		if err := writeCertificate(cert); err != nil {
			return err
		}
	}
	values := map[string]any{
		"Mid": c.gatewayAddr, "App": netip.AddrPortFrom(c.app, uint16(c.appTCP)), "CA": cert, "Cert": cert,
		"PlainIn": portPlainIn, "TLSIn": portTLSIn, "PlainMid": portPlainMid, "TLSMid": portTLSMid,
	}
	for _, side := range []struct {
		role string
		ns   *netns.NS
	}{{"gateway", c.gateway}, {"edge", c.edge}} {
		values["Edge"] = side.role == "edge"
		file := filepath.Join(p.dir, "haproxy-"+c.sequence+side.role+".cfg")
		if err := render(file, haproxyConfig, values); err != nil {
			return err
		}
		if err := p.run(ctx, side.ns, side.role+"-haproxy", "haproxy", "-db", "-f", file); err != nil {
			return err
		}
	}
	if !c.withNginx {
		return nil
	}
	for _, side := range []struct {
		role, to string
		port     int
		ns       *netns.NS
	}{
		{"gateway", fmt.Sprintf("%v:%d", c.app, c.appUDP), portNginxMid, c.gateway},
		{"edge", fmt.Sprintf("%v:%d", c.gatewayAddr, portNginxMid), portNginxUDP, c.edge},
	} {
		file := filepath.Join(p.dir, "nginx-"+c.sequence+side.role+".conf")
		err := render(file, nginxConfig, map[string]any{"Dir": p.dir, "Name": c.sequence + side.role, "Port": side.port, "To": side.to})
		if err != nil {
			return err
		}
		if err := p.run(ctx, side.ns, side.role+"-nginx", "nginx", "-c", file); err != nil {
			return err
		}
	}
	return nil
}

func (p *peers) run(ctx context.Context, ns *netns.NS, what, name string, args ...string) error {
	cmd := ns.Cmd(ctx, name, args...)
	log, err := os.Create(filepath.Join(p.dir, what+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s (a Debian package): %w", name, err)
	}
	p.processes = append(p.processes, cmd)
	p.byHost[what] = append(p.byHost[what], cmd)
	return nil
}

func (p *peers) stop() {
	for _, cmd := range p.processes {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// listening waits until something accepts connections at the address.
func listening(ctx context.Context, ns *netns.NS, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := ns.DialContext(ctx, "tcp", addr.String())
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens at %v: %w", addr, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func render(path string, t *template.Template, values any) error {
	var buf bytes.Buffer
	if err := t.Execute(&buf, values); err != nil {
		return err
	}
	return os.WriteFile(path, buf.Bytes(), 0o644)
}

// writeCertificate makes a self-signed P-256 certificate for "mid" with its key in one PEM file.
func writeCertificate(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mid"}, DNSNames: []string{"mid"},
		IPAddresses: []net.IP{}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	_ = pem.Encode(&buf, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	_ = pem.Encode(&buf, &pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	return os.WriteFile(path, buf.Bytes(), 0o600)
}
