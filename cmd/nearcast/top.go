package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// dropsBytesMax bounds a node's answer: a thousand samples are a fifth of that.
const dropsBytesMax = 1 << 20

func (c *cli) topCommand() *cobra.Command {
	return c.noun("top", "What there is most of", "  nearcast top drops", nil, c.topDrops())
}

// nodeDrops is a node's answer at /drops.
type nodeDrops struct {
	Present     bool              `json:"present"`
	SampleEvery uint64            `json:"sample_every"`
	Packets     map[string]uint64 `json:"packets"`
	Samples     []struct {
		Time        time.Time      `json:"time"`
		Reason      string         `json:"reason"`
		Protocol    string         `json:"protocol"`
		Source      netip.AddrPort `json:"source"`
		Destination netip.AddrPort `json:"destination"`
	} `json:"samples"`
}

// dropRow is what is dropped of one source for one reason.
type dropRow struct {
	Reason      string `json:"reason"`
	Source      string `json:"source"`
	Destination string `json:"destination"` // of the latest sample
	Protocol    string `json:"protocol"`
	Samples     int    `json:"samples"`
	Packets     uint64 `json:"packets"` // about
}

func (c *cli) topDrops() *cobra.Command {
	var (
		url string
		max int
	)
	cmd := &cobra.Command{
		Use: "drops", Short: "Show which packets a node's guard drops, from its samples",
		Long: `Show which packets a node's guard drops: sources by how many of the latest samples are theirs. A node
keeps the latest 1,000 samples, one of 100 dropped packets each. Exact numbers by reason are in the node's metric
nearcast_kernel_guard_packets_total, and on stderr here. It asks the node itself, at its --metrics-listen.`,
		Example: "  nearcast top drops\n  nearcast top drops --node-url http://10.0.0.5:9465 --rows 50 -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := fetchDrops(cmd.Context(), url)
			if err != nil {
				return err
			}
			if !d.Present {
				return fmt.Errorf("the node at %s has no guard; start nearcast-edge with --guard-interfaces, "+
					"and see its /status for why it may be absent", url)
			}
			for _, reason := range slices.Sorted(maps.Keys(d.Packets)) {
				if n := d.Packets[reason]; n > 0 {
					fmt.Fprintf(c.stderr, "dropped since start: %s %d\n", reason, n)
				}
			}
			all := dropRows(d)
			type col = column[dropRow]
			return showRecords(c, "drops", all[:min(max, len(all))],
				col{"SOURCE", func(r dropRow) string { return r.Source }},
				col{"REASON", func(r dropRow) string { return r.Reason }},
				col{"PROTOCOL", func(r dropRow) string { return r.Protocol }},
				col{"DESTINATION", func(r dropRow) string { return r.Destination }},
				col{"SAMPLES", func(r dropRow) string { return strconv.Itoa(r.Samples) }},
				col{"PACKETS", func(r dropRow) string { return "~" + strconv.FormatUint(r.Packets, 10) }})
		},
	}
	cmd.Flags().StringVar(&url, "node-url", "http://127.0.0.1:9465", "the node's --metrics-listen as a `URL`")
	cmd.Flags().IntVar(&max, "rows", 20, "most `rows`")
	return cmd
}

func fetchDrops(ctx context.Context, url string) (d nodeDrops, err error) {
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/drops", nil)
	if err != nil {
		return d, usagef("--node-url: %v", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return d, fmt.Errorf("ask the node: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return d, fmt.Errorf("ask the node: %s/drops answers %s", url, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, dropsBytesMax)).Decode(&d); err != nil {
		return d, fmt.Errorf("ask the node: %s/drops is not understood: %w", url, err)
	}
	return d, nil
}

// dropRows counts samples by source and reason, most first.
func dropRows(d nodeDrops) []dropRow {
	type key struct{ source, reason, protocol string }
	rows := map[key]*dropRow{}
	for _, s := range d.Samples {
		k := key{s.Source.Addr().String(), s.Reason, s.Protocol}
		r := rows[k]
		if r == nil {
			r = &dropRow{Reason: k.reason, Source: k.source, Protocol: k.protocol}
			rows[k] = r
		}
		r.Samples++
		r.Packets += d.SampleEvery
		r.Destination = s.Destination.String()
	}
	var all []dropRow
	for _, r := range rows {
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b dropRow) int {
		return cmp.Or(cmp.Compare(b.Samples, a.Samples), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.Reason, b.Reason))
	})
	return all
}
