package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd that starts in the namespace. Set its fields before Start as usual.
type Cmd struct {
	*exec.Cmd
	// AtExec is called, when it is not nil, with a new process that stands still in front of its first
	// instruction, on the thread that may trace it (ptrace(2)). The process goes on when AtExec has returned.
	AtExec func(pid int) error
	ns     *NS
}

// Cmd returns a command that will run in the namespace. Unlike `ip netns exec` it keeps the mount namespace,
// so /sys and bpffs are the machine's own. The process is killed when ctx ends, when its namespace is
// removed, and when this process dies, however it dies. It is in a process group of its own, so that Ctrl-C
// reaches only the one who decides the order of the teardown.
func (ns *NS) Cmd(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	c.WaitDelay = waitDelay
	return &Cmd{Cmd: c, ns: ns}
}

// Start starts the process. Its parent thread is one that lives as long as the namespace does: the kernel
// sends the death signal when the thread that forked ends, not the process.
func (c *Cmd) Start() error {
	c.ns.spawnOnce.Do(c.ns.startSpawner)
	errc := make(chan error, 1)
	select {
	case c.ns.spawn <- func(enterErr error) {
		if enterErr == nil {
			enterErr = c.startHere()
		}
		errc <- enterErr
	}:
		return <-errc
	case <-c.ns.done:
		return fmt.Errorf("start %s in %s: %w", c.Path, c.ns.name, errRemoved)
	}
}

// startHere starts the process from the namespace's own thread, which is its tracer if there is an AtExec.
func (c *Cmd) startHere() error {
	if c.AtExec == nil {
		return c.Cmd.Start()
	}
	c.SysProcAttr.Ptrace = true
	if err := c.Cmd.Start(); err != nil {
		return err
	}
	pid := c.Process.Pid
	err := c.atExec(pid)
	if err == nil {
		err = unix.PtraceDetach(pid)
	}
	if err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		return fmt.Errorf("prepare process %d: %w", pid, err)
	}
	return nil
}

// atExec waits until the process stands at its first instruction and calls AtExec.
func (c *Cmd) atExec(pid int) error {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, unix.WALL, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	if !status.Stopped() || status.StopSignal() != unix.SIGTRAP {
		return fmt.Errorf("it does not stand at its first instruction (status %#x)", uint32(status))
	}
	return c.AtExec(pid)
}

func (ns *NS) startSpawner() { Thread(ns.spawnLoop) }

// spawnLoop starts processes until the namespace is removed. Its thread enters the namespace and never comes
// home: it ends with the loop.
func (ns *NS) spawnLoop() {
	defer close(ns.spawnEnded)
	enterErr := ns.enter()
	for {
		select {
		case start := <-ns.spawn:
			start(enterErr)
		case <-ns.done:
			return
		}
	}
}

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("stdout is already set")
	}
	var out, errOut bytes.Buffer
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &errOut
	}
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		exit.Stderr = errOut.Bytes()
	}
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns its standard output and standard error together.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("stdout or stderr is already set")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
