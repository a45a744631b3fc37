package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nearcast/nearcast/testbed/netns"
)

// freeAddrs returns addresses on loopback that nobody listens on.
func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		addrs = append(addrs, netns.FreeAddr(t))
	}
	return addrs
}

// tlsFiles makes an authority and a certificate for the hosts of addrs, good for both sides.
func tlsFiles(t *testing.T, addrs ...string) TLSFiles {
	t.Helper()
	var hosts []net.IP
	for _, addr := range addrs {
		hosts = append(hosts, netip.MustParseAddrPort(addr).Addr().AsSlice())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  hosts,
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert := write("cert.pem", "CERTIFICATE", der)
	return TLSFiles{Cert: cert, Key: write("key.pem", "EC PRIVATE KEY", keyDER), CA: cert}
}

// TestExternal runs one store that others reach as an external cluster, with and without TLS.
func TestExternal(t *testing.T) {
	for _, secured := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secured), func(t *testing.T) {
			ctx := t.Context()
			addr := freeAddrs(t, 1)
			var files TLSFiles
			if secured {
				files = tlsFiles(t, addr...)
			}
			// Connecting before it is there must work too.
			outside, _ := start(t, Config{Endpoints: addr, ClientTLS: files})
			inside, stopInside := start(t, Config{ClientListen: addr[0], ClientTLS: files})
			must[uint64](t)(inside.Put(ctx, "a", []byte("in")))
			ready(t, outside)
			if got := must[KV](t)(outside.Get(ctx, "a")); string(got.Value) != "in" {
				t.Fatalf("got %+v", got)
			}
			from := must[uint64](t)(outside.Put(ctx, "b", []byte("out")))
			must[uint64](t)(inside.Put(ctx, "c", nil))
			if got := take(t, outside, "", from, 1)[0]; got.Puts[0].Key != "c" {
				t.Fatalf("watched %+v", got)
			}
			if err := outside.Health(ctx); err != nil {
				t.Fatal(err)
			}
			other, _ := start(t, Config{Endpoints: addr, ClientTLS: files, Prefix: "/other/"})
			_, err := other.Get(ctx, "a")
			wantErr(t, err, ErrNotFound)

			stopInside()
			opCtx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			outside.cfg.Timeout = 300 * time.Millisecond
			_, err = outside.Get(opCtx, "a")
			wantErr(t, err, ErrUnavailable)
		})
	}
}

// TestThreeMembers: three embedded members are one store; it survives the loss of one and says so when
// two are gone.
func TestThreeMembers(t *testing.T) {
	ctx := t.Context()
	addrs := freeAddrs(t, 3)
	files := tlsFiles(t, addrs...)
	peers := map[string]string{"a": addrs[0], "b": addrs[1], "c": addrs[2]}
	dirs := map[string]string{}
	stores, stops := map[string]*Store{}, map[string]func(){}
	run := func(name string) {
		if dirs[name] == "" {
			dirs[name] = t.TempDir()
		}
		stores[name], stops[name] = start(t, Config{
			DataDir: dirs[name], Name: name, PeerListen: peers[name], Peers: peers, PeerTLS: files,
		})
	}
	for name := range peers {
		run(name)
	}
	put := func(name, key string) {
		t.Helper()
		settled(t, func() (uint64, error) { return stores[name].Put(ctx, key, nil) })
	}
	for name := range stores {
		put(name, "from/"+name)
	}
	for _, s := range stores {
		page := settled(t, func() (Page, error) { return s.List(ctx, "from/", ListOptions{}) })
		if len(page.Items) != 3 {
			t.Fatalf("a member has %v", page.Items)
		}
	}
	stops["a"]()
	put("b", "without a")
	stops["b"]()
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := stores["c"].Put(short, "alone", nil)
	wantErr(t, err, context.DeadlineExceeded)
	stores["c"].cfg.Timeout = time.Second
	_, err = stores["c"].Get(ctx, "without a")
	wantErr(t, err, ErrUnavailable)
	stores["c"].cfg.Timeout = patience

	run("a")
	settled(t, func() (KV, error) { return stores["a"].Get(ctx, "without a") })
	put("c", "two again")
}

func TestSession(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	const long = time.Minute // no lease of this test ends by time, however slow the machine is
	err := s.Session(ctx, long, func(ctx context.Context, lease LeaseID) error {
		must[uint64](t)(s.Txn(ctx, nil, PutLeased("alive", nil, lease)))
		if got := must[KV](t)(s.Get(ctx, "alive")); got.Lease != lease {
			t.Errorf("the key has lease %d, not %d", got.Lease, lease)
		}
		return errEnough
	})
	wantErr(t, err, errEnough)
	for deadline := time.Now().Add(patience / 2); ; time.Sleep(10 * time.Millisecond) {
		if _, err = s.Get(ctx, "alive"); errors.Is(err, ErrNotFound) || time.Now().After(deadline) {
			break
		}
	}
	wantErr(t, err, ErrNotFound)

	// A lease that goes under fn's feet ends fn.
	err = s.Session(ctx, time.Second, func(fnCtx context.Context, lease LeaseID) error {
		revoke(t, s, lease)
		within(t, "the end of the session", fnCtx.Done())
		return nil
	})
	wantErr(t, err, ErrUnavailable)
	err = s.Session(ctx, long, func(_ context.Context, lease LeaseID) error {
		revoke(t, s, lease)
		_, err := s.Txn(ctx, nil, PutLeased("late", nil, lease))
		return err
	})
	wantErr(t, err, ErrUnavailable)
}

// TestElect: one leads at a time, its writes are fenced, and the next one follows.
func TestElect(t *testing.T) {
	s, _ := start(t, Config{})
	ready(t, s)
	type led struct {
		who   string
		fence Fence
	}
	leading := make(chan led, 2)
	resign := map[string]chan error{"x": make(chan error, 1), "y": make(chan error, 1)}
	ended := make(chan error, 2)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for who := range resign {
		go func() {
			ended <- s.Elect(ctx, "probe", who, func(ctx context.Context, f Fence) error {
				leading <- led{who, f}
				select {
				case err := <-resign[who]:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		}()
	}
	first := within(t, "a leader", leading)
	if who := must[string](t)(s.Leader(ctx, "probe")); who != first.who {
		t.Fatalf("%s leads, Leader says %s", first.who, who)
	}
	must[uint64](t)(s.Txn(ctx, []Cond{first.fence.Cond()}, Put("led", []byte(first.who))))
	select {
	case second := <-leading:
		t.Fatalf("%s leads beside %s", second.who, first.who)
	default:
	}
	resign[first.who] <- ErrConflict // losing a race is no reason to give up
	second := within(t, "the next leader", leading)
	_, err := s.Txn(ctx, []Cond{first.fence.Cond()}, Put("led", nil))
	wantErr(t, err, ErrConflict)
	must[uint64](t)(s.Txn(ctx, []Cond{second.fence.Cond()}, Put("led", nil)))

	resign[second.who] <- errEnough // any other error ends it
	wantErr(t, within(t, "the end of Elect", ended), errEnough)
	third := within(t, "the third leader", leading)
	if third.who == second.who {
		t.Fatalf("%s leads after it ended", third.who)
	}
	cancel()
	wantErr(t, within(t, "the end of Elect", ended), context.Canceled)
	if _, err := s.Leader(t.Context(), "probe"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("nobody leads, yet: %v", err)
	}
}

// TestEndsWhileAway: with the external store gone, whatever waits for it ends with its context.
func TestEndsWhileAway(t *testing.T) {
	addr := freeAddrs(t, 1)
	_, stopInside := start(t, Config{ClientListen: addr[0]})
	s, _ := start(t, Config{Endpoints: addr})
	brief, _ := start(t, Config{Endpoints: addr, Timeout: 200 * time.Millisecond})
	ready(t, s)
	ready(t, brief)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began, ended := make(chan string, 100), make(chan error, 4) // whoever leads once more must not wait to say so
	lead := func(who string) func(context.Context, Fence) error {
		return func(ctx context.Context, _ Fence) error {
			began <- who
			<-ctx.Done()
			return ctx.Err()
		}
	}
	go func() { ended <- s.Elect(ctx, "e", "leader", lead("leader")) }()
	within(t, "a leader", began)
	go func() { ended <- s.Elect(ctx, "e", "waiting", lead("waiting")) }()
	go func() {
		candidates := 0
		ended <- s.Watch(ctx, "elections/", 0, func(u Update) error {
			if candidates += len(u.Puts); candidates == 2 {
				began <- "watch"
			}
			return nil
		})
	}()
	go func() {
		ended <- s.Session(ctx, time.Second, func(ctx context.Context, _ LeaseID) error {
			began <- "session"
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	for seen := map[string]bool{}; !seen["watch"] || !seen["session"]; {
		seen[within(t, "the watch and the session", began)] = true
	}
	stopInside()
	_, err := brief.Get(ctx, "x")
	wantErr(t, err, ErrUnavailable)
	cancel()
	for range 4 {
		err := within(t, "what waits for a store that is away ends", ended)
		if !errors.Is(err, context.Canceled) && !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	}
}

func revoke(t *testing.T, s *Store, lease LeaseID) {
	_, err := s.client.Revoke(t.Context(), clientv3.LeaseID(lease))
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) { // it has ended already
		t.Error(err)
	}
}
