package guard

import "github.com/cilium/ebpf"

// What the program returns (enum xdp_action of the kernel).
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTx   = 3
)

// frameMin is the shortest frame that the kernel runs a program on: an Ethernet header.
const frameMin = 14

// runOptions run the program on one frame. The kernel wants room for what comes out.
func runOptions(frame []byte, out *[]byte) *ebpf.RunOptions {
	return &ebpf.RunOptions{Data: frame, DataOut: *out, Repeat: 1}
}
