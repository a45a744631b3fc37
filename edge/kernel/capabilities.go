package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Capability is a privilege of a process (capabilities(7)).
type Capability struct {
	Name string
	Bit  int
	For  string // what it is needed for
}

// Capabilities lists what a node can use. It needs none of them, and never root.
var Capabilities = []Capability{
	{"CAP_BPF", unix.CAP_BPF, "to load the kernel programs"},
	{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN,
		"to attach the kernel programs, give accelerated addresses to this machine, and have large UDP buffers"},
	{"CAP_PERFMON", unix.CAP_PERFMON, "to load guard and balance, which compare packets' pointers"},
	{"CAP_NET_BIND_SERVICE", unix.CAP_NET_BIND_SERVICE, "to listen on ports below 1024"},
}

// bpfCapabilities are those that every program needs, and xdpCapabilities those that guard and balance need, too.
var (
	bpfCapabilities = Capabilities[:2]
	xdpCapabilities = Capabilities[2:3]
)

// effective returns the set of effective capabilities of this thread.
func effective() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("ask for capabilities: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

// missingCapabilities returns the names of those that this process has not got.
func missingCapabilities(of []Capability) []string {
	have, err := effective()
	if err != nil {
		return nil
	}
	var missing []string
	for _, c := range of {
		if have&(1<<c.Bit) == 0 {
			missing = append(missing, c.Name)
		}
	}
	return missing
}
