package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// startEmbedded starts the member inside this process and waits until it has joined its cluster.
func (s *Store) startEmbedded(ctx context.Context) (*embed.Etcd, error) {
	cfg, err := s.cfg.embedded()
	if err != nil {
		return nil, err
	}
	member, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start store in %s: %w", s.cfg.DataDir, err)
	}
	select {
	case <-member.Server.ReadyNotify():
		return member, nil
	case err = <-member.Err():
	case <-member.Server.StopNotify():
		err = errors.New("it stopped")
	case <-ctx.Done():
		err = ctx.Err()
	}
	member.Close()
	return nil, fmt.Errorf("start store in %s: %w", s.cfg.DataDir, err)
}

// embedded translates c, whose defaults are filled, for etcd.
func (c Config) embedded() (*embed.Config, error) {
	e := embed.NewConfig()
	e.Dir = c.DataDir
	e.Name = c.Name
	e.InitialClusterToken = c.ClusterToken
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(c.Log))

	e.QuotaBackendBytes = c.QuotaBytes
	e.AutoCompactionMode = embed.CompactorModePeriodic
	e.AutoCompactionRetention = c.HistoryRetention.String()
	// bbolt's array freelist is scanned with every write and brought a large cluster down (Roblox,
	// 2021); the map is not.
	e.BackendFreelistType = "map"
	e.UnsafeNoFsync = c.NoSync
	e.WarningApplyDuration = slowApply
	e.WarningUnaryRequestDuration = slowApply
	// The HTTP gateway would be one more way in that nobody uses.
	e.EnableGRPCGateway = false

	// No socket unless asked for: this process talks to its member by function calls.
	e.ListenClientUrls, e.AdvertiseClientUrls = nil, nil
	e.ListenPeerUrls = nil
	var err error
	if c.ClientListen != "" {
		if e.ListenClientUrls, err = urls(c.ClientListen, c.ClientTLS); err != nil {
			return nil, err
		}
		e.AdvertiseClientUrls = e.ListenClientUrls
		e.ClientTLSInfo = c.ClientTLS.info()
	}
	if c.PeerListen != "" {
		if e.ListenPeerUrls, err = urls(c.PeerListen, c.PeerTLS); err != nil {
			return nil, err
		}
		e.PeerTLSInfo = c.PeerTLS.info()
		if !c.PeerTLS.empty() {
			e.TlsMinVersion = "TLS1.3"
		}
	} else {
		// A member needs an address even when nobody will ever dial it.
		c.PeerAdvertise = "127.0.0.1:2380"
	}
	if e.AdvertisePeerUrls, err = urls(c.PeerAdvertise, c.PeerTLS); err != nil {
		return nil, err
	}
	peers := c.Peers
	if len(peers) == 0 {
		peers = map[string]string{c.Name: c.PeerAdvertise}
	}
	var members []string
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		u, err := urls(peers[name], c.PeerTLS)
		if err != nil {
			return nil, err
		}
		members = append(members, name+"="+u[0].String())
	}
	e.InitialCluster = strings.Join(members, ",")
	return e, nil
}

// urls returns hostport as etcd wants it.
func urls(hostport string, t TLSFiles) ([]url.URL, error) {
	scheme := "http"
	if !t.empty() {
		scheme = "https"
	}
	u, err := url.Parse(scheme + "://" + hostport)
	if err != nil {
		return nil, fmt.Errorf("store address %q: %v", hostport, err)
	}
	return []url.URL{*u}, nil
}

// info is the files as etcd wants them, with the other side's certificate demanded. Where a connection
// comes from is not held against that certificate, as etcd would: a member with two interfaces, or behind
// address translation, dials from an address that nobody wrote into it. Whoever dials checks the name.
func (f TLSFiles) info() transport.TLSInfo {
	if f.empty() {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{
		CertFile: f.Cert, KeyFile: f.Key, TrustedCAFile: f.CA, ClientCertAuth: true,
		SkipClientSANVerify: true,
	}
}
