package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) statusCommand() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show the whole cluster at a glance, problems first",
		Long: "Show the whole cluster at a glance, problems first. With --check, the exit code is 1 if there\n" +
			"are any.",
		Example: "  nearcast status\n  nearcast status --check > /dev/null || page-somebody", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			st, err := s.GetStatus(cmd.Context(), &emptypb.Empty{})
			if err != nil {
				return err
			}
			if err := c.show(st, func(p *page) { c.statusPage(p, st) }); err != nil {
				return err
			}
			if check && len(st.GetProblems()) > 0 {
				return exitError{exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "exit with 1 if there are problems")
	return cmd
}

func (c *cli) statusPage(p *page, st *pb.StatusResponse) {
	switch n := len(st.GetProblems()); n {
	case 0:
		p.heading("Cluster %s: no problems", st.GetCluster())
	default:
		p.heading("Cluster %s: %s", st.GetCluster(), strings.ToUpper(plural(n, "problem")))
		for _, problem := range st.GetProblems() {
			p.rows([][]string{{"! " + problem}})
		}
	}
	p.heading("%s", "Overview")
	overview := [][]string{
		{"revision", fmt.Sprintf("%d  (%.8x)", st.GetRevision(), st.GetHash())},
		{"controllers", controllersText(st.GetControllers())},
		{"nodes", nodesText(st.GetNodes())},
		{"accelerators", acceleratorsText(st)},
		{"endpoints", endpointsText(st)},
	}
	if st.GetCountries() != nil {
		overview = append(overview, []string{"countries", countriesText(st.GetCountries())})
	}
	p.rows(overview)
	nodes := slices.Clone(st.GetNodes())
	slices.SortStableFunc(nodes, func(a, b *pb.Node) int { return trouble(b) - trouble(a) })
	if len(nodes) > 0 {
		p.heading("Nodes")
		p.rows(rows(nodes, c.nodeColumns()))
	}
	var notes [][]string
	for _, n := range nodes {
		for _, note := range n.GetNotes() {
			notes = append(notes, []string{n.GetName(), note})
		}
	}
	if len(notes) > 0 {
		p.heading("Notes")
		p.rows(notes)
	}
}

// trouble is how much a node deserves to be looked at.
func trouble(n *pb.Node) int {
	switch {
	case n.GetState() == pb.NodeState_NODE_STATE_REVOKED:
		return 0
	case len(n.GetRejections()) > 0:
		return 4
	case !n.GetConnected():
		return 3
	case n.GetState() == pb.NodeState_NODE_STATE_DRAINING:
		return 2
	}
	return 1
}

func controllersText(all []*pb.ControllerStatus) string {
	var words []string
	for _, c := range all {
		word := c.GetId() + " (" + c.GetAddress()
		if c.GetLeader() {
			word += ", leader"
		}
		words = append(words, word+")")
	}
	return orNone(words)
}

func nodesText(nodes []*pb.Node) string {
	connected, draining, revoked := 0, 0, 0
	for _, n := range nodes {
		switch {
		case n.GetState() == pb.NodeState_NODE_STATE_REVOKED:
			revoked++
			continue
		case n.GetState() == pb.NodeState_NODE_STATE_DRAINING:
			draining++
		}
		if n.GetConnected() {
			connected++
		}
	}
	text := fmt.Sprintf("%d of %d connected", connected, len(nodes)-revoked)
	if draining > 0 {
		text += fmt.Sprintf(", %d draining", draining)
	}
	if revoked > 0 {
		text += fmt.Sprintf(", %d revoked", revoked)
	}
	return text
}

func acceleratorsText(st *pb.StatusResponse) string {
	if st.GetAccelerators() == 0 {
		return "none"
	}
	if st.GetAcceleratorsInProgress() == 0 {
		return fmt.Sprintf("%d, all deployed", st.GetAccelerators())
	}
	return fmt.Sprintf("%d, %d in progress", st.GetAccelerators(), st.GetAcceleratorsInProgress())
}

func endpointsText(st *pb.StatusResponse) string {
	text := fmt.Sprintf("%d healthy", st.GetEndpointsHealthy())
	if n := st.GetEndpointsUnhealthy(); n > 0 {
		text += fmt.Sprintf(", %d unhealthy", n)
	}
	if n := st.GetEndpointsInitial(); n > 0 {
		text += fmt.Sprintf(", %d not judged yet", n)
	}
	return text
}

// countriesText says which countries listeners name, and how old what is known of them is.
func countriesText(st *pb.CountryStatus) string {
	text := "none named"
	if used := st.GetUsed(); len(used) > 0 {
		var words []string
		for _, u := range used {
			word := fmt.Sprintf("%s (%d networks)", u.GetCountry(), u.GetNetworks())
			if u.GetSource() == nil {
				word = u.GetCountry() + " (no list)"
			}
			words = append(words, word)
		}
		text = strings.Join(words, ", ")
	}
	if d := st.GetDatabase(); d != nil {
		return fmt.Sprintf("%s; database %s of %s, controller %s", text, d.GetSource().GetType(),
			d.GetSource().GetBuilt().AsTime().UTC().Format("2006-01-02"), d.GetSource().GetController())
	}
	return text + "; no country database"
}

func (c *cli) healthCommand() *cobra.Command {
	var group string
	var sick bool
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "get"}, Short: "List each endpoint's verdict and what it rests on",
		Example: "  nearcast health list\n  nearcast health list --group web:443@eu-fra-1\n" +
			"  nearcast health list --sick",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			parent := ""
			if group != "" {
				if parent, err = c.groupID(cmd.Context(), s, group); err != nil {
					return err
				}
			}
			all, err := s.health(cmd.Context(), parent)
			if err != nil {
				return err
			}
			if sick {
				all = filter(all, func(h *pb.EndpointHealthStatus) bool {
					return h.GetVerdict() != pb.HealthState_HEALTH_STATE_HEALTHY
				})
			}
			return c.showHealth(cmd.Context(), s, all)
		},
	}
	c.addGroupFlag(list, &group)
	list.Flags().BoolVar(&sick, "sick", false, "only those that are not healthy")
	return c.noun("health", "Verdicts on endpoints, and what they rest on",
		"  nearcast health list\n  nearcast health list --sick", nil, list)
}

func (c *cli) showHealth(ctx context.Context, s *session, all []*pb.EndpointHealthStatus) error {
	names := map[string]string{}
	if c.flags.output == "table" {
		nodes, err := s.nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			names[n.GetId()] = n.GetName()
		}
		labels, groups, err := s.labelled(ctx, "")
		if err != nil {
			return err
		}
		for _, g := range groups {
			names[g.GetId()] = labels[g.GetListenerId()] + "@" + g.GetRegion()
		}
	}
	called := func(id string) string {
		if names[id] != "" {
			return names[id]
		}
		return id
	}
	type col = column[*pb.EndpointHealthStatus]
	return showList(c, "endpoints", all,
		col{"GROUP", func(h *pb.EndpointHealthStatus) string { return called(h.GetGroupId()) }},
		col{"ENDPOINT", (*pb.EndpointHealthStatus).GetEndpointId},
		col{"VERDICT", func(h *pb.EndpointHealthStatus) string { return enumText(h.GetVerdict()) }},
		col{"SINCE", func(h *pb.EndpointHealthStatus) string { return c.ago(h.GetSince()) }},
		col{"REPORTS", func(h *pb.EndpointHealthStatus) string { return reportsText(h, called) }},
		col{"REASON", (*pb.EndpointHealthStatus).GetReason})
}

// reportsText tells what the probers see: "fra-1 healthy 2ms, controller unhealthy".
func reportsText(h *pb.EndpointHealthStatus, called func(id string) string) string {
	var words []string
	for _, r := range h.GetReports() {
		word := called(r.GetProber()) + " " + enumText(r.GetHealth().GetState())
		if d := r.GetHealth().GetLatency(); d != nil {
			word += " " + milliseconds(d.AsDuration().Seconds())
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

func milliseconds(seconds float64) string { return fmt.Sprintf("%.1fms", seconds*1000) }

// hop is one path and the node that measured it.
type hop struct {
	*pb.Path
	from string
}

func (c *cli) pathCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what nodes measure towards each other",
		Example: "  nearcast path list", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.paths(cmd.Context())
			if err != nil {
				return err
			}
			if c.flags.output != "table" {
				return showList(c, "paths", all)
			}
			nodes, err := s.nodes(cmd.Context())
			if err != nil {
				return err
			}
			name := map[string]string{}
			for _, n := range nodes {
				name[n.GetId()] = n.GetName()
			}
			return c.showPaths(all, name)
		},
	}
	return c.noun("path", "Round trips and loss between nodes", "  nearcast path list", []string{"paths"}, list)
}

func (c *cli) showPaths(all []*pb.NodePaths, name map[string]string) error {
	called := func(id string) string {
		if name[id] != "" {
			return name[id]
		}
		return id
	}
	var hops []hop
	for _, n := range all {
		for _, p := range n.GetPaths() {
			hops = append(hops, hop{p, called(n.GetNode())})
		}
	}
	type col = column[hop]
	return showList(c, "paths", hops,
		col{"FROM", func(h hop) string { return h.from }},
		col{"TO", func(h hop) string { return called(h.GetPeer()) }},
		col{"UP", func(h hop) string { return yesNo(h.GetUp()) }},
		col{"RTT", func(h hop) string {
			if h.GetRtt() == nil {
				return ""
			}
			return milliseconds(h.GetRtt().AsDuration().Seconds())
		}},
		col{"LOSS", func(h hop) string { return fmt.Sprintf("%.2f%%", h.GetLoss()*100) }},
		col{"CARRIERS", func(h hop) string { return fmt.Sprint(h.GetCarriers()) }},
		col{"UDP", func(h hop) string { return yesNo(h.GetUdp()) }})
}

func (c *cli) snapshotCommand() *cobra.Command {
	return &cobra.Command{
		Use: "snapshot", Short: "Print what nodes are being told now, without secrets",
		Example: "  nearcast snapshot -o json > before.json", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			snapshot, err := s.GetSnapshot(cmd.Context(), &emptypb.Empty{})
			if err != nil {
				return err
			}
			if c.flags.output == "table" {
				c.flags.output = "yaml"
			}
			return c.show(snapshot, nil)
		},
	}
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print this tool's version", Example: "  nearcast version", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			if c.flags.output != "table" {
				return c.data(map[string]string{"version": version, "go": runtime.Version()})
			}
			_, err := fmt.Fprintf(c.stdout, "nearcast %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS,
				runtime.GOARCH)
			return err
		},
	}
}

func (c *cli) completionCommand() *cobra.Command {
	shell := func(name, example string, write func(root *cobra.Command) error) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: "Print the completion script of " + name, Example: example, Args: exactly(),
			RunE: func(cmd *cobra.Command, _ []string) error { return write(cmd.Root()) },
		}
	}
	return c.noun("completion", "Let the shell complete commands and names",
		"  source <(nearcast completion bash)", nil,
		shell("bash",
			"  source <(nearcast completion bash)\n  nearcast completion bash > /etc/bash_completion.d/nearcast",
			func(root *cobra.Command) error { return root.GenBashCompletionV2(c.stdout, true) }),
		shell("zsh", "  nearcast completion zsh > \"${fpath[1]}/_nearcast\"",
			func(root *cobra.Command) error { return root.GenZshCompletion(c.stdout) }),
		shell("fish", "  nearcast completion fish > ~/.config/fish/completions/nearcast.fish",
			func(root *cobra.Command) error { return root.GenFishCompletion(c.stdout, true) }))
}
