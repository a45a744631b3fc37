package dispatch

// `make generate` has the pinned tool and the compiler's flags; the output is committed.
//go:generate bpf2go -target bpfel dispatch dispatch.c
