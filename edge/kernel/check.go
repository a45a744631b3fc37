package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/bpf/tune"
)

// Finding is one thing that a machine can do or cannot.
type Finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"`  // not, or what was found
	Cost string `json:"cost,omitempty"` // of going without
}

// ifNamed is said of programs that are attached to interfaces which the operator names.
const ifNamed = " (if interfaces are named)"

// Check looks at what this machine and this process can do for a node. Programs are loaded, which nothing is
// attached to or goes through, and let go of.
func Check() []Finding {
	var all []Finding
	add := func(what, cost string, err error, found string) {
		f := Finding{What: what, OK: err == nil, Why: found}
		if err != nil {
			f.Why, f.Cost = explain(err).Error(), cost
		}
		all = append(all, f)
	}
	release, _ := kernelRelease()
	add(fmt.Sprintf("Linux %d.%d or newer", kernelMajor, kernelMinor), "no kernel program is loaded", MinimumKernel(), release)
	have, err := effective()
	for _, c := range Capabilities {
		lacks := err
		if lacks == nil && have&(1<<c.Bit) == 0 {
			lacks = errors.New("this process has not got it")
		}
		add(c.Name, "needed "+c.For, lacks, "")
	}
	for _, name := range Names {
		if name != Guard && name != Balance {
			add("program "+string(name), costs[name], tryLoad(name), "")
		}
	}
	for _, name := range []Name{Balance, Guard} {
		add("program "+string(name+ifNamed), costs[name], tryLoad(name), "")
	}
	add("BPF file system at "+bpfFileSystem, "an upgrade moves UDP flows, and what tune has learned ends with the process",
		onBPFFS(bpfFileSystem), "")
	var noBBR error
	if !hasCongestion("bbr") {
		noBBR = errors.New("not in " + congestionsFile + " (modprobe tcp_bbr)")
	}
	add("congestion control bbr", "lossy client lines and lossy backbone paths are slower", noBBR, "")
	add("buffers of UDP sockets (net.core.rmem_max)", "without CAP_NET_ADMIN bursts of datagrams are lost", enoughBuffer(), "")
	return all
}

// tryLoad loads a program and lets go of it.
func tryLoad(name Name) error {
	if err := MinimumKernel(); err != nil {
		return err
	}
	switch name {
	case Dispatch:
		d, err := dispatch.Load(dispatch.Config{})
		if err != nil {
			return err
		}
		return d.Close()
	case Balance:
		b, err := balance.Load(balance.Config{})
		if err != nil {
			return err
		}
		return b.Close()
	case Guard:
		g, err := guard.Load(guard.Config{})
		if err != nil {
			return err
		}
		return g.Close()
	case Tune:
		t, err := tune.Load(tune.Config{})
		if err != nil {
			return err
		}
		// Attached for a moment: no socket is marked, so it touches none.
		return errors.Join(t.Attach(), t.Close())
	}
	return errors.New("cannot be tried by itself")
}

// bufferWanted is what a UDP socket asks for.
const bufferWanted = 8 << 20

func enoughBuffer() error {
	have, err := effective()
	if err == nil && have&(1<<unix.CAP_NET_ADMIN) != 0 {
		return nil // it need not ask
	}
	text, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return nil // a namespace without: the machine's holds
	}
	var n int
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &n); err == nil && n < bufferWanted {
		return fmt.Errorf("%d bytes, %d are wanted (sysctl net.core.rmem_max=%d)", n, bufferWanted, bufferWanted)
	}
	return nil
}
