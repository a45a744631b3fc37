// Package xdp answers: how does an XDP program get onto an interface, and stay there when its daemon ends?
//
// An attachment may be pinned. Then the program goes on while no daemon runs, and the next daemon puts its own
// program into its place in one step.
package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Mode is where the kernel runs the program.
type Mode uint8

// The modes.
const (
	Auto    Mode = 0 // native, or generic where the driver can't
	Native  Mode = 1 // in the driver, before a packet costs anything
	Generic Mode = 2 // after the driver: works on any interface, and costs an allocation per packet
)

func (m Mode) String() string {
	switch m {
	case Native:
		return "native"
	case Generic:
		return "generic"
	}
	return "auto"
}

// ParseMode reads a mode.
func ParseMode(s string) (Mode, error) {
	for _, m := range []Mode{Auto, Native, Generic} {
		if s == m.String() {
			return m, nil
		}
	}
	return Auto, fmt.Errorf("%q is not auto, native or generic", s)
}

// Attachments are one program's, on any number of interfaces. Callers do not use one concurrently.
type Attachments struct {
	Dir string       // on a BPF file system, for the pins; made if it isn't there. Empty: they end with the process
	Log *slog.Logger // not nil

	links []link.Link
}

// Attach attaches the program to an interface, or puts it in the place of the one that an earlier process
// pinned for it. It returns the mode that came of Auto; of a pinned attachment the mode is its maker's, and Auto
// is returned.
func (a *Attachments) Attach(program *ebpf.Program, index int, mode Mode) (Mode, error) {
	pin := ""
	if a.Dir != "" {
		if err := PrepareDir(a.Dir); err != nil {
			return mode, err
		}
		pin = pinOf(a.Dir, index)
		switch l, err := reattach(pin, program, index); {
		case err == nil:
			a.links = append(a.links, l)
			return Auto, nil
		case !errors.Is(err, os.ErrNotExist):
			return mode, err
		}
	}
	l, mode, err := a.attach(program, index, mode)
	if err != nil {
		return mode, fmt.Errorf("attach xdp program to interface %d: %w", index, err)
	}
	if pin != "" {
		if err := l.Pin(pin); err != nil {
			return mode, errors.Join(fmt.Errorf("pin attachment: %w", err), l.Close())
		}
	}
	a.links = append(a.links, l)
	return mode, nil
}

func pinOf(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("interface-%d", index))
}

func (a *Attachments) attach(program *ebpf.Program, index int, mode Mode) (link.Link, Mode, error) {
	opts := link.XDPOptions{Program: program, Interface: index}
	if mode != Generic {
		opts.Flags = link.XDPDriverMode
		l, err := link.AttachXDP(opts)
		if err == nil || mode == Native {
			return l, Native, err
		}
		a.Log.Warn("no native XDP on the interface, so generic XDP is used", "interface", index, "err", err)
	}
	opts.Flags = link.XDPGenericMode
	l, err := link.AttachXDP(opts)
	return l, Generic, err
}

// reattach is os.ErrNotExist when nothing is pinned, or something for an interface that is gone.
func reattach(pin string, program *ebpf.Program, index int) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned attachment: %w", err)
	}
	info, err := l.Info()
	if x := info; err == nil && x.XDP() != nil && x.XDP().Ifindex != uint32(index) {
		l.Close() // the kernel says 0 once the interface is gone
		if err := os.Remove(pin); err != nil {
			return nil, err
		}
		return nil, os.ErrNotExist
	}
	if err == nil {
		err = l.Update(program)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("take over pinned attachment: %w", err)
	}
	return l, nil
}

// Close lets go of the attachments: what is pinned stays, what isn't ends.
func (a *Attachments) Close() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	a.links = nil
	return errors.Join(errs...)
}

// PrepareDir makes a directory for pins, which has to be on a BPF file system.
func PrepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at pin directory: %w", err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s is not on a BPF file system: "+
			"mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	}
	return nil
}

// Detach ends what is pinned in a directory for one interface. It is no error if there is nothing.
func Detach(dir string, index int) error {
	pin := pinOf(dir, index)
	err := detach(pin)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.Remove(pin))
}

func detach(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return fmt.Errorf("open pinned attachment: %w", err)
	}
	return errors.Join(l.Detach(), l.Close()) // not left to the last reference
}

// Remove ends all attachments that are pinned in a directory, and removes it with whatever else is in it. It is no
// error if there is nothing.
func Remove(dir string) error {
	pins, err := filepath.Glob(filepath.Join(dir, "interface-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, pin := range pins {
		errs = append(errs, detach(pin))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}
