package controlplane

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"sigs.k8s.io/yaml"

	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestFirstStartAndRestart(t *testing.T) {
	dir := t.TempDir()
	web := netns.FreeAddr(t)
	in := func(c *Config) { c.DataDir, c.MetricsListen = dir, web }
	c := start(t, in)
	info, err := os.Stat(filepath.Join(dir, contextFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("context file: %v, %v", info, err)
	}
	first, _ := os.ReadFile(filepath.Join(dir, contextFile))
	me := must[*v1.Operator](t)(adminOf(t, dir, c.addr).WhoAmI(t.Context(), &emptypb.Empty{}))
	if me.GetName() != "admin" || me.GetRole() != v1.Role_ROLE_ADMIN {
		t.Errorf("the first operator is %v", me)
	}
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 200, "/debug/pprof/": 404} {
		resp := must[*http.Response](t)(http.Get("http://" + web + path))
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	c.stop()

	c = start(t, in)
	second, _ := os.ReadFile(filepath.Join(dir, contextFile))
	if string(first) != string(second) {
		t.Error("a restart has made new credentials")
	}
	old := adminOf(t, dir, c.addr) // the old authority is still the authority
	must[*v1.Operator](t)(old.WhoAmI(t.Context(), &emptypb.Empty{}))
	c.stop()

	c = start(t, in, func(c *Config) { c.NewAdminToken = true })
	must[*v1.Operator](t)(adminOf(t, dir, c.addr).WhoAmI(t.Context(), &emptypb.Empty{}))
	_, err = withToken(t, c.addr, old.roots, "NCO1.admin.aaaaaaaaaaaaaaaaaaaaaaaaaa").WhoAmI(t.Context(),
		&emptypb.Empty{})
	wantCode(t, "a wrong token", err, codes.Unauthenticated)
}

// The store took the first operator and did not say so in time: the next try makes nobody else, and leaves
// the credentials.
func TestFirstOperatorIsTriedAgain(t *testing.T) {
	c := start(t)
	path := filepath.Join(c.cfg.DataDir, contextFile)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file contexts
	if err := yaml.UnmarshalStrict(before, &file); err != nil {
		t.Fatal(err)
	}
	token := must[identity.OperatorToken](t)(identity.ParseOperatorToken(file.Contexts[0].Token))
	for name, first := range map[string]identity.OperatorToken{
		"tried before": token, "another controller's try": {Name: firstAdmin, Secret: identity.NewSecret()}} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := c.bootstrap(t.Context(), c.addr, &first); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if name == "tried before" && string(after) != string(before) || name != "tried before" && err == nil {
			t.Errorf("%s: the credentials are %q, %v", name, after, err)
		}
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnotherClusterIsRefused(t *testing.T) {
	dir := t.TempDir()
	start(t, func(c *Config) { c.DataDir = dir }).stop()
	c, err := New(Config{Cluster: "other", DataDir: dir, Listen: "127.0.0.1:0",
		Store: StoreConfig{NoSync: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err == nil {
		t.Error("a controller of another cluster took the store over")
	}
}

// A controller that is stopped just when it begins to serve stops in order, too.
func TestStoppedBeforeItServes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := serveUntil(ctx, grpc.NewServer(), l, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	ok := Config{Cluster: "prod", DataDir: "/d"}
	if err := ok.Validate(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for name, change := range map[string]func(*Config){
		"no cluster":          func(c *Config) { c.Cluster = "" },
		"bad cluster":         func(c *Config) { c.Cluster = "A b" },
		"no directory":        func(c *Config) { c.DataDir = "" },
		"bad listen":          func(c *Config) { c.Listen = "7443" },
		"bad metrics":         func(c *Config) { c.MetricsListen = "x" },
		"advertise nothing":   func(c *Config) { c.Advertise = ":7443" },
		"advertise all":       func(c *Config) { c.Advertise = "0.0.0.0:7443" },
		"bad id":              func(c *Config) { c.ID = "a/b" },
		"store contradiction": func(c *Config) { c.Store.Endpoints, c.Store.DataDir = []string{"x:1"}, "/s" },
	} {
		c := ok
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
