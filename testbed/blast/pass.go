package blast

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nearcast/nearcast/testbed/netns"
)

const xdpPass = 2 // XDP_PASS of linux/bpf.h

// Pass attaches a native XDP program that passes everything to an interface of the namespace, until it is closed.
// What a native program at the other end of a veth sends back stays in the ring unless there is one.
func Pass(ns *netns.NS, dev string) (io.Closer, error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}})
	if err != nil {
		return nil, fmt.Errorf("load program that passes: %w", err)
	}
	var l link.Link
	err = ns.Do(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: i.Index, Flags: link.XDPDriverMode})
		return err
	})
	if err = errors.Join(err, program.Close()); err != nil { // the attachment holds it
		return nil, fmt.Errorf("attach program that passes to %s: %w", dev, err)
	}
	return l, nil
}
