package scenario

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestIntruders lets machines and operators in that have no business here.
func TestIntruders(t *testing.T) {
	// A machine that is plugged in but enrolled as nothing: the spare node of the site.
	d := raise(t, "main", func(s *world.Spec) { s.Spares = []world.SpareSpec{{Name: "stranger", At: "fra"}} },
		world.Options{})
	t.Run("wrong join tokens", d.wrongTokens)
	t.Run("gossip garbage", d.gossipGarbage)
	t.Run("backbone without a certificate", d.backboneWithoutCertificate)
	t.Run("endpoints that point inside", d.forbiddenEndpoints)
	t.Run("a used-up token", d.usedToken)
}

// tryToJoin starts a node with a token on the stranger's machine and expects that it gets nowhere:
// it may end or go on trying, but it must not become a node.
func (d *deployment) tryToJoin(t *testing.T, token string) {
	t.Helper()
	p := d.NodeProcess("stranger", "fra", []string{"edge", "gateway"}, token)
	if err := os.RemoveAll(filepath.Join(filepath.Dir(p.Log), "stranger")); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, 4*time.Second)
	defer cancel()
	if err := p.Ready(ctx); err == nil {
		t.Error("it became ready")
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	nodes, err := d.CLI(d.ctx, "node", "list")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(nodes, "stranger") {
		t.Errorf("it became a node:\n%s", nodes)
	}
	log, _ := os.ReadFile(p.Log)
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	t.Logf("it says: %s", lines[len(lines)-1])
}

func (d *deployment) wrongTokens(t *testing.T) {
	good, err := d.JoinToken(d.ctx, "fra", "stranger", []string{"edge", "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) string {
		b := []byte(good)
		if b[i] == '0' {
			b[i] = '1'
		} else {
			b[i] = '0'
		}
		return string(b)
	}
	t.Run("another authority", func(t *testing.T) { d.tryToJoin(t, flip(10)) })
	t.Run("wrong secret", func(t *testing.T) { d.tryToJoin(t, flip(len(good)-1)) })
	t.Run("no token at all", func(t *testing.T) { d.tryToJoin(t, "NC1nonsense") })
	other, err := d.JoinToken(d.ctx, "fra", "somebody-else", []string{"edge", "gateway"})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("for another node", func(t *testing.T) { d.tryToJoin(t, other) })
}

func (d *deployment) usedToken(t *testing.T) {
	token, err := d.JoinToken(d.ctx, "fra", "stranger", []string{"edge"})
	if err != nil {
		t.Fatal(err)
	}
	p := d.NodeProcess("stranger", "fra", []string{"edge"}, token)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(d.ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := d.CLI(d.ctx, "node", "delete", "stranger", "--yes"); err != nil {
		t.Fatal(err)
	}
	d.tryToJoin(t, token)
}

// gossipGarbage sends packets that no member sent, 10,000 a second for a minute, to every node.
func (d *deployment) gossipGarbage(t *testing.T) {
	victims := []string{"sin-1", "fra-1"}
	// What a process holds is judged by the size of its heap at which it is collected next, twice what was in use at the
	// last time: what is resident depends on how soon a busy machine lets it collect.
	const resident, heap = "process_resident_memory_bytes", "go_memstats_next_gc_bytes"
	before, heapBefore := map[string]float64{}, map[string]float64{}
	for _, v := range victims {
		before[v], heapBefore[v] = metric(t, d.Nodes[v], resident), metric(t, d.Nodes[v], heap)
	}
	nodesBefore, err := d.CLI(d.ctx, "node", "list")
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.NS("stranger").ListenPacket(d.ctx, "udp4", netip.MustParseAddrPort("0.0.0.0:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent, begin := 0, time.Now()
	as := d.steadyRate("jakarta", 50*time.Millisecond, func() { sent = d.spray(c, victims, time.Minute, garbageLeast) })
	t.Logf("%d packets in %.0f s", sent, time.Since(begin).Seconds())
	say(t, "meanwhile", as)
	if sent < garbageLeast {
		t.Errorf("only %d packets were sent", sent)
	}
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
	for _, v := range victims {
		t.Logf("%s: resident %s before, %s after", v, mib(before[v]), mib(metric(t, d.Nodes[v], resident)))
		eventually(t, 2*time.Minute, v+"'s heap has not grown by more than 32 MiB", func() error { // garbage goes in time
			after := metric(t, d.Nodes[v], heap)
			if after > heapBefore[v]+32<<20 {
				return fmt.Errorf("from %s to %s", mib(heapBefore[v]), mib(after))
			}
			t.Logf("%s: heap before its next collection %s before, %s after", v, mib(heapBefore[v]), mib(after))
			return nil
		})
	}
	nodesAfter, err := d.CLI(d.ctx, "node", "list")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(nodesAfter, "\n") != strings.Count(nodesBefore, "\n") {
		t.Errorf("the nodes changed:\n%s\nbefore:\n%s", nodesAfter, nodesBefore)
	}
}

// garbageLeast is how many packets of garbage are sent on a machine that is too slow for 10,000 a second.
const garbageLeast = 300_000

// spray sends random packets at 10,000 a second, in bursts of 100, to the victims in turn, for so long, and longer
// until there were so many; but not longer than four times that.
func (d *deployment) spray(c *net.UDPConn, victims []string, lasts time.Duration, least int) (sent int) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 512)
	for begin := time.Now(); d.ctx.Err() == nil; <-tick.C {
		if past := time.Since(begin); past > 4*lasts || past > lasts && sent >= least {
			break
		}
		for i := range 100 {
			_, _ = rand.Read(buf[:64])
			to := netip.AddrPortFrom(d.Host(victims[i%len(victims)]).V4, 7445)
			if _, err := c.WriteToUDPAddrPort(buf[:64+i*4], to); err == nil {
				sent++
			}
		}
	}
	return sent
}

// backboneWithoutCertificate talks to a gateway's backbone port without being a node.
func (d *deployment) backboneWithoutCertificate(t *testing.T) {
	to := netip.AddrPortFrom(d.Host("fra-1").V4, 7444).String()
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	c, err := d.Dial("stranger")(ctx, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	garbage := make([]byte, 4096)
	_, _ = rand.Read(garbage)
	_, _ = c.Write(garbage)
	if _, err := c.Read(make([]byte, 4096)); err == nil {
		// An alert may come first; the connection must end then.
		if n, err := c.Read(make([]byte, 4096)); err == nil {
			t.Errorf("the gateway goes on talking to a stranger: %d bytes", n)
		}
	}
	if _, err := d.fetchFrom("jakarta"); err != nil {
		t.Errorf("others suffer: %v", err)
	}
}

// forbiddenEndpoints asks for endpoints that would turn the gateway against its own network.
func (d *deployment) forbiddenEndpoints(t *testing.T) {
	group := d.app.Groups[d.app.TCP+"/eu-fra-1"]
	cases := []string{
		"127.0.0.1", "169.254.169.254", "fe80::1", "::1", "224.0.0.1", "0.0.0.0", "255.255.255.255",
		"::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", d.app.Addresses[0].String(),
		"198.51.100.15", d.Host("fra-1").V4.String(),
	}
	for _, endpoint := range cases {
		if _, err := d.CLI(d.ctx, "endpoint", "add", group, endpoint); err == nil {
			t.Errorf("%s was accepted", endpoint)
			_, _ = d.CLI(d.ctx, "endpoint", "remove", group, endpoint, "--yes")
		} else if !strings.Contains(err.Error(), "endpoint") {
			t.Errorf("%s: the error does not name the field: %v", endpoint, err)
		}
	}
}
