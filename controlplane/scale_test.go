package controlplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Many nodes join and connect at once, a burst of changes reaches all of them, and a node gets far fewer
// snapshots than there were changes.
func TestManyNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const machines, changes = 60, 200
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	_, token := o.joinToken(t)
	nodes := make([]*testNode, machines)
	streams := make([]*conversation, machines)
	var wg sync.WaitGroup
	for i := range machines {
		n := nodeAt(fmt.Sprintf("n%d", i), "ams")
		wg.Go(func() { nodes[i] = o.joinWith(t, c.addr, token, n) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, n := range nodes {
		streams[i] = n.sync(t, c.addr, apply)
	}
	a, g := o.accelerate(t, "web", "eu", "198.18.0.1")
	// Changes that come further apart than this are not a burst, and are sent one by one: on a machine that is
	// that slow, each would have all nodes answer, which makes it slower still.
	end := time.Now().Add(changes * 100 * time.Millisecond)
	made := 0
	for ; made < changes && time.Now().Before(end); made++ {
		weight := uint32(1 + made)
		must[*v1.EndpointGroup](t)(o.UpdateEndpoints(t.Context(), &v1.UpdateEndpointsRequest{GroupId: g.GetId(),
			Endpoints: []*v1.Endpoint{{Id: "198.18.0.1", Weight: &weight}}}))
	}
	for i, s := range streams {
		s.wait(t, fmt.Sprintf("the last change at node %d", i), func() bool {
			return s.snapshot != nil && len(s.snapshot.Groups) == 1 &&
				int(s.snapshot.Groups[0].Endpoints[0].Weight) == made
		})
	}
	eventually(t, "it is deployed", func() error {
		if got := o.status(t, a.GetId()); got != v1.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	for i, s := range streams {
		s.mu.Lock()
		if made == changes && s.updates > changes/2 {
			t.Errorf("node %d was sent %d snapshots for %d changes", i, s.updates, changes)
		}
		s.mu.Unlock()
	}
}

// A node that says that it has something else than it should gets the snapshot again.
func TestHelloAgain(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	n := o.join(t, c.addr, "n1", "ams")
	s := n.sync(t, c.addr, apply)
	s.wait(t, "a snapshot", func() bool { return s.snapshot != nil })
	// It has lost it; for instance because its apply was undone. It says so more than once, since the
	// acknowledgement of a snapshot that is on its way just now says the opposite.
	lost := hello()
	lost.GetHello().AppliedRevision = 1
	eventually(t, "the controller knows", func() error {
		s.say(t, lost)
		if o.node(t, n.id).GetAppliedRevision() != 1 {
			return fmt.Errorf("%v", o.node(t, n.id))
		}
		return nil
	})
	// A snapshot that was sent a moment ago is not sent again for the asking: a node that refuses it
	// would keep it travelling. The next change is sent, of course.
	must[*v1.Region](t)(o.CreateRegion(t.Context(), &v1.CreateRegionRequest{Region: &v1.Region{Name: "x"}}))
	s.wait(t, "the next one", func() bool {
		return slices.ContainsFunc(s.snapshot.Regions, func(r model.Region) bool { return r.Name == "x" })
	})
	s.mu.Lock()
	if s.repeats > 0 {
		t.Errorf("%d of %d snapshots were sent twice", s.repeats, s.updates)
	}
	s.mu.Unlock()
	wantCode(t, "the stream", s.errNow(), codes.OK)
	// What nobody has told it yet it can only have from a store that has gone back since.
	s.say(t, &v1.NodeMessage{Body: &v1.NodeMessage_Ack{Ack: &v1.SnapshotAck{Revision: 1 << 40, Applied: true}}})
	eventually(t, "a node from the future is a problem", func() error {
		if p := o.problems(t); !strings.Contains(p, "restored from a backup") {
			return errors.New(p)
		}
		return nil
	})
}

func (c *conversation) errNow() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}
