package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// stateDir has one file for each standing world.
const stateDir = "/run/nearcast-lab"

// standing is what `down` needs to know about a world.
type standing struct {
	PID int    `json:"pid"`
	Dir string `json:"dir"`
}

func statePath(name string) string { return filepath.Join(stateDir, name+".json") }

func upCommand() *cobra.Command {
	var foreground bool
	var dir string
	cmd := &cobra.Command{
		Use:   "up WORLD",
		Short: "Raise a world and keep it standing, until nearcast-lab down",
		Example: "  sudo nearcast-lab up demo\n" +
			"  sudo nearcast-lab up my-world.yaml\n  sudo nearcast-lab down demo",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if foreground {
				return hold(cmd.Context(), cmd.OutOrStdout(), args[0], dir)
			}
			return raiseInBackground(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in the foreground; Ctrl-C tears it down")
	cmd.Flags().StringVar(&dir, "logs", "", "directory for logs and data; empty: a new one")
	return cmd
}

// raisedMark ends what the background process says before it is left alone.
const raisedMark = "(raised)"

// raiseInBackground starts this program again, in a session of its own, to hold the world, and shows
// what it says until the world stands.
func raiseInBackground(ctx context.Context, out io.Writer, name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, wr, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, "up", "--foreground", name)
	cmd.Stdout, cmd.Stderr = wr, wr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		wr.Close()
		return err
	}
	wr.Close()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if lines.Text() == raisedMark {
			return cmd.Process.Release()
		}
		fmt.Fprintln(out, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the world does not stand: %w", err)
	}
	return errors.New("the world does not stand")
}

// hold raises a world and keeps it until ctx ends.
func hold(ctx context.Context, out io.Writer, name, dir string) (err error) {
	bin, err := binDir()
	if err != nil {
		return err
	}
	spec, err := world.Load(name)
	if err != nil {
		return err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "nearcast-"+spec.Name+"-"); err != nil {
			return err
		}
	}
	begin := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	w, err := world.Raise(ctx, spec, world.Options{Bin: bin, Dir: dir, Say: say})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	app, err := w.Accelerate(ctx, say)
	if err != nil {
		return err
	}
	if err := remember(spec.Name, standing{PID: os.Getpid(), Dir: dir}); err != nil {
		return err
	}
	defer os.Remove(statePath(spec.Name))
	howToPlay(out, w, app, bin, dir)
	fmt.Fprintln(out, raisedMark)
	<-ctx.Done()
	return nil
}

func remember(name string, s standing) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(statePath(name), text, 0o644)
}

func howToPlay(out io.Writer, w *world.World, app *world.App, bin, dir string) {
	city := w.Spec.Cities[0].Name
	ns := func(host string) string { return "ip netns exec " + w.NS(host).Name() }
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	p("")
	p("The world %q stands. As a client in %s:", w.Spec.Name, city)
	p("  %s curl -o /dev/null -w '%%{time_starttransfer}s %%{time_total}s\\n' http://%s/bytes/1000000",
		ns(city), app.Address(city))
	p("  %s curl -o /dev/null -w '%%{time_starttransfer}s %%{time_total}s\\n' http://%s:%d/bytes/1000000   # directly",
		ns(city), w.EndpointAddr(app.Home, 0), load.PortHTTP)
	p("As its operator:")
	p("  export NEARCAST_CONTEXTS=%s", w.ContextFile())
	p("  %s %s status", ns("ctl-1"), filepath.Join(bin, "nearcast"))
	p("Break something (each process can be killed; logs are in %s):", dir)
	for name, node := range w.Nodes {
		p("  kill -9 %d    # node %s", node.PID(), name)
	}
	p("Tear it down:")
	p("  nearcast-lab down %s", w.Spec.Name)
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "down [WORLD]",
		Short:   "Tear down a standing world, or all of them",
		Example: "  sudo nearcast-lab down demo",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			names := args
			if len(names) == 0 {
				files, _ := filepath.Glob(statePath("*"))
				for _, f := range files {
					names = append(names, strings.TrimSuffix(filepath.Base(f), ".json"))
				}
			}
			if len(names) == 0 {
				return errors.New("no world stands")
			}
			var errs []error
			for _, name := range names {
				errs = append(errs, tearDown(cmd.Context(), cmd.OutOrStdout(), name))
			}
			return errors.Join(errs...)
		},
	}
}

// tearDown asks the process that holds a world to end and waits for it.
func tearDown(ctx context.Context, out io.Writer, name string) error {
	text, err := os.ReadFile(statePath(name))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no world %q stands", name)
	}
	if err != nil {
		return err
	}
	var s standing
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("%s: %w", statePath(name), err)
	}
	if !isLab(s.PID) {
		_ = os.Remove(statePath(name))
		return fmt.Errorf("world %q: its process is gone; what it left is swept when it is raised again", name)
	}
	fmt.Fprintf(out, "tearing down %s\n", name)
	if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
		return err
	}
	for isLab(s.PID) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return os.RemoveAll(s.Dir)
}

// isLab reports whether the process lives and is a nearcast-lab: a process id may have been reused,
// and a dead process stays visible as a zombie (Z) until its parent has looked.
func isLab(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), "(nearcast-lab)") && !strings.Contains(string(stat), ") Z ")
}
