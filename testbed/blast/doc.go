// Package blast answers: how are packets sent faster than what is measured with them can take, and to whom does
// the CPU time go meanwhile?
//
// A Source has the kernel make frames and push them into one end of a cable (XDP "live frames"), on one CPU, as
// fast as that can. A Flood sends at a rate, from user space, and takes little CPU. Place puts all work that the
// receiving end of a cable has with packets onto a thread and a CPU of its own, whose time can then be told.
//
// Sources of packets are spread over Network(0) to Network(n-1), which are of mixed sizes and far apart, as the
// entries of real lists are.
package blast

// `make generate` has the pinned tool and the compiler's flags; the output is committed.
//go:generate bpf2go -target bpfel blast blast.c
