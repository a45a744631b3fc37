package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) announceCommand() *cobra.Command {
	return c.noun("announce", "What sites announce by BGP, and why",
		"  nearcast announce status\n  nearcast announce drain --site fra\n"+
			"  nearcast announce restore --site fra",
		[]string{"announcements"},
		c.announceStatus(),
		c.announceSet("drain", "Withdraw announcements gently; what still comes is served", true),
		c.announceSet("restore", "Let a drained site or node announce again", false))
}

// announceRow is one prefix on one session of one node.
type announceRow struct {
	node, peer, session, bfd, prefix, state, since, reason string
}

func (c *cli) announceStatus() *cobra.Command {
	var site string
	cmd := &cobra.Command{
		Use: "status", Aliases: []string{"get", "list", "ls"},
		Short:   "Show, for each edge, session and prefix, whether it is announced and why",
		Example: "  nearcast announce status\n  nearcast announce status --site fra -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := listAll(site, 0, func(r *pb.ListRequest) (*pb.ListAnnouncementsResponse, error) {
				return s.ListAnnouncements(cmd.Context(), r)
			}, (*pb.ListAnnouncementsResponse).GetNodes)
			if err != nil {
				return err
			}
			return c.showAnnouncements(all)
		},
	}
	cmd.Flags().StringVar(&site, "site", "", "only this `site`")
	mustComplete(cmd, "site", c.completeSites())
	return cmd
}

func (c *cli) showAnnouncements(all []*pb.NodeAnnouncements) error {
	if c.flags.output != "table" {
		return showList(c, "announcements", all)
	}
	slices.SortStableFunc(all, func(a, b *pb.NodeAnnouncements) int {
		return strings.Compare(a.GetName(), b.GetName())
	})
	table := [][]string{{"NODE", "PEER", "SESSION", "BFD", "PREFIX", "STATE", "SINCE", "WHY"}}
	for _, n := range all {
		for _, r := range c.announceRows(n) {
			table = append(table, []string{r.node, r.peer, r.session, r.bfd, r.prefix, r.state, r.since, r.reason})
		}
	}
	return c.table("edges", table)
}

// announceRows lays a node's report out by session and prefix.
func (c *cli) announceRows(n *pb.NodeAnnouncements) []announceRow {
	name, r := n.GetName(), n.GetReport()
	if !n.GetConnected() {
		name += " (away)"
	}
	sessions := r.GetSessions()
	switch {
	case r == nil:
		return []announceRow{{node: name, state: "unknown", reason: "it has reported nothing yet"}}
	case len(sessions) == 0 && len(r.GetAnnouncements()) == 0:
		return []announceRow{{node: name, state: "nothing", reason: r.GetReason()}}
	case len(sessions) == 0:
		sessions = []*pb.PeerSession{{State: "no peer"}}
	}
	var rows []announceRow
	for _, p := range sessions {
		row := announceRow{node: name, peer: p.GetPeer(), session: p.GetState(), bfd: p.GetBfd()}
		before := len(rows)
		for _, a := range r.GetAnnouncements() {
			if p.GetAddress() != "" && isIPv6(p.GetAddress()) != isIPv6(a.GetPrefix()) {
				continue // the session's family is another one
			}
			row.prefix, row.state, row.reason = a.GetPrefix(), c.announceState(p, a), a.GetReason()
			if p.GetAddress() != "" && p.GetState() != "established" && row.state == pendingText {
				row.reason += "; the session is not established"
				if why := p.GetReason(); why != "" {
					row.reason += " (" + why + ")"
				}
			}
			if a.GetSince() != nil {
				row.since = rough(c.now().Sub(a.GetSince().AsTime()))
			}
			rows = append(rows, row)
		}
		if len(rows) == before {
			row.state, row.reason = "nothing", "no prefix of this session's family"
			rows = append(rows, row)
		}
	}
	return rows
}

func isIPv6(text string) bool { return strings.Contains(text, ":") }

// pendingText is the state of a prefix that is to be announced and that the router has not been told.
var pendingText = enumText(pb.AnnounceState_ANNOUNCE_STATE_PENDING)

// announceState is a prefix's state on one session.
func (c *cli) announceState(p *pb.PeerSession, a *pb.Announcement) string {
	state := enumText(a.GetState())
	told := slices.Contains(p.GetAnnounced(), a.GetPrefix())
	switch a.GetState() {
	case pb.AnnounceState_ANNOUNCE_STATE_ANNOUNCED, pb.AnnounceState_ANNOUNCE_STATE_DRAINING:
		if !told {
			return pendingText
		}
	}
	return state
}

func (c *cli) announceSet(verb, short string, drained bool) *cobra.Command {
	var req pb.SetAnnouncingRequest
	cmd := &cobra.Command{
		Use: verb, Short: short,
		Example: "  nearcast announce " + verb + " --site fra\n  nearcast announce " + verb + " --node fra-1",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (req.Site == "") == (req.Node == "") {
				return usagef("say --site SITE or --node NODE")
			}
			req.Drained = drained
			s, err := c.admin()
			if err != nil {
				return err
			}
			resp, err := s.SetAnnouncing(cmd.Context(), &req)
			if err != nil {
				return err
			}
			c.note("%s is under way; see: nearcast announce status", verb)
			return c.showAnnouncements(resp.GetNodes())
		},
	}
	cmd.Flags().StringVar(&req.Site, "site", "", "all edges of this `site`")
	cmd.Flags().StringVar(&req.Node, "node", "", "this `node`")
	mustComplete(cmd, "site", c.completeSites())
	mustComplete(cmd, "node", c.completeNodes())
	if drained {
		addForce(cmd, &req.Force, "no site is left that announces a pool; nodes keep the floor nevertheless")
	}
	return cmd
}

func (s *session) peers(ctx context.Context) ([]*pb.BgpPeer, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListBgpPeersResponse, error) {
		return s.ListBgpPeers(ctx, r)
	}, (*pb.ListBgpPeersResponse).GetPeers)
}

func (c *cli) completePeers() cobra.CompletionFunc {
	return completeWith(c, (*session).peers, (*pb.BgpPeer).GetId)
}

func (c *cli) peerCommand() *cobra.Command {
	type col = column[*pb.BgpPeer]
	return c.noun("peer", "BGP sessions of sites with routers",
		"  nearcast site update fra --asn 64500\n"+
			"  nearcast peer create fra/transit-a --address 198.51.100.1 --asn 64496 --bfd\n"+
			"  nearcast announce status", []string{"peers"},
		c.peerChange("create SITE/NAME", "Create a BGP session of a site's edges", true),
		getCommand(c, "SITE/NAME", "nearcast peer get fra/transit-a", c.completePeers(),
			func(ctx context.Context, s *session, id string) (*pb.BgpPeer, error) {
				return s.GetBgpPeer(ctx, &pb.GetRequest{Id: id})
			}, c.showPeer),
		listCommand(c, "List the BGP sessions", "nearcast peer list", (*session).peers,
			func(all []*pb.BgpPeer) error {
				return showList(c, "peers", all, col{"PEER", (*pb.BgpPeer).GetId},
					col{"ADDRESS", (*pb.BgpPeer).GetAddress},
					col{"ASN", func(p *pb.BgpPeer) string { return fmt.Sprint(p.GetAsn()) }},
					col{"NODES", peerNodes}, col{"HOLD", func(p *pb.BgpPeer) string {
						return p.GetHoldTime().AsDuration().String()
					}}, col{"BFD", bfdText}, col{"STATE", func(p *pb.BgpPeer) string {
						if p.GetDisabled() {
							return "disabled"
						}
						return "enabled"
					}})
			}),
		c.peerChange("update SITE/NAME", "Change a BGP session", false),
		c.deleteCommand("SITE/NAME", "Delete a BGP session; its routes go", "nearcast peer delete fra/old",
			c.completePeers(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteBgpPeer(ctx, r)
				return err
			}))
}

func peerNodes(p *pb.BgpPeer) string {
	if len(p.GetNodes()) == 0 {
		return "all"
	}
	return strings.Join(p.GetNodes(), " ")
}

func bfdText(p *pb.BgpPeer) string {
	if !p.GetBfd() {
		return "no"
	}
	return fmt.Sprintf("%d × %v", p.GetBfdMultiplier(), p.GetBfdInterval().AsDuration())
}

func (c *cli) showPeer(b *pb.BgpPeer) error {
	return c.show(b, func(p *page) {
		p.line("Peer", b.GetId())
		p.line("Address", b.GetAddress())
		p.line("ASN", fmt.Sprint(b.GetAsn()))
		p.line("Nodes", peerNodes(b))
		p.line("Password", map[bool]string{true: "set", false: "none"}[b.GetPasswordSet()])
		switch {
		case b.GetTtlSecurity():
			p.line("TTL", "security (RFC 5082)")
		case b.GetMultihopTtl() > 0:
			p.line("TTL", fmt.Sprintf("multihop %d", b.GetMultihopTtl()))
		}
		p.line("Hold time", b.GetHoldTime().AsDuration().String())
		p.line("Connect retry", b.GetConnectRetry().AsDuration().String())
		if b.GetRestartTime() != nil {
			p.line("Graceful restart", b.GetRestartTime().AsDuration().String())
		}
		p.line("BFD", bfdText(b))
		p.line("Communities", strings.Join(b.GetCommunities(), " "))
		p.line("Prepends", fmt.Sprint(b.GetPrepends()))
		p.line("Disabled", fmt.Sprint(b.GetDisabled()))
	})
}

// peerFlags are the fields of a session by flag; secrets come from a file.
var peerFlags = map[string]string{
	"address": "address", "asn": "asn", "node": "nodes", "password-file": "password",
	"ttl-security": "ttl_security", "multihop-ttl": "multihop_ttl", "hold-time": "hold_time",
	"connect-retry": "connect_retry", "restart-time": "restart_time", "community": "communities",
	"prepend": "prepends", "local-preference": "local_preference", "med": "med",
	"max-prefixes": "max_prefixes",
	"bfd":          "bfd", "bfd-interval": "bfd_interval", "bfd-multiplier": "bfd_multiplier", "passive": "passive",
	"local-address": "local_address", "port": "port", "disabled": "disabled",
}

// peerForm is what the flags of a session say.
type peerForm struct {
	peer                                             pb.BgpPeer
	passwordFile                                     string
	med                                              uint32
	holdTime, connectRetry, restartTime, bfdInterval time.Duration
}

// peerChange makes "create" and "update".
func (c *cli) peerChange(use, short string, create bool) *cobra.Command {
	var (
		form peerForm
		rev  uint64
	)
	verb, what, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short,
		Example: "  nearcast peer " + verb + " fra/transit-a --address 198.51.100.1 --asn 64496 --bfd\n" +
			"  nearcast peer " + verb + " fra/transit-a --address 198.51.100.1 --asn 64496 --password-file - " +
			"--multihop-ttl 2",
		Args: exactly(what),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, name, ok := strings.Cut(args[0], "/")
			if !ok {
				return usagef("%q is not SITE/NAME, like fra/transit-a", args[0])
			}
			mask := changed(cmd, peerFlags)
			if !create && len(mask) == 0 {
				return usagef("nothing to change is said; see the flags of --help")
			}
			if err := form.fill(cmd, c.stdin); err != nil {
				return err
			}
			form.peer.Id, form.peer.Site, form.peer.Name = args[0], site, name
			s, err := c.admin()
			if err != nil {
				return err
			}
			var made *pb.BgpPeer
			if create {
				made, err = s.CreateBgpPeer(cmd.Context(), &pb.CreateBgpPeerRequest{Peer: &form.peer})
			} else {
				made, err = s.UpdateBgpPeer(cmd.Context(), &pb.UpdateBgpPeerRequest{
					Peer: &form.peer, UpdateMask: maskOf(mask...), ExpectedRevision: rev,
				})
			}
			if err != nil {
				return err
			}
			return c.showPeer(made)
		},
	}
	form.register(cmd)
	mustComplete(cmd, "node", c.completeNodes())
	if create {
		return need(cmd, "address", "asn")
	}
	cmd.Aliases, cmd.ValidArgsFunction = []string{"set"}, first(c.completePeers())
	addRevision(cmd, &rev)
	return cmd
}

func (f *peerForm) register(cmd *cobra.Command) {
	fs, p := cmd.Flags(), &f.peer
	fs.StringVar(&p.Address, "address", "", "the router's `address`; its family is that of the routes")
	fs.Uint32Var(&p.Asn, "asn", 0, "the router's autonomous system `number`")
	fs.StringSliceVar(&p.Nodes, "node", nil, "`node` that has this session (default all edges of the site)")
	fs.StringVar(&f.passwordFile, "password-file", "", "`file` with the TCP MD5 password; - is stdin")
	fs.BoolVar(&p.TtlSecurity, "ttl-security", false, "take packets of a direct neighbour only (RFC 5082)")
	fs.Uint32Var(&p.MultihopTtl, "multihop-ttl", 0, "the router is up to this many `hops` away")
	fs.DurationVar(&f.holdTime, "hold-time", 0, "silence after which the session is dead (default 30s)")
	fs.DurationVar(&f.connectRetry, "connect-retry", 0, "pause between attempts to connect (default 5s)")
	fs.DurationVar(&f.restartTime, "restart-time", 0,
		"graceful restart: how long the router keeps routes of a node that has died (default: not)")
	fs.StringSliceVar(&p.Communities, "community", nil, "`community` on every route, like 65000:100")
	fs.Uint32Var(&p.Prepends, "prepend", 0, "`times` more that the own number stands in the path")
	fs.Uint32Var(&p.LocalPreference, "local-preference", 0, "on internal BGP (default 100)")
	fs.Uint32Var(&f.med, "med", 0, "multi-exit discriminator (default none)")
	fs.Uint32Var(&p.MaxPrefixes, "max-prefixes", 0, "routes that the router may send (default 1000000)")
	fs.BoolVar(&p.Bfd, "bfd", false, "watch the router by BFD (RFC 5880)")
	fs.DurationVar(&f.bfdInterval, "bfd-interval", 0, "between BFD packets (default 300ms)")
	fs.Uint32Var(&p.BfdMultiplier, "bfd-multiplier", 0, "BFD packets that may be missed (default 3)")
	fs.BoolVar(&p.Passive, "passive", false, "wait for the router to connect, at TCP port 179")
	fs.StringVar(&p.LocalAddress, "local-address", "", "`address` that the session leaves from")
	fs.Uint32Var(&p.Port, "port", 0, "the router's `port` (default 179)")
	fs.BoolVar(&p.Disabled, "disabled", false, "keep the session down")
}

// fill takes over what flags cannot write into the message themselves.
func (f *peerForm) fill(cmd *cobra.Command, stdin io.Reader) error {
	for flag, to := range map[string]struct {
		d time.Duration
		p **durationpb.Duration
	}{
		"hold-time": {f.holdTime, &f.peer.HoldTime}, "connect-retry": {f.connectRetry, &f.peer.ConnectRetry},
		"restart-time": {f.restartTime, &f.peer.RestartTime},
		"bfd-interval": {f.bfdInterval, &f.peer.BfdInterval},
	} {
		if cmd.Flags().Changed(flag) {
			*to.p = durationpb.New(to.d)
		}
	}
	if cmd.Flags().Changed("med") {
		f.peer.Med = &f.med
	}
	if f.passwordFile == "" {
		return nil
	}
	in := stdin
	if f.passwordFile != "-" {
		file, err := os.Open(f.passwordFile)
		if err != nil {
			return fmt.Errorf("--password-file: %w", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, 4096))
	if err != nil {
		return fmt.Errorf("--password-file: %w", err)
	}
	f.peer.Password = strings.TrimRight(string(text), "\r\n")
	return nil
}
