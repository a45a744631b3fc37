package awsapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/series"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const account = "123456789012"

// world is a store, a catalog with two anycast pools, and an endpoint for AWS clients.
type world struct {
	t       testing.TB
	catalog *catalog.Catalog
	keys    *access.Keys
	url     string
	traffic *series.Series

	mu       sync.Mutex
	deployed bool          // guarded by mu: what the fleet is said to have done
	skew     time.Duration // guarded by mu: how far the server's clock is ahead
	audited  []access.Call // guarded by mu
	health   model.HealthState
}

func run(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	s := must[*store.Store](t)(store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: time.Minute}))
	run(t, s.Run)
	w := &world{t: t, keys: access.NewKeys(s)}
	w.catalog = must[*catalog.Catalog](t)(catalog.New(catalog.Config{Store: s, Cluster: "test"}))
	run(t, w.catalog.Run)
	for name, prefix := range map[string]string{"a": "198.51.100.0/24 2001:db8:a::/64",
		"b": "203.0.113.0/24 2001:db8:b::/64"} {
		must[model.Pool](t)(w.catalog.CreatePool(t.Context(), model.Pool{Name: model.PoolName(name), Zone: name,
			Kind: model.PoolAnycast, Prefixes: prefixes(prefix)}, catalog.Options{}))
	}
	w.traffic = must[*series.Series](t)(series.New(series.Config{Store: s}))
	run(t, func(ctx context.Context) error { return w.traffic.Run(ctx, func() bool { return true }) })
	area := func(r model.RegionName) string { return series.Area(r, 0, 0) }
	h := must[*Handler](t)(New(Config{Traffic: w.traffic,
		Places:  series.Places{RegionArea: area, EdgeArea: func(model.NodeID) string { return "EU" }},
		Catalog: w.catalog, Key: w.keys.Find, Session: w.keys.CreateSession, Now: w.now,
		Applied: func(uint64) bool { w.mu.Lock(); defer w.mu.Unlock(); return w.deployed },
		Account: w.keys.Account, Project: w.keys.ProjectOf,
		Deployed: func(model.Accelerator) bool { w.mu.Lock(); defer w.mu.Unlock(); return w.deployed },
		Health: func(model.GroupID, model.EndpointID) (model.HealthState, string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.health, ""
		},
		Audit: func(_ context.Context, c access.Call) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.audited = append(w.audited, c)
		}}))
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	w.url = server.URL
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.skew)
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// client returns the SDK's client with a new key of the role and project.
func (w *world) client(role v1.Role, project, accountID string) *ga.Client {
	w.t.Helper()
	k, secret, err := w.keys.Create(w.t.Context(), access.AccessKey{Role: role, Project: project, Account: accountID})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.clientWith(aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: secret})
}

func (w *world) operator() *ga.Client {
	return w.client(v1.Role_ROLE_OPERATOR, "default", account)
}

func (w *world) clientWith(c aws.Credentials) *ga.Client {
	transport := &http.Transport{}
	w.t.Cleanup(transport.CloseIdleConnections)
	return ga.New(ga.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String(w.url), RetryMaxAttempts: 1,
		HTTPClient: &http.Client{Transport: transport},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return c, nil
		}),
	})
}

// jsonOf writes a value of the SDK's as JSON, to compare and to show.
func jsonOf(t testing.TB, v any) string {
	t.Helper()
	return string(must[[]byte](t)(json.Marshal(v)))
}

// bare is a configuration with a fleet that has done nothing yet.
func (w *world) bare() Config {
	return Config{Catalog: w.catalog, Key: w.keys.Find, Account: w.keys.Account, Project: w.keys.ProjectOf,
		Deployed: func(model.Accelerator) bool { return false }, Applied: func(uint64) bool { return false },
		Health: func(model.GroupID, model.EndpointID) (model.HealthState, string) { return model.HealthInitial, "" }}
}
