package balance

// `make generate` has the pinned tool and the compiler's flags; the output is committed.
//go:generate bpf2go -target bpfel -type member -type row -type address -type flow -type place -type settings -type choice balance balance.c
