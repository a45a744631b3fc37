package kernel

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

func TestReleases(t *testing.T) {
	for s, want := range map[string][2]int{
		"6.8.0-31-generic": {6, 8}, "5.15.0": {5, 15}, "5.4": {5, 4}, "6.18.44-fc-v782": {6, 18},
	} {
		major, minor, err := parseRelease(s)
		if err != nil || major != want[0] || minor != want[1] {
			t.Errorf("%s: %d.%d, %v", s, major, minor, err)
		}
	}
	if _, _, err := parseRelease("linux"); err == nil {
		t.Error("a release without a version was accepted")
	}
	if err := MinimumKernel(); err != nil {
		t.Errorf("this kernel: %v", err)
	}
}

func TestModes(t *testing.T) {
	for _, s := range []string{"auto", "on", "off"} {
		if m, err := ParseMode(s); err != nil || string(m) != s {
			t.Errorf("%s: %v, %v", s, m, err)
		}
	}
	for _, c := range []Config{
		{Modes: map[Name]Mode{"nonsense": On}}, {Modes: map[Name]Mode{Dispatch: "maybe"}}, {PinDir: "relative"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

// off is every program switched off but those named.
func off(but ...Name) map[Name]Mode {
	m := map[Name]Mode{}
	for _, name := range Names {
		m[name] = Off
	}
	for _, name := range but {
		m[name] = On
	}
	return m
}

// gathered returns how many metrics of a name there are.
func gathered(r *prometheus.Registry, name string) (n int, err error) {
	families, err := r.Gather()
	for _, f := range families {
		if f.GetName() == name {
			n += len(f.Metric)
		}
	}
	return n, err
}

// TestAbsent: without a program everything goes on, and it is said what that costs.
func TestAbsent(t *testing.T) {
	registry := prometheus.NewRegistry()
	// Not a BPF file system: nothing can be pinned there.
	p, err := New(Config{PinDir: t.TempDir(), GuardInterfaces: []string{"lo"}, BalanceInterfaces: []string{"lo"},
		Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Dispatch() != nil {
		t.Error("dispatch is there without its pins")
	}
	notes := p.Notes()
	if len(notes) != len(Names) || len(notes) == 0 {
		t.Fatalf("notes are %q", notes)
	}
	for i, s := range p.States() {
		if s.Present || s.Why == "" || s.Cost == "" || !strings.Contains(notes[i], string(s.Program)) {
			t.Errorf("%+v, %q", s, notes[i])
		}
	}
	if n, err := gathered(registry, "nearcast_kernel_program"); err != nil || n != len(Names) {
		t.Errorf("%d metrics, %v", n, err)
	}
	if _, err := New(Config{PinDir: t.TempDir(), Modes: off(Dispatch)}); err == nil {
		t.Error("a program that must be there was missing, and the node started")
	}
	quiet, err := New(Config{Modes: off()})
	if err != nil || len(quiet.Notes()) > 0 {
		t.Errorf("what is off is noted: %q, %v", quiet.Notes(), err)
	}
}

func TestPresent(t *testing.T) {
	netns.RequireRoot(t, "load kernel programs")
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	registry := prometheus.NewRegistry()
	p, err := New(Config{PinDir: filepath.Join(dir, "node"), Modes: off(Dispatch), Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	if p.Dispatch() == nil || len(p.Notes()) > 0 {
		t.Errorf("%+v", p.States())
	}
	if n, err := gathered(registry, "nearcast_kernel_dispatch_total"); err != nil || n != 4 {
		t.Errorf("%d metrics, %v", n, err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := gathered(registry, ""); err != nil {
		t.Errorf("metrics of closed programs: %v", err)
	}
}
