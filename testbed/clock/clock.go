// Package clock answers: what does a program do whose clock is wrong? It gives one process a wall clock that
// is ahead or behind, while the machine's is right.
//
// Linux has time namespaces for the monotonic clocks only, and a preloaded library does not reach static Go
// programs. But every program, of C or of Go, asks for the time in the vDSO, a page of code that the kernel
// maps into each process. Shift writes another clock_gettime there, into this one process's copy: it asks the
// kernel, and adds the offset to CLOCK_REALTIME. Monotonic clocks, timers and timeouts stay as they are, as
// they do on a machine whose clock was set wrong, and nothing is changed in the program under test.
package clock

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"time"
)

// symbol is what programs call (vdso(7), x86-64).
const symbol = "__vdso_clock_gettime"

// Shift sets the wall clock of a process ahead by a whole number of seconds, or behind if it is negative. The
// process must stand still at its first instruction and be traced by the calling thread (ptrace(2)). It holds
// until the process executes another program; its children have the machine's clock. Only for amd64.
func Shift(pid int, off time.Duration) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("shift the clock of process %d: only programs for amd64 can have another clock, not %s",
			pid, runtime.GOARCH)
	}
	seconds := off / time.Second
	if off%time.Second != 0 || seconds < math.MinInt32 || seconds > math.MaxInt32 {
		return fmt.Errorf("shift the clock of process %d: %v is not a whole number of seconds of 32 bits", pid, off)
	}
	// As a tracer one may write where the process itself may not.
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("shift the clock of process %d: %w", pid, err)
	}
	defer mem.Close()
	at, room, err := find(pid, mem)
	if err != nil {
		return fmt.Errorf("shift the clock of process %d: %w", pid, err)
	}
	code := machineCode(int32(seconds))
	if len(code) > int(room) {
		return fmt.Errorf("shift the clock of process %d: %s has %d bytes, %d are needed", pid, symbol, room, len(code))
	}
	if _, err := mem.WriteAt(code, int64(at)); err != nil {
		return fmt.Errorf("shift the clock of process %d: write its vDSO: %w", pid, err)
	}
	return nil
}

// machineCode is clock_gettime(edi: clock, rsi: struct timespec *) with seconds added to CLOCK_REALTIME.
func machineCode(seconds int32) []byte {
	code := []byte{
		0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, 228 (clock_gettime)
		0x0f, 0x05, // syscall: keeps rdi and rsi
		0x85, 0xff, // test edi, edi
		0x75, 0x07, // jnz end: another clock than CLOCK_REALTIME (0)
		0x48, 0x81, 0x06, // add qword [rsi], seconds
	}
	code = binary.LittleEndian.AppendUint32(code, uint32(seconds))
	return append(code, 0xc3) // end: ret
}

// find returns where the function lies in the process, and how many bytes it has.
func find(pid int, mem *os.File) (at, size uint64, err error) {
	begin, end, err := mapped(pid)
	if err != nil {
		return 0, 0, err
	}
	image := make([]byte, end-begin)
	if _, err := mem.ReadAt(image, int64(begin)); err != nil {
		return 0, 0, fmt.Errorf("read its vDSO: %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, 0, fmt.Errorf("its vDSO: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, 0, fmt.Errorf("symbols of its vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name == symbol {
			return begin + s.Value, s.Size, nil
		}
	}
	return 0, 0, fmt.Errorf("its vDSO has no %s", symbol)
}

// mapped returns the addresses of the process's vDSO.
func mapped(pid int) (begin, end uint64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			_, err = fmt.Sscanf(line, "%x-%x", &begin, &end)
			return begin, end, err
		}
	}
	return 0, 0, fmt.Errorf("it has no vDSO")
}
