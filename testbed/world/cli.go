package world

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ControllerProcess returns the process of a controller, not started, for a host of the world.
func (w *World) ControllerProcess(host string, args ...string) *Process {
	args = append([]string{
		"--cluster", w.Spec.Name, "--data-dir", filepath.Join(w.opt.Dir, host),
		"--listen", fmt.Sprintf(":%d", portController),
		"--advertise", netip.AddrPortFrom(w.hosts[host].V4, portController).String(),
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", portMetricsCtl),
	}, args...)
	return w.process(host, "nearcast-controller", fmt.Sprintf("127.0.0.1:%d", portMetricsCtl), args...)
}

// CLI runs the shipped CLI on the first controller's machine with the admin's context and returns
// its standard output.
func (w *World) CLI(ctx context.Context, args ...string) (string, error) {
	return w.CLIVia(ctx, 0, args...)
}

// CLIVia is CLI through the n-th controller, counted from 0.
func (w *World) CLIVia(ctx context.Context, n int, args ...string) (string, error) {
	return w.CLIAt(ctx, controllerName(n), args...)
}

// CLIAt is CLI through the controller on a host.
func (w *World) CLIAt(ctx context.Context, host string, args ...string) (string, error) {
	return w.cli(ctx, controllerName(0), host, args...)
}

// CLIFrom is CLI on a host of the world, through the first controller.
func (w *World) CLIFrom(ctx context.Context, host string, args ...string) (string, error) {
	return w.cli(ctx, host, controllerName(0), args...)
}

func (w *World) cli(ctx context.Context, from, host string, args ...string) (string, error) {
	server := netip.AddrPortFrom(w.hosts[host].V4, portController).String()
	args = append([]string{"--server", server}, args...)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := w.Fabric.NS(from).Cmd(ctx, filepath.Join(w.opt.Bin, "nearcast"), args...)
	cmd.Env = append(os.Environ(), "NEARCAST_CONTEXTS="+w.ContextFile())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("nearcast %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// CLIJSON runs the CLI, whose arguments ask for JSON, and decodes what it prints into out.
func (w *World) CLIJSON(ctx context.Context, out any, args ...string) error {
	text, err := w.CLI(ctx, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(text), out); err != nil {
		return fmt.Errorf("nearcast %s printed no JSON: %w", strings.Join(args, " "), err)
	}
	return nil
}
