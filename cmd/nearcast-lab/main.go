// Nearcast-lab raises whole deployments in network namespaces on one machine: to show them (demo),
// to play with them (up, down) and to measure them (bench).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second Ctrl-C ends the program at once; the next run sweeps what is left.
	context.AfterFunc(ctx, stop)
	if err := root().ExecuteContext(ctx); err != nil {
		if errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, "nearcast-lab: interrupted; everything is torn down")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "nearcast-lab:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "nearcast-lab",
		Short:         "Raise Nearcast worlds on one machine: show, play, measure",
		Example:       "  nearcast-lab demo\n  nearcast-lab up demo\n  nearcast-lab bench raw",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(demoCommand(), upCommand(), downCommand(), worldsCommand(), benchCommand(), endpointCommand())
	return cmd
}

// needRoot says clearly what is missing instead of failing in the middle.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run it with sudo")
	}
	return nil
}

// binDir is where this program lies, and the other binaries beside it.
func binDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(self)
	for _, name := range []string{"nearcast", "nearcast-edge", "nearcast-controller"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%s is not beside nearcast-lab in %s: run make build", name, dir)
		}
	}
	return dir, nil
}
