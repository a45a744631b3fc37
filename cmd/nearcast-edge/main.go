// Nearcast-edge runs a node: it takes client traffic (edge), hands traffic to the endpoints of its
// region (gateway), or both.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/edge"
	"github.com/nearcast/nearcast/edge/handover"
)

// version is set by the build.
var version = "unknown"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program as a function: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(stderr, "nearcast-edge:", err)
		return 1
	}
	return 0
}

func root() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "nearcast-edge",
		Short: "Run a Nearcast node: take client traffic, or hand traffic to endpoints, or both",
		Long: `Run a Nearcast node: take client traffic (edge), hand traffic to endpoints (gateway), or both.

The first start needs a join token (nearcast token create); later ones use the identity in the data
directory. SIGTERM or Ctrl-C drains: no new flows, and the end once the old ones have ended or the drain
timeout is over. A second one ends at once. SIGHUP upgrades: the program that lies where this one was started
from takes over, new flows are its own, old ones end here (see nearcast-edge upgrade).

Every flag may stand in the file of --config, as YAML with the same names; flags win.`,
		Example: `  # The first start, with a token of "nearcast token create --site fra --edge --gateway":
  nearcast-edge --controllers ctl.example.net:7443 --join-token NC1… --name fra-1 --site fra \
      --roles edge,gateway --data-dir /var/lib/nearcast --backbone-advertise 192.0.2.10:7444

  # Every later start:
  nearcast-edge --controllers ctl.example.net:7443 --data-dir /var/lib/nearcast

  # The same from a file that says "controllers: [ctl.example.net:7443]" and so on:
  nearcast-edge --config /etc/nearcast/edge.yaml`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.readFile(cmd.Flags()); err != nil {
				return err
			}
			cfg, err := o.config()
			if err != nil {
				return err
			}
			return start(cfg, &o, cmd.ErrOrStderr())
		},
	}
	o.register(cmd.Flags())
	cmd.AddCommand(upgradeCommand(), checkKernelCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "nearcast-edge", version)
		},
	})
	return cmd
}

// start runs a node until it has ended.
func start(cfg edge.Config, o *options, stderr io.Writer) error {
	log, err := o.logger(stderr)
	if err != nil {
		return err
	}
	cfg.Log = log
	cfg.Version = version
	cfg.Crashed = noteCrashes(cfg.DataDir, log)
	tuneMemory(cfg.MemoryMax)
	if cfg.Previous, err = handover.FromEnvironment(); err != nil {
		return err
	}
	// Where the program lay when this process was started: a newer one may lie there by the time of an upgrade.
	if cfg.Program, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	cfg.Arguments = os.Args[1:]
	node, err := edge.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	upgrades := make(chan os.Signal, 1)
	signal.Notify(upgrades, syscall.SIGHUP)
	defer signal.Stop(upgrades)
	go func() {
		for {
			select {
			case <-upgrades:
				node.Upgrade()
			case <-node.Ended():
				return
			}
		}
	}()
	go func() {
		defer cancel()
		select {
		case s := <-signals:
			log.Info("draining; a second signal ends at once", "signal", s.String())
			cancel()
		case <-ctx.Done():
			return
		}
		select {
		case s := <-signals:
			log.Warn("ending at once", "signal", s.String())
			node.Abort()
		case <-node.Ended():
		}
	}()
	log.Info("nearcast-edge", "version", version, "name", cfg.Name, "site", cfg.Site)
	return node.Run(ctx)
}

// crashFile is where the runtime writes its last words, and crashBytesMax how much of them is kept.
const (
	crashFile     = "crash.log"
	crashBytesMax = 64 << 10
)

// noteCrashes has the runtime write a fatal panic to a file of the data directory as well, and
// reports whether the process before this one did so. A process that is killed writes nothing.
func noteCrashes(dir string, log *slog.Logger) (crashed bool) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false // the node says it, and everything works without
	}
	path := filepath.Join(dir, crashFile)
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		crashed = true
		log.Error("the process before this one crashed; its last words are in "+path+".old",
			"at", info.ModTime())
		if os.Rename(path, path+".old") != nil {
			return false // it would be counted again at every start
		}
		_ = os.Truncate(path+".old", min(info.Size(), crashBytesMax))
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return crashed
	}
	defer f.Close() // SetCrashOutput duplicates it
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		log.Warn("a crash would not be noted", "error", err)
	}
	return crashed
}

// tuneMemory tells the garbage collector of the limit, so that it works harder near it instead of
// letting the kernel end the process. GOMEMLIMIT in the environment wins.
func tuneMemory(limit int64) {
	if limit > 0 && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(edge.RuntimeMemory(limit))
	}
}
