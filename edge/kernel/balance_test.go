package kernel

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/bpf/xdp"
	"github.com/nearcast/nearcast/testbed/netns"
)

// TestBalanceAndGuard: both work on one interface, the guard behind balance, whichever was there before.
func TestBalanceAndGuard(t *testing.T) {
	set := netns.ForTest(t, "XDP")
	ns, err := set.New("node")
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Veth(netns.End{NS: ns, Dev: "wire"}, netns.End{NS: ns, Dev: "far"}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	wire := []string{"wire"}
	for _, step := range []struct {
		name           string
		guard, balance []string
		attached       Name // to the interface; "": nothing
	}{
		{"guard", wire, nil, Guard},
		{"both", wire, wire, Balance},
		{"both again", wire, wire, Balance},
		{"balance", nil, wire, Balance},
		{"guard again", wire, nil, Guard},
		{"both once more", wire, wire, Balance},
	} {
		cfg := Config{PinDir: filepath.Join(dir, "node"), Modes: map[Name]Mode{Dispatch: Off, Tune: Off},
			GuardInterfaces: step.guard, BalanceInterfaces: step.balance, XDPMode: xdp.Generic}
		err := ns.Do(func() error {
			p, err := New(cfg)
			if err != nil {
				return err
			}
			for _, s := range p.States() {
				want := s.Program == Guard && step.guard != nil || s.Program == Balance && step.balance != nil
				if s.Present != want {
					t.Errorf("%s: %+v", step.name, s)
				}
			}
			on, err := netlink.LinkByName("wire")
			if err != nil {
				return err
			}
			id := on.Attrs().Xdp.ProgId
			if p.guard != nil {
				info, err := p.guard.Program().Info()
				if err != nil {
					return err
				}
				if guard, _ := info.ID(); (uint32(guard) == id) != (step.attached == Guard) {
					t.Errorf("%s: program %d is attached, and the guard is %d", step.name, id, guard)
				}
			}
			if id == 0 {
				t.Errorf("%s: nothing is attached", step.name)
			}
			return p.Close()
		})
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
	off := Config{PinDir: filepath.Join(dir, "node"), Modes: map[Name]Mode{Dispatch: Off, Tune: Off, Balance: Off, Guard: Off}}
	if err := ns.Do(func() error {
		p, err := New(off)
		if err != nil {
			return err
		}
		on, err := netlink.LinkByName("wire")
		if err == nil && on.Attrs().Xdp != nil && on.Attrs().Xdp.Attached {
			t.Error("what is off is attached still")
		}
		return errors.Join(err, p.Close())
	}); err != nil {
		t.Fatal(err)
	}
}

// TestBalancedAddresses: those that any node of the site may get packets for, and no others.
func TestBalancedAddresses(t *testing.T) {
	got := balancedAddresses(guarded(), "self")
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::1/128")}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFlowsNote(t *testing.T) {
	for _, c := range []struct {
		flows balance.Flows
		want  bool
	}{
		{balance.Flows{Room: 1000}, false},
		{balance.Flows{Room: 1000, Used: 500, Silent: 500, Forgotten: 1 << 20}, false}, // only silent ones go
		{balance.Flows{Room: 1000, Used: 899, Silent: 101}, false},
		{balance.Flows{Room: 1000, Used: 900, Forgotten: 77}, true},
	} {
		note := flowsNote(c.flows)
		if (note != "") != c.want || c.want && !(strings.Contains(note, "900 of its 1000") &&
			strings.Contains(note, "77") && strings.Contains(note, "--balance-flows")) {
			t.Errorf("%+v: %q", c.flows, note)
		}
	}
}
