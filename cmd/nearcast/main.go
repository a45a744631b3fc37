// Nearcast is the operators' command line: it shows and changes what a cluster does, through a
// controller's admin API. All of it is a function of an env, so that tests call it in process.
package main

import (
	"context"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, osEnv())
	stop()
	os.Exit(code)
}

// osEnv is the env of this process.
func osEnv() env {
	dialer := &net.Dialer{}
	dialer.SetMultipathTCP(false)
	_, stdinIsTerminal := terminalWidth(os.Stdin)
	_, stderrIsTerminal := terminalWidth(os.Stderr)
	width, _ := terminalWidth(os.Stdout)
	return env{
		args:   os.Args[1:],
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		now:    time.Now,
		sleep:  sleep,
		dial: func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
		terminal: stdinIsTerminal && stderrIsTerminal,
		width:    width,
	}
}

// terminalWidth returns the columns of a terminal, and false if f is none.
func terminalWidth(f *os.File) (columns int, ok bool) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	return int(size.Col), true
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
