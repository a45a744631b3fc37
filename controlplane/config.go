package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
)

// StoreConfig says where the store is; TLSFiles are its certificates. They are the store's own, under names
// that a command may use.
type (
	StoreConfig = store.Config
	TLSFiles    = store.TLSFiles
)

// Config of a Controller. Cluster, DataDir and Store are needed.
type Config struct {
	// Cluster is the cluster's name: a-z, 0-9 and inner '-' and '.', at most 63 characters. It is in every
	// certificate, so it cannot be changed later.
	Cluster string
	// DataDir holds the controller's id, the admin's first credentials and, if the store is embedded, its
	// data.
	DataDir string
	// ID is the controller's name among the others. Empty: made once and kept in DataDir.
	ID string
	// Listen is the host:port of the one TLS port for operators, nodes and machines that enrol. ":7443".
	Listen string
	// Advertise is the host:port that nodes and operators are told. Default: Listen, with this machine's
	// address on the way to the Internet where Listen has none.
	Advertise string
	// MetricsListen is the host:port of /metrics, /healthz and /readyz, in plain HTTP. Empty: none.
	MetricsListen string
	// AWSListen is the host:port where AWS clients ask, as they ask Global Accelerator. Empty: none.
	AWSListen string
	// AWSTLS is the certificate for that. None: plain HTTP, in which requests are signed but readable.
	AWSTLS TLSFiles
	// Store says where the store is. An embedded one lies in DataDir/store unless it says otherwise.
	Store StoreConfig
	// NewAdminToken gives the operator "admin" a new token at start, as after it was lost, and writes the
	// context file anew.
	NewAdminToken bool
	// CountryDatabase are the files of a database that says which networks a country has (MMDB), for the guards of
	// listeners. They are read again when they change. None: another controller may have one.
	CountryDatabase []string
	// StopTimeout is how long calls that run may take to end when the controller stops. 5 s.
	StopTimeout time.Duration

	Version string       // build version
	Log     *slog.Logger // nil: discarded
}

// Validate reports what is wrong.
func (c Config) Validate() error {
	if err := identity.ValidateCluster(c.Cluster); err != nil {
		return err
	}
	if c.DataDir == "" {
		return errors.New("a data directory is needed")
	}
	if c.ID != "" {
		if err := identity.ValidateName(c.ID); err != nil {
			return fmt.Errorf("controller id: %w", err)
		}
	}
	for what, addr := range map[string]string{"listen": c.Listen, "advertise": c.Advertise,
		"metrics listen": c.MetricsListen, "AWS listen": c.AWSListen} {
		if addr == "" {
			continue
		}
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return fmt.Errorf("%s address %q is not host:port", what, addr)
		}
		if what == "advertise" && unspecified(host) {
			return fmt.Errorf("advertise address %q has no host that others could reach", addr)
		}
	}
	if (c.AWSTLS.Cert == "") != (c.AWSTLS.Key == "") || c.AWSTLS.CA != "" {
		return errors.New("the AWS listener needs a certificate and its key, or neither, and no authority")
	}
	return c.withDefaults().Store.Validate()
}

func unspecified(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}
