package store

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TLSFiles names PEM files for mutual TLS. All three or none.
type TLSFiles struct {
	Cert string // certificate chain, leaf first
	Key  string // its private key
	CA   string // authorities that the other side's certificate must come from
}

func (f TLSFiles) empty() bool { return f == TLSFiles{} }

func (f TLSFiles) validate(what string) error {
	if !f.empty() && (f.Cert == "" || f.Key == "" || f.CA == "") {
		return fmt.Errorf("%s: certificate, key and CA are needed together", what)
	}
	return nil
}

// load reads the files for a client.
func (f TLSFiles) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("read store certificate: %v", err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("read store CA: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read store CA: no certificate in %s", f.CA)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		RootCAs:      roots,
	}, nil
}

// Config says where the store is. With Endpoints it is an etcd cluster of somebody else's; without, a
// member runs inside this process and keeps its data in DataDir: alone, or together with the other
// controllers' members when Peers is set.
type Config struct {
	// DataDir holds the embedded member's data. Losing it loses the member.
	DataDir string
	// Name of the embedded member, unique among them. Default "controller".
	Name string
	// PeerListen is the host:port where the other embedded members reach this one. Empty: no socket.
	PeerListen string
	// PeerAdvertise is what the others dial. Default PeerListen.
	PeerAdvertise string
	// ClientListen is a host:port where etcd's own tools may reach the embedded member. Empty: no
	// socket; this process needs none. Anybody who reaches it can do everything: loopback, or ClientTLS.
	ClientListen string
	// Peers is every embedded member's name and PeerAdvertise, this one included, for the first start
	// of a cluster of several. Empty: a single member.
	Peers map[string]string
	// ClusterToken keeps members of different clusters apart when addresses are reused.
	// Default "nearcast".
	ClusterToken string
	// PeerTLS secures the traffic between embedded members. Required when PeerListen is not loopback.
	PeerTLS TLSFiles
	// InsecurePeers allows plain peer traffic on addresses other than loopback: whoever can reach the
	// port owns the cluster. For networks that are encrypted and closed by other means.
	InsecurePeers bool

	// Endpoints of an external cluster, host:port or URLs. With ClientTLS they are dialled with TLS.
	Endpoints []string
	// ClientTLS is what this process shows to external endpoints, and what ClientListen demands.
	ClientTLS TLSFiles
	// Username and Password for external endpoints, where they ask for it.
	Username, Password string

	// Prefix of all keys. Default "/nearcast/v1/". Clusters that share an external etcd need their own.
	Prefix string
	// Timeout of one operation when the caller's context has none nearer. Default 5 s.
	Timeout time.Duration
	// RelistInterval is how often a watch compares what it knows with what is there. Default 5 min,
	// jittered by a tenth; smaller costs a listing of keys each time.
	RelistInterval time.Duration
	// QuotaBytes is the embedded member's size at which writes end with ErrNoSpace, 16 MiB to 8 GiB. Default
	// 2 GiB. It may be another one at each start. An external store has a quota of its own.
	QuotaBytes int64
	// HistoryRetention is how long the embedded member keeps old revisions, for watches that
	// reconnect. Default 1 h; longer costs disk with every change.
	HistoryRetention time.Duration
	// NoSync leaves out fsync in the embedded member: a power cut then loses data. For tests.
	NoSync bool

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	if err := c.PeerTLS.validate("peer TLS"); err != nil {
		return err
	}
	if err := c.ClientTLS.validate("client TLS"); err != nil {
		return err
	}
	if c.Prefix != "" && (!strings.HasPrefix(c.Prefix, "/") || !strings.HasSuffix(c.Prefix, "/")) {
		return fmt.Errorf("prefix %q must begin and end with '/'", c.Prefix)
	}
	if c.Timeout < 0 || c.RelistInterval < 0 || c.QuotaBytes < 0 || c.HistoryRetention < 0 {
		return fmt.Errorf("timeout, relist interval, quota and retention must not be negative")
	}
	if len(c.Endpoints) > 0 {
		if c.DataDir != "" || len(c.Peers) > 0 || c.PeerListen != "" {
			return fmt.Errorf("external endpoints and an embedded member exclude each other")
		}
		return nil
	}
	return c.validateEmbedded()
}

func (c Config) validateEmbedded() error {
	if c.DataDir == "" {
		return fmt.Errorf("a data directory or external endpoints are needed")
	}
	for what, addr := range map[string]string{
		"peer listen": c.PeerListen, "peer advertise": c.PeerAdvertise, "client listen": c.ClientListen,
	} {
		if addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s address %q is not host:port", what, addr)
		}
	}
	c = c.withDefaults()
	if c.QuotaBytes < QuotaBytesMin || c.QuotaBytes > QuotaBytesMax {
		return fmt.Errorf("the store's quota is %d bytes: give a --store-quota of %d MiB to %d MiB", c.QuotaBytes,
			QuotaBytesMin>>20, QuotaBytesMax>>20)
	}
	if len(c.Peers) > 0 {
		if c.PeerListen == "" {
			return fmt.Errorf("several members need a peer listen address")
		}
		if got, ok := c.Peers[c.Name]; !ok || got != c.PeerAdvertise {
			return fmt.Errorf("peers %v do not have this member %s at %s",
				slices.Sorted(maps.Keys(c.Peers)), c.Name, c.PeerAdvertise)
		}
	}
	if c.PeerListen != "" && c.PeerTLS.empty() && !c.InsecurePeers && !loopback(c.PeerListen) {
		return fmt.Errorf("peer listen %s is not loopback: peer TLS is needed", c.PeerListen)
	}
	if c.ClientListen != "" && c.ClientTLS.empty() && !loopback(c.ClientListen) {
		return fmt.Errorf("client listen %s is not loopback: client TLS is needed", c.ClientListen)
	}
	return nil
}

func (c Config) withDefaults() Config {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Name, "controller")
	def(&c.PeerAdvertise, c.PeerListen)
	def(&c.ClusterToken, "nearcast")
	def(&c.Prefix, "/nearcast/v1/")
	if c.Timeout == 0 {
		c.Timeout = operationTimeout
	}
	if c.RelistInterval == 0 {
		c.RelistInterval = relistInterval
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = quotaBytes
	}
	if c.HistoryRetention == 0 {
		c.HistoryRetention = historyRetention
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
