package xdp

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

// place is a namespace with two pairs of interfaces, a0–a1 and b0–b1, and a directory on a BPF file system.
type place struct {
	t   *testing.T
	ns  *netns.NS
	dir string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	ns, err := netns.ForTest(t, "XDP").New("host")
	must(t, err)
	for _, pair := range []string{"a", "b"} {
		must(t, netns.Veth(netns.End{NS: ns, Dev: pair + "0"}, netns.End{NS: ns, Dev: pair + "1"}))
	}
	dir := t.TempDir()
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &place{t, ns, filepath.Join(dir, "pins")}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program passes everything.
func program(t *testing.T) (*ebpf.Program, uint32) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	info, err := p.Info()
	must(t, err)
	id, _ := info.ID()
	return p, uint32(id)
}

func attachments(dir string) *Attachments {
	return &Attachments{Dir: dir, Log: slog.New(slog.DiscardHandler)}
}

// attach attaches from within the namespace.
func (p *place) attach(a *Attachments, prog *ebpf.Program, dev string, mode Mode) (got Mode, err error) {
	p.t.Helper()
	err = p.ns.Do(func() (err error) {
		got, err = a.Attach(prog, p.index(dev), mode)
		return err
	})
	return got, err
}

func (p *place) index(dev string) (index int) {
	p.t.Helper()
	must(p.t, p.ns.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil {
			index = l.Attrs().Index
		}
		return err
	}))
	return index
}

// attached returns which program an interface has, and how; 0: none.
func (p *place) attached(dev string) (id uint32, mode Mode) {
	p.t.Helper()
	must(p.t, p.ns.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if x := l.Attrs().Xdp; x != nil && x.Attached {
			id = x.ProgId
			mode = map[uint32]Mode{1: Native, 2: Generic}[x.AttachMode] // XDP_ATTACHED_DRV, XDP_ATTACHED_SKB
		}
		return nil
	}))
	return id, mode
}

func (p *place) wants(what, dev string, id uint32, mode Mode) {
	p.t.Helper()
	if gotID, gotMode := p.attached(dev); gotID != id || gotMode != mode {
		p.t.Errorf("%s: %s has program %d (%v), want %d (%v)", what, dev, gotID, gotMode, id, mode)
	}
}

// Auto is native where the driver can, and generic elsewhere; native is never less. What is not pinned ends.
func TestModes(t *testing.T) {
	p := newPlace(t)
	prog, id := program(t)
	for _, c := range []struct {
		dev        string
		mode, want Mode // Auto: it can't be had
	}{
		{"a0", Auto, Native}, {"a0", Native, Native}, {"a0", Generic, Generic},
		{"lo", Auto, Generic}, {"lo", Generic, Generic}, {"lo", Native, Auto},
	} {
		a := attachments("")
		got, err := p.attach(a, prog, c.dev, c.mode)
		switch what := c.dev + ", " + c.mode.String(); {
		case c.want == Auto:
			if err == nil || !strings.Contains(err.Error(), "attach xdp program to interface") {
				t.Errorf("%s: %v", what, err)
			}
			p.wants(what, c.dev, 0, Auto)
		case err != nil || got != c.want:
			t.Errorf("%s: %v, %v", what, got, err)
		default:
			p.wants(what, c.dev, id, c.want)
		}
		must(t, a.Close())
		p.wants("after the end", c.dev, 0, Auto)
	}
}

// An interface has room for one program: the second one is refused, and the first one stays.
func TestOccupied(t *testing.T) {
	p := newPlace(t)
	first, id := program(t)
	second, _ := program(t)
	a, b := attachments(p.dir), attachments("")
	defer a.Close()
	_, err := p.attach(a, first, "a0", Generic)
	must(t, err)
	if _, err := p.attach(b, second, "a0", Generic); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the second program: %v", err)
	}
	if _, err := p.attach(b, second, "a0", Auto); err == nil { // nor in the other mode
		t.Error("the second program is attached natively beside the first one")
	}
	p.wants("after both", "a0", id, Generic)
	if _, err := p.attach(b, second, "b0", Generic); err != nil {
		t.Errorf("another interface: %v", err)
	}
	must(t, b.Close())
	p.wants("the other interface, after the end", "b0", 0, Auto)
	must(t, Remove(p.dir))
}

// What is pinned goes on after the end, and the next process puts its program into the same attachment.
func TestPinned(t *testing.T) {
	p := newPlace(t)
	first, firstID := program(t)
	second, secondID := program(t)
	a := attachments(p.dir)
	for _, dev := range []string{"a0", "b0"} {
		mode, err := p.attach(a, first, dev, Generic)
		if err != nil || mode != Generic {
			t.Fatalf("%s: %v, %v", dev, mode, err)
		}
	}
	must(t, a.Close())
	p.wants("after the end", "a0", firstID, Generic)
	p.wants("after the end", "b0", firstID, Generic)

	next := attachments(p.dir)
	mode, err := p.attach(next, second, "a0", Native) // the mode is its maker's
	if err != nil || mode != Auto {
		t.Errorf("the next process: %v, %v", mode, err)
	}
	p.wants("replaced", "a0", secondID, Generic)
	p.wants("not replaced yet", "b0", firstID, Generic)
	must(t, next.Close())
	p.wants("after the second end", "a0", secondID, Generic)

	must(t, Detach(p.dir, p.index("a0")))
	p.wants("detached", "a0", 0, Auto)
	p.wants("not detached", "b0", firstID, Generic)
	must(t, Detach(p.dir, p.index("a0"))) // nothing there is no error
	must(t, Detach(p.dir, 12345))
	must(t, Remove(p.dir))
	p.wants("removed", "b0", 0, Auto)
	if _, err := os.Stat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of pins: %v", err)
	}
	must(t, Remove(p.dir))
}

// A pin of an interface that is gone is no obstacle for the one that has its number now; one that is not an
// attachment is an error, and is not thrown away.
func TestStalePins(t *testing.T) {
	p := newPlace(t)
	prog, id := program(t)
	index := p.index("a0")
	a := attachments(p.dir)
	_, err := p.attach(a, prog, "a0", Generic)
	must(t, err)
	must(t, a.Close())
	must(t, p.ns.Do(func() error {
		old, err := netlink.LinkByName("a0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = "a2", index
		return errors.Join(netlink.LinkDel(old), netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "a3"}))
	}))
	if got := p.index("a2"); got != index {
		t.Fatalf("the new interface has number %d, want %d", got, index)
	}
	if mode, err := p.attach(a, prog, "a2", Generic); err != nil || mode != Generic {
		t.Errorf("the interface that has the number now: %v, %v", mode, err)
	}
	p.wants("the new interface", "a2", id, Generic)
	must(t, a.Close())
	must(t, Remove(p.dir))

	must(t, PrepareDir(p.dir))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	defer m.Close()
	pin := pinOf(p.dir, p.index("b0"))
	must(t, m.Pin(pin))
	if _, err := p.attach(a, prog, "b0", Generic); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("a map in the place of an attachment: %v", err)
	}
	p.wants("with a map for a pin", "b0", 0, Auto)
	if _, err := os.Stat(pin); err != nil {
		t.Errorf("what somebody else pinned: %v", err)
	}
}

// Pins need a BPF file system, and the error says how to get one.
func TestNoBPFFileSystem(t *testing.T) {
	p := newPlace(t)
	prog, _ := program(t)
	if _, err := p.attach(attachments(t.TempDir()), prog, "a0", Generic); err == nil ||
		!strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("error is %v", err)
	}
	p.wants("without a place for its pin", "a0", 0, Auto)
}

func TestParseMode(t *testing.T) {
	for _, m := range []Mode{Auto, Native, Generic} {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%v: %v, %v", m, got, err)
		}
	}
	for _, s := range []string{"", "Native", "offload"} {
		if m, err := ParseMode(s); err == nil || !strings.Contains(err.Error(), "auto, native or generic") {
			t.Errorf("%q: %v, %v", s, m, err)
		}
	}
}
