package controlplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
)

// Three controllers start at once with nothing and become one cluster: one authority, one first
// operator. With one of them gone everything goes on.
func TestThreeMembers(t *testing.T) {
	peers := map[string]string{}
	for _, name := range []string{"m1", "m2", "m3"} {
		peers[name] = netns.FreeAddr(t)
	}
	members := map[string]*testController{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, peer := range peers {
		wg.Go(func() {
			c := start(t, func(c *Config) {
				c.ID, c.Store.Name, c.Store.PeerListen, c.Store.Peers = name, name, peer, peers
			})
			mu.Lock()
			defer mu.Unlock()
			members[name] = c
		})
	}
	wg.Wait()
	if len(members) != 3 {
		t.FailNow()
	}
	var first *testController
	for _, c := range members {
		if c.hasContext(t) {
			if first != nil {
				t.Fatal("two controllers have made the first operator")
			}
			first = c
		}
	}
	if first == nil {
		t.Fatal("nobody has made the first operator")
	}
	clients := map[string]*operator{}
	for name, c := range members {
		clients[name] = adminOf(t, first.cfg.DataDir, c.addr)
		must[*v1.Operator](t)(clients[name].WhoAmI(t.Context(), &emptypb.Empty{}))
	}
	clients["m1"].furnish(t)
	n := clients["m2"].join(t, members["m3"].addr, "n1", "ams")
	s := n.sync(t, members["m3"].addr, apply)
	s.wait(t, "three controllers", func() bool {
		return s.snapshot != nil && len(s.welcome.GetControllers()) == 3
	})

	members["m1"].stop()
	// What is on its way to a leader that goes is lost, and says that it is not known what became of it.
	eventually(t, "two members take changes", func() error {
		_, err := clients["m2"].CreateRegion(t.Context(), &v1.CreateRegionRequest{Region: &v1.Region{Name: "x"}})
		return known(err)
	})
	a, _ := clients["m2"].accelerate(t, "web", "eu", "198.18.0.1")
	s.wait(t, "a change with two members", func() bool { return len(s.snapshot.Groups) == 1 })
	eventually(t, "it is deployed, and somebody leads", func() error {
		st := must[*v1.StatusResponse](t)(clients["m2"].GetStatus(t.Context(), &emptypb.Empty{}))
		leaders := 0
		for _, c := range st.GetControllers() {
			if c.GetLeader() {
				leaders++
			}
		}
		if leaders != 1 || len(st.GetControllers()) != 2 ||
			clients["m3"].status(t, a.GetId()) != v1.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
}

// known is the error of a Create that is tried again: that it is there already is what is wanted.
func known(err error) error {
	if status.Code(err) == codes.AlreadyExists {
		return nil
	}
	return err
}

func (c *testController) hasContext(t testing.TB) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(c.cfg.DataDir, contextFile))
	return err == nil
}

// Without its store a controller changes nothing and loses nothing: it says what is wrong, its nodes
// stay, and when the store is back all goes on.
func TestStoreAway(t *testing.T) {
	etcd := netns.FreeAddr(t)
	dir := t.TempDir()
	keep := func(c *Config) { c.DataDir, c.Store.ClientListen = dir, etcd }
	one := start(t, keep)
	// Each question to a store that is away takes this long: no shorter than is waited for it to know a caller.
	two := start(t, func(c *Config) { c.Store = StoreConfig{Endpoints: []string{etcd}, Timeout: 2 * time.Second} })
	o := adminOf(t, dir, two.addr)
	o.furnish(t)
	n := o.join(t, two.addr, "n1", "ams")
	s := n.sync(t, two.addr, apply)
	s.wait(t, "a snapshot", func() bool { return s.snapshot != nil })
	eventually(t, "the node is connected", func() error {
		st := must[*v1.StatusResponse](t)(o.GetStatus(t.Context(), &emptypb.Empty{}))
		if len(st.GetNodes()) != 1 || !st.GetNodes()[0].GetConnected() {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
	one.stop()

	st := must[*v1.StatusResponse](t)(o.GetStatus(t.Context(), &emptypb.Empty{}))
	if !strings.Contains(strings.Join(st.GetProblems(), "\n"), "the store does not take changes") ||
		len(st.GetNodes()) != 1 {
		t.Errorf("status without the store: %v", st)
	}
	must[*v1.Operator](t)(o.WhoAmI(t.Context(), &emptypb.Empty{}))
	must[*v1.Snapshot](t)(o.GetSnapshot(t.Context(), &emptypb.Empty{}))
	_, err := o.CreateRegion(t.Context(), &v1.CreateRegionRequest{Region: &v1.Region{Name: "x"}})
	wantCode(t, "a change without the store", err, codes.Unavailable)

	one = start(t, keep)
	eventually(t, "changes are taken again", func() error {
		_, err := o.CreateRegion(t.Context(), &v1.CreateRegionRequest{Region: &v1.Region{Name: "y"}})
		return known(err)
	})
	s.wait(t, "the stream has lived through it and tells the change", func() bool {
		for _, r := range s.snapshot.Regions {
			if r.Name == "y" {
				return true
			}
		}
		return false
	})
	eventually(t, "the node counts as connected again, also at the other one", func() error {
		if !adminOf(t, dir, one.addr).node(t, n.id).GetConnected() {
			return errors.New("away")
		}
		return nil
	})
	two.stop() // while it can tell the store so
}
