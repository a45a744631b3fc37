package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/testbed/clock"
	"github.com/nearcast/nearcast/testbed/netns"
)

// How long a process may take. They are generous: a loaded machine is not a broken program.
const (
	readyTimeout = 120 * time.Second
	stopTimeout  = 60 * time.Second // a node waits for its flows for 15 s at first
	readyPause   = 20 * time.Millisecond
	getTimeout   = 10 * time.Second // of one page
)

// Process is one shipped binary running in a host of the world. It can be stopped, killed, frozen
// and started again; its output goes to a file.
type Process struct {
	Name string
	Log  string // path of its output

	// Prepare changes the command before each Start: its user, its environment. nil: nothing is changed.
	Prepare func(*exec.Cmd)
	// ClockOff is how far the process's wall clock is ahead of the world's (below 0: behind), from each Start on.
	ClockOff time.Duration

	ns     *netns.NS
	binary string
	args   []string
	health string // "address:port" of /readyz inside the host; empty: none

	mu   sync.Mutex
	cmd  *netns.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // how cmd ended; read after done
}

// Start starts the process; it must not be running.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("%s is running already", p.Name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := p.ns.Cmd(context.Background(), p.binary, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	if p.Prepare != nil {
		p.Prepare(cmd.Cmd)
	}
	if off := p.ClockOff; off != 0 {
		cmd.AtExec = func(pid int) error { return clock.Shift(pid, off) }
	}
	if err := cmd.Start(); err != nil {
		log.Close()
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		err := cmd.Wait()
		log.Close()
		p.mu.Lock()
		p.err = err
		p.cmd = nil
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// AddArgs adds to its command line, from the next Start on. Later flags win over earlier ones.
func (p *Process) AddArgs(args ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.args = append(slices.Clip(p.args), args...)
}

// PID returns its process id, 0 when it is not running.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Signal sends a signal, for instance SIGSTOP to freeze it.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return fmt.Errorf("%s is not running", p.Name)
	}
	return p.cmd.Process.Signal(sig)
}

// Kill ends it at once (SIGKILL) and waits until it has ended.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Stop asks it to end (SIGTERM), waits, and kills it when it does not; that is an error.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

func (p *Process) end(sig syscall.Signal) error {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = cmd.Process.Kill()
	<-done
	return fmt.Errorf("%s did not end within %v of signal %v", p.Name, stopTimeout, sig)
}

// Ready waits until the process answers its readiness endpoint with 200.
func (p *Process) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	last := errors.New("not asked yet")
	for ctx.Err() == nil {
		p.mu.Lock()
		running, ended := p.cmd != nil, p.err
		p.mu.Unlock()
		if !running {
			return fmt.Errorf("%s ended before it was ready (%v); its last words:\n%s", p.Name, ended, p.tail())
		}
		var body string
		if body, last = p.Get(ctx, "/readyz"); last == nil {
			return nil
		} else if body != "" {
			last = fmt.Errorf("%w: %s", last, body)
		}
		select {
		case <-ctx.Done():
		case <-time.After(readyPause):
		}
	}
	return fmt.Errorf("%s is not ready: %w; its last words:\n%s", p.Name, last, p.tail())
}

// Get fetches a page from the process's own HTTP endpoint (/metrics, /readyz, /status).
func (p *Process) Get(ctx context.Context, path string) (string, error) {
	client := &http.Client{
		Timeout: getTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.ns.DialContext(ctx, network, address)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.health+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s says %s", path, resp.Status)
	}
	return string(body), err
}

// tail returns the last lines of its output.
func (p *Process) tail() string {
	text, err := os.ReadFile(filepath.Clean(p.Log))
	if err != nil {
		return err.Error()
	}
	const lines = 40
	parts := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	return string(bytes.Join(parts[max(0, len(parts)-lines):], []byte("\n")))
}

// sigcont wakes a process that SIGSTOP froze.
const sigcont = syscall.SIGCONT

func values(m map[string]*Process) []*Process {
	var out []*Process
	for _, p := range m {
		out = append(out, p)
	}
	return out
}

// DumpLogs says the last lines of every process.
func (w *World) DumpLogs(say func(format string, args ...any)) {
	for _, p := range append(append(values(w.Nodes), w.Controllers...), values(w.Endpoints)...) {
		say("last words of %s:\n%s", p.Name, p.tail())
	}
}
