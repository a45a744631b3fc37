// Package handover answers: how does a node's next process take over from this one?
//
//	this process                    the next one
//	Start(program, files) ───────▶  FromEnvironment
//	                     ◀─ ready ─ has its snapshot and its tunnels
//	lets go of ports ──── go ────▶  opens them, and the doors for clients
//	                     ◀ serving ─
//	finishes its flows
//
// The two talk over a socket that the next process inherits, with words in lines. Files (listening sockets, the
// lock of the data directory) are inherited, too: what waits in a listening socket's queue waits for both.
package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The words.
const (
	Ready   = "ready"
	Go      = "go"
	Serving = "serving"
)

// environment says to a process that it is a next one.
const environment = "NEARCAST_HANDOVER"

// firstFile is the descriptor of the socket in the next process; the files follow.
const firstFile = 3

// What the other process can say: the names of up to filesMax files in one line, and words.
const (
	filesMax  = 20_000 // as many descriptors as a process gets
	nameMax   = 255
	namesLine = 4 << 20 // bytes of the line with names
	wordLine  = 100
)

// link is one end of the conversation.
type link struct {
	conn net.Conn
	in   *bufio.Reader
}

func newLink(f *os.File) (link, error) {
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return link{}, fmt.Errorf("open the socket between processes: %w", err)
	}
	return link{conn, bufio.NewReader(conn)}, nil
}

// Say says a word to the other process.
func (l link) Say(word string) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := fmt.Fprintln(l.conn, word)
	return err
}

// Wait waits for a word of the other process until ctx ends.
func (l link) Wait(ctx context.Context, word string) error {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := readLine(l.in, wordLine)
	if ctx.Err() != nil {
		return fmt.Errorf("wait for the other process to be %q: %w", word, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("the other process ended before it was %q: %w", word, err)
	}
	if got := strings.TrimSpace(string(line)); got != word {
		return fmt.Errorf("the other process says %q instead of %q", got, word)
	}
	return nil
}

// readLine reads a line of at most so many bytes, without its end.
func readLine(in *bufio.Reader, most int) (line []byte, err error) {
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > most:
			return nil, fmt.Errorf("a line of more than %d bytes", most)
		case err == nil:
			return line[:len(line)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// parseNames reads the names of the files that are handed over, in the order of their descriptors.
func parseNames(line []byte) (names []string, err error) {
	if err := json.Unmarshal(line, &names); err != nil {
		return nil, err
	}
	if len(names) > filesMax {
		return nil, fmt.Errorf("%d files are more than %d", len(names), filesMax)
	}
	seen := make(map[string]bool, len(names))
	for _, name := range names {
		if name == "" || len(name) > nameMax || seen[name] {
			return nil, fmt.Errorf("a file's name is empty, longer than %d bytes or another one's: %.300q", nameMax, name)
		}
		seen[name] = true
	}
	return names, nil
}

// Next is the next process, seen from this one.
type Next struct {
	link
	process *os.Process
	ended   chan struct{}
}

// Dup returns a new descriptor of a socket or file, for Start.
func Dup(of syscall.Conn) (fd int, err error) {
	raw, err := of.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, cerr)
}

// Start starts the next process with these descriptors. They are closed here.
//
// They are numbers and not files: os.File.Fd makes a socket blocking, and with it the one that still serves.
func Start(program string, args []string, files map[string]int) (*Next, error) {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	defer func() {
		for _, fd := range files {
			unix.Close(fd)
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket between processes: %w", err)
	}
	defer unix.Close(pair[1])
	l, err := newLink(os.NewFile(uintptr(pair[0]), "handover"))
	if err != nil {
		return nil, err
	}
	inherited := []uintptr{0, 1, 2, uintptr(pair[1])}
	for _, name := range names {
		inherited = append(inherited, uintptr(files[name]))
	}
	pid, err := syscall.ForkExec(program, append([]string{program}, args...), &syscall.ProcAttr{
		Env: append(os.Environ(), environment+"=1"), Files: inherited,
	})
	if err != nil {
		l.conn.Close()
		return nil, fmt.Errorf("start the next process: %w", err)
	}
	n := &Next{link: l, ended: make(chan struct{})}
	if n.process, err = os.FindProcess(pid); err != nil {
		l.conn.Close()
		return nil, fmt.Errorf("find the next process: %w", err)
	}
	go func() {
		defer close(n.ended)
		_, _ = n.process.Wait() // its end is seen at the socket
	}()
	_ = l.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := json.NewEncoder(l.conn).Encode(names); err != nil {
		n.Kill()
		return nil, fmt.Errorf("talk to the next process: %w", err)
	}
	return n, nil
}

// PID returns its process id.
func (n *Next) PID() int { return n.process.Pid }

// Kill ends it, and waits for that.
func (n *Next) Kill() {
	_ = n.process.Kill()
	<-n.ended
	n.conn.Close()
}

// Leave lets go of it: it lives on.
func (n *Next) Leave() { n.conn.Close() }

// Previous is the process before, seen from the next one.
type Previous struct {
	link
	files map[string]*os.File
}

// FromEnvironment returns the process that this one takes over from, or nil if there is none.
func FromEnvironment() (*Previous, error) {
	if os.Getenv(environment) == "" {
		return nil, nil
	}
	os.Unsetenv(environment)
	unix.CloseOnExec(firstFile)
	l, err := newLink(os.NewFile(firstFile, "handover"))
	if err != nil {
		return nil, err
	}
	line, err := readLine(l.in, namesLine)
	var names []string
	if err == nil {
		names, err = parseNames(line)
	}
	if err != nil {
		l.conn.Close()
		return nil, fmt.Errorf("read what the process before hands over: %w", err)
	}
	p := &Previous{link: l, files: map[string]*os.File{}}
	for i, name := range names {
		unix.CloseOnExec(firstFile + 1 + i)
		p.files[name] = os.NewFile(uintptr(firstFile+1+i), name)
	}
	return p, nil
}

// Take returns a file that was handed over, which is the caller's then; nil if there is none. It may be called
// on nil.
func (p *Previous) Take(name string) *os.File {
	if p == nil {
		return nil
	}
	f := p.files[name]
	delete(p.files, name)
	return f
}

// Listener makes a TCP listener of a file that was handed over; nil, nil if there is none.
func (p *Previous) Listener(name string) (*net.TCPListener, error) {
	f := p.Take(name)
	if f == nil {
		return nil, nil
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", name, err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("take over %s: not a TCP listener", name)
	}
	return tcp, nil
}

// Close closes what was handed over and not taken.
func (p *Previous) Close() error {
	errs := []error{p.conn.Close()}
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	p.files = nil
	return errors.Join(errs...)
}

// Reloading is the state of a service that will say that it is ready again: while an upgrade is under way.
func Reloading() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // a clock that every Linux has
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000)
}

// Notify tells the service manager of a state (sd_notify(3)), if there is one: READY=1, MAINPID=…, several in lines.
func Notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
