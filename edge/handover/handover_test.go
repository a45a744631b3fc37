package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/leak"
)

// role makes this test's program a next process, which does as its value says.
const role = "NEARCAST_TEST_HANDOVER"

func TestMain(m *testing.M) {
	if r := os.Getenv(role); r != "" {
		if err := next(r); err != nil {
			fmt.Fprintln(os.Stderr, "next process:", err)
			os.Exit(1)
		}
		return
	}
	leak.Main(m)
}

// next is the next process.
func next(role string) error {
	p, err := FromEnvironment()
	if p == nil || err != nil {
		return fmt.Errorf("no process before: %w", err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch role {
	case "dies":
		return nil
	case "babbles":
		return p.Say("nonsense")
	case "hangs":
		_, err = io.Copy(io.Discard, p.conn) // until the process before is gone
		return err
	}
	door, err := p.Listener("door")
	if err != nil {
		return err
	}
	defer door.Close()
	note := p.Take("note")
	defer note.Close()
	text, err := io.ReadAll(note)
	if err != nil {
		return err
	}
	if again := p.Take("note"); again != nil || os.Getenv(environment) != "" {
		return errors.New("it can be taken twice")
	}
	if l, err := p.Listener("spare"); l != nil || err == nil {
		return errors.New("a file is taken for a listener")
	}
	if err := errors.Join(p.Say(Ready), p.Wait(ctx, Go)); err != nil {
		return err
	}
	for range 2 { // one that waited, and a new one
		c, err := door.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(c, "next, %s", text)
		c.Close()
	}
	return p.Say(Serving)
}

// start starts this program as the next process in a role.
func start(t *testing.T, r string, files map[string]int) *Next {
	t.Helper()
	t.Setenv(role, r)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n, err := Start(program, []string{"-test.run=^$"}, files)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func dup(t *testing.T, of interface{ Close() error }) int {
	t.Helper()
	fd, err := -1, errors.New("no descriptor")
	switch c := of.(type) {
	case *net.TCPListener:
		fd, err = Dup(c)
	case *os.File:
		fd, err = Dup(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func note(t *testing.T, text string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The next process gets the files by their names, and what waits in the queue of a listening socket.
func TestHandOver(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door := l.(*net.TCPListener)
	n := start(t, "serves", map[string]int{"door": dup(t, door), "note": dup(t, note(t, "well")), "spare": dup(t, note(t, ""))})
	if err := n.Wait(within(t, time.Minute), Ready); err != nil {
		t.Fatal(err)
	}
	// This process can still use its own: a duplicate has not made it blocking.
	_ = door.SetDeadline(time.Now().Add(time.Millisecond))
	if _, err := door.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the listener of this process: %v", err)
	}
	early, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	door.Close()
	if err := n.Say(Go); err != nil {
		t.Fatal(err)
	}
	late, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	for name, c := range map[string]net.Conn{"that waited": early, "that came later": late} {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if b, err := io.ReadAll(c); err != nil || string(b) != "next, well" {
			t.Errorf("a connection %s: %q, %v", name, b, err)
		}
	}
	if err := n.Wait(within(t, time.Minute), Serving); err != nil {
		t.Error(err)
	}
	n.Leave()
	select {
	case <-n.ended:
	case <-time.After(time.Minute):
		t.Error("the next process does not end")
	}
}

// A next process that fails is noticed, whatever it does instead, and can be ended.
func TestNextFails(t *testing.T) {
	for r, want := range map[string]string{
		"dies": "ended before it was", "babbles": `says "nonsense" instead of "ready"`, "hangs": "deadline exceeded",
	} {
		t.Run(r, func(t *testing.T) {
			n := start(t, r, nil)
			long := time.Minute
			if r == "hangs" {
				long = 100 * time.Millisecond
			}
			err := n.Wait(within(t, long), Ready)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error is %v", err)
			}
			if r == "hangs" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error is %v", err)
			}
			if n.PID() <= 0 {
				t.Errorf("process id %d", n.PID())
			}
			n.Kill()
			if err := n.Say(Go); err == nil {
				t.Error("one can talk to a process that has ended")
			}
		})
	}
}

// What cannot be started leaves no descriptor open.
func TestStartFails(t *testing.T) {
	fd := dup(t, note(t, ""))
	n, err := Start(filepath.Join(t.TempDir(), "no-such-program"), nil, map[string]int{"note": fd})
	if n != nil || err == nil || !strings.Contains(err.Error(), "start the next process") {
		t.Errorf("%v, %v", n, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("the descriptor is open: %v", err)
	}
}

func TestFirstProcess(t *testing.T) {
	t.Setenv(environment, "")
	p, err := FromEnvironment()
	if p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	if f := p.Take("door"); f != nil {
		t.Error("a file was handed over by nobody")
	}
	if l, err := p.Listener("door"); l != nil || err != nil {
		t.Errorf("%v, %v", l, err)
	}
}

// The service manager hears of states at a path and at an abstract address.
func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Error(err)
	}
	abstract := fmt.Sprintf("nearcast-notify-%d", os.Getpid())
	for told, at := range map[string]string{"@" + abstract: "\x00" + abstract, filepath.Join(t.TempDir(), "s"): ""} {
		if at == "" {
			at = told
		}
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", told)
		if err := Notify("MAINPID=7"); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(b); err != nil || string(b[:n]) != "MAINPID=7" {
			t.Errorf("%s heard %q, %v", told, b[:n], err)
		}
		c.Close()
		if err := Notify("STOPPING=1"); err == nil {
			t.Error("nobody listens, and that is no error")
		}
	}
}
