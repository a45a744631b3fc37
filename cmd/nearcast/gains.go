package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/cmd/nearcast/gainreport"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// gains returns what is known, most flows first.
func (s *session) gains(ctx context.Context, region, network string) ([]*pb.Gain, error) {
	all, err := listAll("", 0, func(r *pb.ListRequest) (*pb.ListGainsResponse, error) {
		return s.ListGains(ctx, &pb.ListGainsRequest{Region: region, Network: network,
			PageSize: r.GetPageSize(), PageToken: r.GetPageToken()})
	}, (*pb.ListGainsResponse).GetGains)
	slices.SortStableFunc(all, func(a, b *pb.Gain) int { return cmp.Compare(b.GetFlows(), a.GetFlows()) })
	return all, err
}

const gainsLong = `Show what acceleration gives each client network towards each region. Measured of real flows, by the edges:
CLIENT (round trip between client and edge), BACKBONE (edge to gateway), CONNECT (gateway to endpoint), DOWN
(throughput to clients while there was something to send). DIRECT, the round trip without acceleration,
cannot be seen from accelerated flows: it is what "nearcast probe --report" measured in that network, what
an operator said ("nearcast gains direct"), or an estimate, marked with ~. BEFORE and AFTER are the time
to the first byte of an answer, without the time that the application thinks.`

func (c *cli) gainsCommand() *cobra.Command {
	var region, network string
	var most int
	cmd := &cobra.Command{
		Use: "gains", Short: "What acceleration gives, by client network and region",
		Long:    gainsLong,
		Example: "  nearcast gains\n  nearcast gains --region eu-fra-1 --network 198.51.100.0/24 -o json", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.gains(cmd.Context(), region, network)
			if err != nil {
				return err
			}
			if c.flags.output == "table" && len(all) > most {
				c.note("%d of %d rows; --rows shows more", most, len(all))
				all = all[:most]
			}
			return c.showGains(all)
		},
	}
	f := cmd.Flags()
	f.StringVar(&region, "region", "", "only this `region`")
	f.StringVar(&network, "network", "", "only networks within or around this `network` or address")
	f.IntVar(&most, "rows", 40, "most `rows` of the table; those with most flows come first")
	mustComplete(cmd, "region", c.completeRegions())
	cmd.AddCommand(c.gainsReport(), c.gainsDirect())
	return cmd
}

func (c *cli) showGains(all []*pb.Gain) error {
	type col = column[*pb.Gain]
	ms := func(of func(*pb.Gain) *durationpb.Duration) func(*pb.Gain) string {
		return func(g *pb.Gain) string { return gainreport.Milliseconds(of(g).AsDuration()) }
	}
	return showList(c, "gains", all, col{"NETWORK", (*pb.Gain).GetNetwork}, col{"REGION", (*pb.Gain).GetRegion},
		col{"EDGE AT", (*pb.Gain).GetSite}, col{"FLOWS", func(g *pb.Gain) string { return fmt.Sprint(g.GetFlows()) }},
		col{"CLIENT", ms((*pb.Gain).GetClient)}, col{"BACKBONE", ms((*pb.Gain).GetBackbone)},
		col{"CONNECT", ms((*pb.Gain).GetConnect)}, col{"DIRECT", gainreport.Direct},
		col{"BEFORE", func(g *pb.Gain) string {
			return gainreport.Guess(g) + gainreport.Milliseconds(g.GetFirstByteDirect().AsDuration())
		}},
		col{"AFTER", ms((*pb.Gain).GetFirstByte)}, col{"SAVED", gainreport.Saved},
		col{"DOWN", func(g *pb.Gain) string { return gainreport.Throughput(float64(g.GetDown())) }})
}

func (c *cli) gainsReport() *cobra.Command {
	var dir, region string
	cmd := &cobra.Command{
		Use: "report", Short: "Write a report of the gains: pictures, a table and all figures",
		Long: `Write a report of the gains into a directory: report.md with a summary and a table, gains.svg (the first
byte with and without acceleration), throughput.svg (where a probe measured both), and gains.csv with all
figures. Estimates are marked.`,
		Example: "  nearcast gains report --dir gains-june", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.gains(cmd.Context(), region, "")
			if err != nil {
				return err
			}
			if len(all) == 0 {
				return fmt.Errorf("nothing to report: no edge has told of flows yet")
			}
			files, err := gainreport.Files(all, c.now())
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
					return err
				}
			}
			c.note("%d rows; read %s", len(all), filepath.Join(dir, "report.md"))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` to write to; files of an earlier report are replaced")
	cmd.Flags().StringVar(&region, "region", "", "only this `region`")
	mustComplete(cmd, "region", c.completeRegions())
	return need(cmd, "dir")
}

func (c *cli) gainsDirect() *cobra.Command {
	var path pb.DirectPath
	var rtt time.Duration
	var remove bool
	cmd := &cobra.Command{
		Use: "direct NETWORK", Short: "Say how far a region is for a client network without acceleration",
		Long: `Say how far a region is for a client network without acceleration: the round trip that was measured by
other means. It is used for all client networks within NETWORK; the longest one that is known decides, and
estimates are not used then.`,
		Example: "  nearcast gains direct 198.51.100.0/24 --region eu-fra-1 --rtt 180ms\n" +
			"  nearcast gains direct 198.51.100.0/24 --region eu-fra-1 --remove",
		Args: exactly("NETWORK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if remove == (rtt > 0) {
				return usagef("give one of --rtt and --remove")
			}
			path.Network, path.Rtt, path.Source = args[0], durationpb.New(rtt), pb.DirectSource_DIRECT_SOURCE_OPERATOR
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.SetDirectPath(cmd.Context(), &pb.SetDirectPathRequest{Path: &path, Remove: remove})
			if err != nil {
				return err
			}
			if remove {
				c.note("what was known of %s to %s is forgotten", made.GetNetwork(), made.GetRegion())
				return nil
			}
			return c.show(made, func(p *page) {
				p.line("Network", made.GetNetwork())
				p.line("Region", made.GetRegion())
				p.line("Direct", gainreport.Milliseconds(made.GetRtt().AsDuration()))
			})
		},
	}
	cmd.Flags().StringVar(&path.Region, "region", "", "the `region`")
	cmd.Flags().DurationVar(&rtt, "rtt", 0, "round trip without acceleration")
	cmd.Flags().BoolVar(&remove, "remove", false, "forget what was said or reported")
	mustComplete(cmd, "region", c.completeRegions())
	return need(cmd, "region")
}
