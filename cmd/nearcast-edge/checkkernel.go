package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/edge/kernel"
)

func checkKernelCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "check-kernel",
		Short: "Say what this machine can do for a node, and what each missing thing costs",
		Long: `Say what this machine can do for a node, and what each missing thing costs. Nothing of it is needed: a node
works on plain sockets everywhere. Run it as the node runs (same user and capabilities), since it looks at those.`,
		Example: "  nearcast-edge check-kernel\n  sudo systemd-run -qPp User=nobody -p AmbientCapabilities=" +
			"'CAP_BPF CAP_NET_ADMIN CAP_PERFMON' nearcast-edge check-kernel -o json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := kernel.Check()
			switch output {
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(findings)
			case "table":
			default:
				return fmt.Errorf("--output: %q is not table or json", output)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, f := range findings {
				state, text := "yes", f.Why
				if !f.OK {
					state, text = "no", f.Why+"; costs: "+f.Cost
				}
				fmt.Fprintf(tw, "%s\t%s\t%s\n", state, f.What, text)
			}
			return tw.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "`format`: table or json")
	return cmd
}
