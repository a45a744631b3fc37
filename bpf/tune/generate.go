package tune

// `make generate` has the pinned tool and the compiler's flags; the output is committed.
//go:generate bpf2go -target bpfel -type sample tune tune.c
