package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/testbed/bench"
)

func benchAPICommand() *cobra.Command {
	opt := bench.APIOptions{}
	cmd := &cobra.Command{
		Use:   "api",
		Short: "Ask a controller by AWS's API at a steady rate, and print what the answers took",
		Long: `Starts a controller on loopback, makes accelerators with a listener and a group each, and then asks it by AWS's
API with the AWS SDK at a steady rate, a third of it changes. It needs no root. Times begin when a request was to be made.`,
		Example: "  nearcast-lab bench api\n  nearcast-lab bench api --accelerators 100 --rate 50 --for 10s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if opt.Bin, err = binDir(); err != nil {
				return err
			}
			if opt.Dir, err = os.MkdirTemp("", "nearcast-bench-"); err != nil {
				return err
			}
			begin := time.Now()
			opt.Say = func(format string, a ...any) {
				fmt.Fprintf(cmd.OutOrStdout(), "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
			}
			r, err := bench.API(cmd.Context(), opt)
			if err != nil {
				return fmt.Errorf("%w (logs are in %s)", err, opt.Dir)
			}
			if _, err := r.WriteTo(cmd.OutOrStdout()); err != nil {
				return err
			}
			return os.RemoveAll(opt.Dir)
		},
	}
	cmd.Flags().IntVar(&opt.Accelerators, "accelerators", 1000, "how many there are, at most 4,000")
	cmd.Flags().IntVar(&opt.Rate, "rate", 200, "requests a second")
	cmd.Flags().DurationVar(&opt.For, "for", 30*time.Second, "how long")
	return cmd
}
