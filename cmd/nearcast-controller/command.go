package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/nearcast/nearcast/cmd/size"
	"github.com/nearcast/nearcast/controlplane"
)

// options are the flags, which a YAML file may give too, under the same names.
type options struct {
	config                     string
	cluster, dataDir, id       string
	listen, advertise, metrics string
	newAdminToken              bool
	logLevel, logFormat        string
	awsListen, awsCert, awsKey string
	countryDatabase            []string

	endpoints                       []string
	etcdName, etcdInitialCluster    string
	peerListen, peerAdvertise       string
	clientListen                    string
	peerCert, peerKey, peerCA       string
	clientCert, clientKey, clientCA string
	etcdUsername, etcdPasswordFile  string
	insecurePeers                   bool
	storeQuota                      string
}

const long = `nearcast-controller keeps the configuration of a Nearcast cluster, enrols its nodes, tells
them what to serve, and answers operators. Traffic does not pass through it and does not stop
without it.

On the first start of a cluster it makes the certificate authority and an operator "admin", whose
credentials are then in DATA_DIR/admin-context.yaml, a contexts file of the CLI.

Every flag can stand in a YAML file under its own name (--config); flags on the command line win.`

const examples = `  # One controller with its own store:
  nearcast-controller --cluster prod --data-dir /var/lib/nearcast --advertise ctl1.example.com:7443
  nearcast --contexts /var/lib/nearcast/admin-context.yaml status

  # Three controllers that keep one store together (the same on ctl2 and ctl3, with their own names;
  # peer-certs makes the certificates):
  nearcast-controller --cluster prod --data-dir /var/lib/nearcast --advertise ctl1.example.com:7443 \
    --etcd-name ctl1 --etcd-peer-listen 0.0.0.0:7446 --etcd-peer-advertise ctl1.example.com:7446 \
    --etcd-initial-cluster ctl1=ctl1.example.com:7446,ctl2=ctl2.example.com:7446,ctl3=ctl3.example.com:7446 \
    --etcd-peer-cert ctl1.pem --etcd-peer-key ctl1.key --etcd-peer-ca ca.pem

  # The store is an etcd cluster that runs elsewhere:
  nearcast-controller --cluster prod --data-dir /var/lib/nearcast --advertise ctl1.example.com:7443 \
    --etcd-endpoints https://etcd1:2379,https://etcd2:2379 \
    --etcd-cert client.pem --etcd-key client.key --etcd-ca ca.pem

  # Listeners may deny and allow countries:
  nearcast-controller --config /etc/nearcast/controller.yaml --country-database /var/lib/nearcast/country.mmdb

  # The administrator's token was lost:
  nearcast-controller --config /etc/nearcast/controller.yaml --new-admin-token`

// newCommand returns the program as a command. It logs to w.
func newCommand(w io.Writer) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "nearcast-controller --cluster NAME --data-dir DIR [flags]",
		Short: "The control plane of Nearcast", Long: long, Example: examples,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true, Version: version,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := readConfig(o.config, cmd.Flags()); err != nil {
				return err
			}
			log, err := newLog(w, o.logLevel, o.logFormat)
			if err != nil {
				return err
			}
			cfg, err := o.build()
			if err != nil {
				return err
			}
			cfg.Log = log
			c, err := controlplane.New(cfg)
			if err != nil {
				return err
			}
			return c.Run(cmd.Context())
		},
	}
	o.flags(cmd.Flags())
	cmd.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "nearcast-controller %s %s %s/%s\n", version, runtime.Version(),
				runtime.GOOS, runtime.GOARCH)
		},
	})
	cmd.AddCommand(newPeerCerts())
	return cmd
}

func (o *options) flags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringVar(&o.config, "config", "", "YAML `file` with the same names as these flags")
	f.StringVar(&o.cluster, "cluster", "", "`name` of the cluster; it is in every certificate and cannot change")
	f.StringVar(&o.dataDir, "data-dir", "",
		"`directory` for the store, this controller's id and the admin's credentials")
	f.StringVar(&o.id, "id", "", "`name` of this controller (default: --etcd-name, or made once)")
	f.StringVar(&o.listen, "listen", ":7443", "`host:port` for operators, nodes and enrolment, in TLS")
	f.StringVar(&o.advertise, "advertise", "",
		"`host:port` that nodes and operators are told (default: a guess)")
	f.StringVar(&o.metrics, "metrics-listen", "127.0.0.1:9464",
		"`host:port` of /metrics, /healthz and /readyz; empty: none")
	f.StringVar(&o.awsListen, "aws-listen", "",
		"`host:port` for AWS clients, which ask it as they ask Global Accelerator; empty: none")
	f.StringVar(&o.awsCert, "aws-cert", "", "`file`: certificate of --aws-listen; none: plain HTTP")
	f.StringVar(&o.awsKey, "aws-key", "", "`file`: its private key")
	f.StringSliceVar(&o.countryDatabase, "country-database", nil,
		"`files` of a country database (MMDB, of countries or cities) for --allow-countries and --deny-countries of "+
			"listeners; read again when they change")
	f.BoolVar(&o.newAdminToken, "new-admin-token", false, `give the operator "admin" a new token at start`)
	f.StringSliceVar(&o.endpoints, "etcd-endpoints", nil,
		"`URLs` of an external etcd; none: the store runs in this process")
	f.StringVar(&o.clientCert, "etcd-cert", "",
		"`file`: certificate for an external etcd, or of --etcd-client-listen")
	f.StringVar(&o.clientKey, "etcd-key", "", "`file`: its private key")
	f.StringVar(&o.clientCA, "etcd-ca", "", "`file`: authority of the other side")
	f.StringVar(&o.etcdUsername, "etcd-username", "", "`name` of the user of an external etcd")
	f.StringVar(&o.etcdPasswordFile, "etcd-password-file", "", "`file` with the user's password")
	f.StringVar(&o.etcdName, "etcd-name", "", "`name` of this member of an embedded store of several")
	f.StringVar(&o.peerListen, "etcd-peer-listen", "", "`host:port` for the other members")
	f.StringVar(&o.peerAdvertise, "etcd-peer-advertise", "",
		"`host:port` that the other members dial (default: --etcd-peer-listen)")
	f.StringVar(&o.etcdInitialCluster, "etcd-initial-cluster", "",
		"every member as `name=host:port,...`, for the first start")
	f.StringVar(&o.peerCert, "etcd-peer-cert", "", "`file`: certificate between members")
	f.StringVar(&o.peerKey, "etcd-peer-key", "", "`file`: its private key")
	f.StringVar(&o.peerCA, "etcd-peer-ca", "", "`file`: authority of the members")
	f.BoolVar(&o.insecurePeers, "etcd-insecure-peers", false,
		"allow members to talk in the clear; only on a network that is closed and encrypted by other means")
	f.StringVar(&o.clientListen, "etcd-client-listen", "", "`host:port` for etcd's own tools; empty: none")
	f.StringVar(&o.storeQuota, "store-quota", "2GiB",
		"`size` of the store in this process at which changes are refused, 16MiB to 8GiB; it can be raised at any start")
	f.StringVar(&o.logLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "`format` of the log: text or json")
}

// build turns the options into a Config.
func (o *options) build() (controlplane.Config, error) {
	cfg := controlplane.Config{
		Cluster: o.cluster, DataDir: o.dataDir, ID: o.id, Listen: o.listen, Advertise: o.advertise,
		AWSListen: o.awsListen, AWSTLS: controlplane.TLSFiles{Cert: o.awsCert, Key: o.awsKey},
		CountryDatabase: o.countryDatabase,
		MetricsListen:   o.metrics, NewAdminToken: o.newAdminToken, Version: version,
		Store: controlplane.StoreConfig{
			Name: o.etcdName, PeerListen: o.peerListen, PeerAdvertise: o.peerAdvertise,
			ClientListen: o.clientListen, Endpoints: o.endpoints, InsecurePeers: o.insecurePeers,
			PeerTLS:   controlplane.TLSFiles{Cert: o.peerCert, Key: o.peerKey, CA: o.peerCA},
			ClientTLS: controlplane.TLSFiles{Cert: o.clientCert, Key: o.clientKey, CA: o.clientCA},
			Username:  o.etcdUsername,
		},
	}
	for name, value := range map[string]string{"cluster": o.cluster, "data-dir": o.dataDir} {
		if value == "" {
			return cfg, fmt.Errorf("--%s is needed", name)
		}
	}
	var err error
	if cfg.Store.QuotaBytes, err = size.Parse(o.storeQuota); err != nil {
		return cfg, fmt.Errorf("--store-quota: %w", err)
	}
	if cfg.ID == "" {
		cfg.ID = o.etcdName
	}
	if o.etcdInitialCluster != "" {
		cfg.Store.Peers = map[string]string{}
		for _, member := range strings.Split(o.etcdInitialCluster, ",") {
			name, addr, ok := strings.Cut(strings.TrimSpace(member), "=")
			if !ok || name == "" || addr == "" || cfg.Store.Peers[name] != "" {
				return cfg, fmt.Errorf("--etcd-initial-cluster: %q is not name=host:port, or there twice", member)
			}
			cfg.Store.Peers[name] = addr
		}
	}
	if o.etcdPasswordFile != "" {
		data, err := os.ReadFile(o.etcdPasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("read the etcd password: %w", err)
		}
		cfg.Store.Password = strings.TrimRight(string(data), "\r\n")
	}
	return cfg, nil
}

// readConfig sets the flags that the file names and the command line does not. An unknown name is an
// error: a setting that silently does nothing is worse than a start that fails.
func readConfig(path string, flags *pflag.FlagSet) error {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(data, &values); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		flag := flags.Lookup(name)
		if flag == nil || name == "config" || name == "help" || name == "version" {
			return fmt.Errorf("configuration %s: unknown key %q", path, name)
		}
		if flag.Changed {
			continue
		}
		text, err := flagText(values[name])
		if err == nil {
			err = flags.Set(name, text)
		}
		if err != nil {
			return fmt.Errorf("configuration %s: %s: %w", path, name, err)
		}
	}
	return nil
}

// flagText writes a YAML value as a flag has it: lists are joined by commas.
func flagText(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			text, err := flagText(e)
			if err != nil {
				return "", err
			}
			parts[i] = text
		}
		return strings.Join(parts, ","), nil
	case map[string]any:
		return "", fmt.Errorf("must be a text, a number, true, false or a list")
	}
	return fmt.Sprint(v), nil
}

func newLog(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("--log-format %q: use text or json", format)
}
