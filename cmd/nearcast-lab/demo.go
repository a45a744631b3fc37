package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/testbed/world"
)

func demoCommand() *cobra.Command {
	var rounds int
	var keep string
	var byDNS, byBGP bool
	cmd := &cobra.Command{
		Use:   "demo [WORLD]",
		Short: "Raise a world, accelerate an application in it and measure: direct against accelerated",
		Long: `Raises a world of network namespaces with the delays of the real internet, starts the shipped
controller and nodes in it, enrols the nodes with join tokens, creates an accelerator through the CLI and
drives real traffic from each city, directly and through the accelerator. Ends with a table and tears
everything down, also on Ctrl-C.`,
		Example: "  sudo nearcast-lab demo\n  sudo nearcast-lab demo --rounds 9 --logs /tmp/demo\n" +
			"  sudo nearcast-lab demo --dns\n  sudo nearcast-lab demo --bgp",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "demo"
			if byDNS {
				name = "dns"
			}
			if byBGP {
				name = "anycast"
			}
			if len(args) > 0 {
				name = args[0]
			}
			return runDemo(cmd.Context(), cmd.OutOrStdout(), name, rounds, keep)
		},
	}
	cmd.Flags().BoolVar(&byDNS, "dns", false, "the world without anycast: DNS answers bring each client to its nearest edge")
	cmd.Flags().BoolVar(&byBGP, "bgp", false,
		"the world with routers (needs bird2): sites announce the addresses by BGP, and one is taken away")
	cmd.MarkFlagsMutuallyExclusive("dns", "bgp")
	cmd.Flags().IntVar(&rounds, "rounds", 5, "measurements of each kind; the table shows medians")
	cmd.Flags().StringVar(&keep, "logs", "", "directory that keeps logs and data afterwards; empty: removed")
	return cmd
}

func runDemo(ctx context.Context, out io.Writer, name string, rounds int, dir string) (err error) {
	if err := needRoot(); err != nil {
		return err
	}
	bin, err := binDir()
	if err != nil {
		return err
	}
	spec, err := world.Load(name)
	if err != nil {
		return err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "nearcast-demo-"); err != nil {
			return err
		}
		defer func() {
			if err == nil || errors.Is(err, context.Canceled) {
				err = errors.Join(err, os.RemoveAll(dir))
			} else {
				fmt.Fprintf(out, "logs are in %s\n", dir)
			}
		}()
	}
	begin := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(out, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	say("world %q: %s", spec.Name, spec.Description)
	w, err := world.Raise(ctx, spec, world.Options{Bin: bin, Dir: dir, Say: say})
	if err != nil {
		return err
	}
	defer func() {
		say("tearing everything down")
		err = errors.Join(err, w.Close())
	}()
	app, err := w.Accelerate(ctx, say)
	if err != nil {
		return err
	}
	if spec.BGP != nil {
		if err := showRoutes(ctx, w, app, say); err != nil {
			return err
		}
	}
	rows, err := w.Compare(ctx, app, rounds, say)
	if err != nil {
		return err
	}
	fmt.Fprintln(out)
	world.WriteTable(out, rows)
	fmt.Fprintf(out, `
Each figure is the median of %d. Transfers from a city whose network the edge has seen before begin with what that
network took (kernel program tune): the first of the %d taught it, the others profit. It is off with --kernel-tune off.
`, rounds, rounds)
	if spec.BGP != nil {
		return showAway(ctx, out, w, app, say)
	}
	return nil
}

func worldsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "worlds",
		Short: "List the worlds that are built in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range world.Shipped() {
				spec, err := world.Load(name)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-10s %s", name, spec.Description)
			}
			return nil
		},
	}
}
