package guard

// `make generate` has the pinned tool and the compiler's flags; the output is committed.
//go:generate bpf2go -target bpfel -type event -type rate -type state -type membership guard guard.c
