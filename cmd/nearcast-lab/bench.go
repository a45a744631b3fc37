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
	var opt bench.Options
	var results string
	var profile bool
	cmd := &cobra.Command{
		Use:   "bench [latency|raw|guard]",
		Short: "Measure beside the peers in the same run: direct, an HAProxy chain, nginx, the floor",
		Long: `Measures Nearcast beside what people use today and prints ratios first. "latency" takes downloads in
worlds with distance and loss; "raw" takes the chain without delay: throughput, connections, requests,
datagrams, CPU time and memory. Without an argument it does both. "guard" takes packets that guard or nftables
drop, pass or answer, and what a flood of SYNs does to clients. The report is kept as JSON.`,
		Example: "  sudo nearcast-lab bench\n  sudo nearcast-lab bench raw --quick\n" +
			"  sudo nearcast-lab bench raw --only UDP --profile\n" +
			"  sudo nearcast-lab bench guard --only drop\n" +
			"  sudo nearcast-lab bench latency --only 'R 200ms, loss 1 %'",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"latency", "raw", "guard"},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			what := ""
			if len(args) > 0 {
				what = args[0]
			}
			return runBench(cmd, what, opt, profile, results)
		},
	}
	cmd.AddCommand(benchAPICommand(), benchDispatchCommand())
	cmd.Flags().BoolVar(&opt.Quick, "quick", false, "fewer and shorter runs: to see that it works, not to quote")
	cmd.Flags().StringVar(&opt.Only, "only", "", "measure only the kinds of load, or worlds, whose name contains this `text`")
	cmd.Flags().IntVar(&opt.ClientWindow, "client-window", 0,
		"`bytes` of receive window that clients of latency begin with; 0 is Linux's 64 KB, which no first flight passes")
	cmd.Flags().BoolVar(&profile, "profile", false, "of raw, keep CPU and allocation profiles of edge and gateway, too")
	cmd.Flags().StringVar(&results, "results", "bench-results", "directory for the JSON report")
	return cmd
}

// runBench measures one thing, or what is measured without an argument.
func runBench(cmd *cobra.Command, what string, opt bench.Options, profile bool, results string) (err error) {
	if err := needRoot(); err != nil {
		return err
	}
	if opt.Bin, err = binDir(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nearcast-bench-")
	if err != nil {
		return err
	}
	begin := time.Now()
	if profile {
		opt.Profiles = filepath.Join(results, "profiles-"+begin.UTC().Format("20060102-150405"))
	}
	opt.Say = func(format string, a ...any) {
		fmt.Fprintf(cmd.OutOrStdout(), "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
	}
	report := bench.Report{Time: begin, Version: version, Machine: bench.DescribeMachine(), ClientWindow: opt.ClientWindow}
	for _, part := range []struct {
		name    string
		measure func(bench.Options) error
	}{
		{"latency", func(o bench.Options) (err error) {
			report.Transfers, err = bench.Latency(cmd.Context(), o)
			return err
		}},
		{"raw", func(o bench.Options) (err error) {
			report.Raw, err = bench.RawChain(cmd.Context(), o)
			return err
		}},
		{"guard", func(o bench.Options) (err error) {
			if report.Filtered, err = bench.Filters(cmd.Context(), o); err == nil {
				report.Flooded, err = bench.Floods(cmd.Context(), o)
			}
			return err
		}},
	} {
		if part.name != what && (what != "" || part.name == "guard") {
			continue
		}
		opt.Dir = filepath.Join(dir, part.name)
		if err := part.measure(opt); err != nil {
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
}
