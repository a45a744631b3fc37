package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/testbed/bench"
)

func benchDispatchCommand() *cobra.Command {
	opt := bench.DispatchOptions{Listeners: []int{1, 100, 10_000, 0}}
	var quick bool
	var results string
	cmd := &cobra.Command{
		Use:   "dispatch",
		Short: "Measure the kernel's dispatcher beside plain sockets: 1, 100 and 10,000 listeners",
		Long: `Connects to 1, 100 and 10,000 listeners behind plain sockets, behind the kernel program dispatch with one socket
and with one a CPU, and behind the packet filter's TPROXY (if nft is there), in turns. Ratios are to plain sockets with as
many listeners. Latencies are from before the SYN to after the accept: at a steady 1,000 a second, and at the full rate.
Clients come from many addresses and reset their connections. Datagrams are sent as fast as they are read.`,
		Example: "  sudo nearcast-lab bench dispatch\n  sudo nearcast-lab bench dispatch --quick",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := needRoot(); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			if opt.Dir, err = os.MkdirTemp("", "nearcast-bench-"); err != nil {
				return err
			}
			defer os.RemoveAll(opt.Dir)
			if quick {
				opt.Rounds, opt.Turn = 1, 300*time.Millisecond
			}
			begin := time.Now()
			opt.Say = func(format string, a ...any) {
				fmt.Fprintf(cmd.OutOrStdout(), "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
			}
			opt.Doors = func(spec string) (string, []string) { return self, []string{"bench", "dispatch", "doors", spec} }
			rows, err := bench.Dispatch(cmd.Context(), opt)
			if err != nil {
				return err
			}
			m := bench.DescribeMachine()
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s, %d cores, Linux %s, %s\n\n", m.CPU, m.Cores, m.Kernel, m.Go)
			if err := bench.WriteDispatch(cmd.OutOrStdout(), rows); err != nil {
				return err
			}
			report := bench.Report{Time: begin, Version: version, Machine: m, Dispatch: rows}
			path, err := report.Save(results)
			if err != nil {
				return err
			}
			path, err = filepath.Abs(path)
			fmt.Fprintf(cmd.OutOrStdout(), "\nkept as %s\n", path)
			return err
		},
	}
	cmd.Flags().IntVar(&opt.Rounds, "rounds", 5, "turns of each; medians count")
	cmd.Flags().DurationVar(&opt.Turn, "turn", 700*time.Millisecond, "how long each kind of load lasts")
	cmd.Flags().BoolVar(&quick, "quick", false, "one short turn: to see that it works, not to quote")
	cmd.Flags().StringVar(&results, "results", "bench-results", "directory for the JSON report")
	cmd.AddCommand(&cobra.Command{
		Use: "doors SPEC", Short: "Be the side that accepts (used by bench dispatch)", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var spec bench.DoorsSpec
			if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
				return err
			}
			return bench.RunDoors(cmd.Context(), spec, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	})
	return cmd
}
