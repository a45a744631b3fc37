package ports

import "golang.org/x/sys/unix"

// WaitForPrograms returns when every run of a BPF program that began before the call has ended.
func WaitForPrograms() {
	// The kernel implements the global barrier by waiting for an RCU grace period, and programs run within one.
	// It refuses on machines with CPUs that never tick; a run takes a microsecond, so waiting does there.
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &unix.Timespec{Nsec: 10e6}, nil)
	}
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1
