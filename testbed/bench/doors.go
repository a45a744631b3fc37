package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
)

// Systems that take connections.
const (
	sysSockets = "plain sockets"     // one a listener, as a node has without the kernel program
	sysOne     = "dispatch"          // the program and one socket
	sysEach    = "dispatch, per CPU" // the program and a socket a CPU, each SYN to that of its CPU
	sysTPROXY  = "nftables TPROXY"   // one socket behind a rule of the packet filter
)

// Where the listeners are: the first so many odd ports of an address, or each port of each address of a prefix.
var (
	doorsAddress = netip.MustParseAddr("198.51.100.7")
	doorsPrefix  = netip.MustParsePrefix("203.0.0.0/16")
)

// doorsPort is the port of listener i. No two are side by side, so that no two ranges become one.
func doorsPort(i int) uint16 { return uint16(10_001 + 2*i) }

// DoorsSpec says what RunDoors opens.
type DoorsSpec struct {
	System    string
	Listeners int // 0: every port of every address of a /16
	UDP       bool
	Counter   string // a file of 8 bytes that counts the datagrams
}

// doorsOpened is what opening the listeners took, in seconds and bytes.
type doorsOpened struct {
	Seconds              float64
	Slab, Resident, Maps int64
}

// doors are the listeners of one process of the bench: the node's own doors, with nothing behind them.
type doors struct {
	spec    DoorsSpec
	set     *listen.Set
	program *dispatch.Dispatcher
	proxy   *tproxy
	counter *atomic.Int64
}

// RunDoors opens listeners in this process's network namespace and tells every client when it was accepted. It
// answers to lines of in with lines of JSON: "cpu" with the CPU seconds used so far, "change" with the seconds that
// it takes to remove one listener and to add it again. It ends with in.
func RunDoors(ctx context.Context, spec DoorsSpec, in io.Reader, out io.Writer) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &doors{spec: spec}
	if d.counter, err = mapCounter(spec.Counter); err != nil {
		return err
	}
	before, err := memoryNow()
	if err != nil {
		return err
	}
	begin := time.Now()
	running := make(chan error, 1)
	if err := d.open(ctx, running); err != nil {
		return err
	}
	opened := doorsOpened{Seconds: time.Since(begin).Seconds()}
	after, err := memoryNow()
	if err != nil {
		return err
	}
	opened.Slab, opened.Resident, opened.Maps = after.Slab-before.Slab, after.Resident-before.Resident, after.Maps
	answers := json.NewEncoder(out)
	if err := answers.Encode(opened); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var answer any
		switch lines.Text() {
		case "cpu":
			answer, err = cpuSeconds()
		case "change":
			answer, err = d.change()
		default:
			err = fmt.Errorf("%q is no question", lines.Text())
		}
		if err == nil {
			err = answers.Encode(answer)
		}
		if err != nil {
			return err
		}
	}
	cancel()
	return errors.Join(lines.Err(), <-running)
}

// open opens the listeners. What serves them ends with ctx, and says so to running.
func (d *doors) open(ctx context.Context, running chan<- error) (err error) {
	if d.spec.System == sysTPROXY {
		if d.proxy, err = startTPROXY(ctx, d.spec.Listeners); err == nil {
			go func() { running <- d.proxy.run(ctx) }()
		}
		return err
	}
	cfg := listen.Config{HandleTCP: tellAccepted, HandleUDP: d.count, PortsMax: 20_000, AcceptSockets: 1}
	if d.spec.System == sysEach {
		cfg.AcceptSockets = runtime.NumCPU()
	}
	if d.spec.System != sysSockets {
		if d.program, err = dispatch.Load(dispatch.Config{Steer: dispatch.SteerTCPByCPU}); err != nil {
			return err
		}
		if err := d.program.Attach(); err != nil {
			return err
		}
		cfg.Dispatch = d.program
	}
	if d.set, err = listen.New(cfg); err != nil {
		return err
	}
	if err := d.set.Apply(d.bindings(max(1, d.spec.Listeners))); err != nil {
		return err
	}
	if d.spec.Listeners == 0 { // the doors open addresses; a whole prefix is one rule of the program's
		every := dispatch.Rule{Prefix: doorsPrefix, Ports: dispatch.Ports{First: 1, Last: 65535}, Proto: dispatch.TCP}
		if err := d.program.Update([]dispatch.Rule{every}); err != nil {
			return err
		}
	}
	go func() { running <- d.set.Run(ctx) }()
	return nil
}

// bindings are so many listeners.
func (d *doors) bindings(n int) []listen.Binding {
	all := make([]listen.Binding, n)
	for i := range all {
		port := doorsPort(i)
		all[i] = listen.Binding{Listener: "bench", Proto: flow.TCP, Addr: doorsAddress,
			Ports: model.PortRange{From: port, To: port}}
		if d.spec.UDP {
			all[i].Proto = flow.UDP
		}
	}
	return all
}

// change removes one listener and adds it again, and returns what each took.
func (d *doors) change() (took [2]float64, err error) {
	for i, n := range []int{d.spec.Listeners - 1, d.spec.Listeners} {
		begin := time.Now()
		if d.proxy != nil {
			err = d.proxy.change(n)
		} else {
			err = d.set.Apply(d.bindings(n))
		}
		if took[i] = time.Since(begin).Seconds(); err != nil {
			return took, err
		}
	}
	return took, nil
}

// tellAccepted tells a client when its connection was accepted, as the relay does its work: not in the loop that
// accepts.
func tellAccepted(c *net.TCPConn) {
	at := monotonic()
	go func() {
		_, _ = c.Write(binary.LittleEndian.AppendUint64(nil, uint64(at))) // a client that is gone need not know
		c.Close()
	}()
}

func (d *doors) count(_ *udpio.Conn, pkts []udpio.Packet) { d.counter.Add(int64(len(pkts))) }

// monotonic is a clock that all processes of the machine share, in nanoseconds.
func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // a clock that every Linux has
	return t.Nano()
}

// mapCounter maps the file in which both processes see the count.
func mapCounter(path string) (*atomic.Int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(int64(os.Getpagesize())); err != nil {
		return nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return (*atomic.Int64)(unsafe.Pointer(&page[0])), nil // a page is aligned; it stays until the process ends
}

// memory is what the kernel's small objects (sockets, files, their hash entries) take on the whole machine, this
// process by itself, and its BPF maps.
type memory struct{ Slab, Resident, Maps int64 }

func memoryNow() (m memory, err error) {
	runtime.GC()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Slab:" {
			m.Slab, err = strconv.ParseInt(f[1], 10, 64)
			m.Slab <<= 10
		}
	}
	if err != nil {
		return m, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	if text, err = os.ReadFile("/proc/self/statm"); err != nil {
		return m, err
	}
	if _, err := fmt.Sscan(string(text), new(int64), &m.Resident); err != nil {
		return m, fmt.Errorf("read /proc/self/statm: %w", err)
	}
	m.Resident *= int64(os.Getpagesize())
	m.Maps, err = mapsMemory()
	return m, err
}

// mapsMemory sums what the kernel says that this process's BPF maps hold.
func mapsMemory() (sum int64, err error) {
	list, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		text, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err != nil || !strings.Contains(string(text), "map_type:") {
			continue // closed meanwhile, or no map
		}
		for line := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(line, "memlock:"); ok {
				bytes, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
				if err != nil {
					return 0, fmt.Errorf("read what a map holds: %w", err)
				}
				sum += bytes
			}
		}
	}
	return sum, nil
}

// cpuSeconds is the CPU time of this process.
func cpuSeconds() (float64, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("ask for CPU time: %w", err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9, nil
}
