package scenario

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestThreeControllers keeps one store on three controllers. Each is killed in turn, so the leader is
// among them; then two at once, so that no majority is left.
func TestThreeControllers(t *testing.T) {
	dir := t.TempDir()
	// What etcd's clients are shown is demanded of them, too: the members' authority made both.
	client := []string{"--etcd-ca", filepath.Join(dir, "peer-certs", "ca.pem"), "--etcd-cert",
		filepath.Join(dir, "peer-certs", "ctl-1.pem"), "--etcd-key", filepath.Join(dir, "peer-certs", "ctl-1.key")}
	d := raise(t, "main", func(s *world.Spec) {
		s.Controllers.Count = 3
		s.Spares = []world.SpareSpec{{Name: "ctl-ext", At: "fra"}}
	}, world.Options{Dir: dir, ControllerArgs: append(client, "--etcd-client-listen", "0.0.0.0:2379")})
	for i, victim := range d.Controllers {
		t.Run(victim.Name+" killed", func(t *testing.T) { d.oneOfThree(t, i) })
	}
	t.Run("majority lost and back", d.majorityLost)
	t.Run("external etcd", func(t *testing.T) { d.externalStore(t, client) })
}

// externalStore: a fourth controller has no store of its own and uses the first one's as it would any
// etcd.
func (d *deployment) externalStore(t *testing.T, client []string) {
	etcd := "https://" + netip.AddrPortFrom(d.Host("ctl-1").V4, 2379).String()
	p := d.ControllerProcess("ctl-ext", append(client, "--etcd-endpoints", etcd)...)
	d.start(t, p)
	defer func() { d.do(t, p.Stop()) }()
	if _, err := d.CLIAt(d.ctx, "ctl-ext", "accelerator", "create", "outside", "--disabled"); err != nil {
		t.Error(err)
	}
	eventually(t, 30*time.Second, "the others know it", func() error {
		_, err := d.CLIVia(d.ctx, 0, "accelerator", "get", "outside")
		return err
	})
}

func (d *deployment) oneOfThree(t *testing.T, i int) {
	victim, name := d.Controllers[i], fmt.Sprintf("during-%d", i)
	kill(t, victim)
	took := eventually(t, 60*time.Second, "a change through another controller", func() error {
		_, err := d.CLIVia(d.ctx, (i+1)%3, "accelerator", "create", name, "--disabled", "--idempotency-token", name)
		return err
	})
	t.Logf("%s killed: a change was taken %v after", victim.Name, took.Round(time.Millisecond))
	as := d.steadyRate("jakarta", 50*time.Millisecond, func() { time.Sleep(time.Second) })
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
	d.start(t, victim)
	eventually(t, 60*time.Second, "it knows the change", func() error {
		_, err := d.CLIVia(d.ctx, i, "accelerator", "get", name)
		return err
	})
}

// majorityLost: nothing can be changed, and says so instead of hanging; clients do not notice. With
// a majority again, changes are taken.
func (d *deployment) majorityLost(t *testing.T) {
	kill(t, d.Controllers[0], d.Controllers[1])
	begin := time.Now()
	_, err := d.CLIVia(d.ctx, 2, "accelerator", "create", "without-majority", "--disabled")
	if err == nil {
		t.Error("a change was taken without a majority")
	}
	t.Logf("a change without a majority ends after %v: %v", time.Since(begin).Round(time.Millisecond), err)
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() { time.Sleep(5 * time.Second) })
	say(t, "two of three controllers dead", as)
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
	d.start(t, d.Controllers[0], d.Controllers[1])
	took := eventually(t, 60*time.Second, "a change with a majority again", func() error {
		_, err := d.CLIVia(d.ctx, 2, "accelerator", "create", "again", "--disabled", "--idempotency-token", "again")
		return err
	})
	t.Logf("a change was taken %v after the others were ready", took.Round(time.Millisecond))
}
