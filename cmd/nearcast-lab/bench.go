package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/testbed/bench"
)

func benchCommand() *cobra.Command {
	var quick bool
	var results, only string
	var clientWindow int
	var profile bool
	cmd := &cobra.Command{
		Use:   "bench [latency|raw]",
		Short: "Measure beside the peers in the same run: direct, an HAProxy chain, nginx, the floor",
		Long: `Measures Nearcast beside what people use today and prints ratios first. "latency" takes downloads in
worlds with distance and loss; "raw" takes the chain without delay: throughput, connections, requests,
datagrams, CPU time and memory. Without an argument it does both. The report is kept as JSON.`,
		Example: "  sudo nearcast-lab bench\n  sudo nearcast-lab bench raw --quick\n" +
			"  sudo nearcast-lab bench raw --only UDP --profile\n" +
			"  sudo nearcast-lab bench latency --only 'R 200ms, loss 1 %'",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"latency", "raw"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := needRoot(); err != nil {
				return err
			}
			opt := bench.Options{Quick: quick, Only: only, ClientWindow: clientWindow}
			if opt.Bin, err = binDir(); err != nil {
				return err
			}
			if opt.Dir, err = os.MkdirTemp("", "nearcast-bench-"); err != nil {
				return err
			}
			begin := time.Now()
			if profile {
				opt.Profiles = filepath.Join(results, "profiles-"+begin.UTC().Format("20060102-150405"))
			}
			opt.Say = func(format string, a ...any) {
				fmt.Fprintf(cmd.OutOrStdout(), "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
			}
			report := bench.Report{Time: begin, Version: version, Machine: bench.DescribeMachine(), ClientWindow: clientWindow}
			dir := opt.Dir
			if len(args) == 0 || args[0] == "latency" {
				opt.Dir = filepath.Join(dir, "latency")
				if report.Transfers, err = bench.Latency(cmd.Context(), opt); err != nil {
					return fmt.Errorf("%w (logs are in %s)", err, opt.Dir)
				}
			}
			if len(args) == 0 || args[0] == "raw" {
				opt.Dir = filepath.Join(dir, "raw")
				if report.Raw, err = bench.RawChain(cmd.Context(), opt); err != nil {
					return fmt.Errorf("%w (logs are in %s)", err, opt.Dir)
				}
			}
			fmt.Fprintln(cmd.OutOrStdout())
			if _, err := report.WriteTo(cmd.OutOrStdout()); err != nil {
				return err
			}
			path, err := report.Save(results)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\nkept as %s\n", path)
			return os.RemoveAll(dir)
		},
	}
	cmd.AddCommand(benchAPICommand())
	cmd.Flags().BoolVar(&quick, "quick", false, "fewer and shorter runs: to see that it works, not to quote")
	cmd.Flags().StringVar(&only, "only", "", "measure only the kinds of load, or worlds, whose name contains this `text`")
	cmd.Flags().IntVar(&clientWindow, "client-window", 0,
		"`bytes` of receive window that clients of latency begin with; 0 is Linux's 64 KB, which no first flight passes")
	cmd.Flags().BoolVar(&profile, "profile", false, "of raw, keep CPU and allocation profiles of edge and gateway, too")
	cmd.Flags().StringVar(&results, "results", "bench-results", "directory for the JSON report")
	return cmd
}
