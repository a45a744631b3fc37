package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *session) zones(ctx context.Context) ([]*pb.Zone, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListZonesResponse, error) {
		return s.ListZones(ctx, r)
	}, (*pb.ListZonesResponse).GetZones)
}

func (c *cli) completeZones() cobra.CompletionFunc {
	return completeWith(c, (*session).zones, (*pb.Zone).GetName)
}

func (c *cli) zoneCommand() *cobra.Command {
	type col = column[*pb.Zone]
	return c.noun("zone", "DNS zones that the nodes answer for",
		"  nearcast zone create example.com -f example.com.zone --dnssec --alias www=web", []string{"zones"},
		c.zoneChange("create NAME", "Create a zone from a zone file", true),
		getCommand(c, "ZONE", "nearcast zone get example.com", c.completeZones(),
			func(ctx context.Context, s *session, name string) (*pb.Zone, error) {
				return s.GetZone(ctx, &pb.GetRequest{Id: name})
			}, c.showZone),
		listCommand(c, "List the zones", "nearcast zone list", (*session).zones, func(all []*pb.Zone) error {
			return showList(c, "zones", all, col{"NAME", (*pb.Zone).GetName},
				col{"SERIAL", func(z *pb.Zone) string { return fmt.Sprint(z.GetSerial()) }},
				col{"ALIASES", zoneAliases}, col{"DNSSEC", zoneKeys})
		}),
		c.zoneChange("update ZONE", "Change a zone's text, aliases or DNSSEC", false),
		c.zoneRoll(),
		c.deleteCommand("ZONE", "Delete a zone with its keys", "nearcast zone delete old.example",
			c.completeZones(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteZone(ctx, r)
				return err
			}))
}

func zoneAliases(z *pb.Zone) string {
	var list []string
	for _, a := range z.GetAliases() {
		list = append(list, a.GetName())
	}
	return strings.Join(list, " ")
}

func zoneKeys(z *pb.Zone) string {
	if !z.GetDnssec() {
		return "off"
	}
	var list []string
	for _, k := range z.GetKeys() {
		list = append(list, fmt.Sprintf("%d %s", k.GetTag(), manifest.EnumText(k.GetState())))
	}
	return strings.Join(list, ", ")
}

func (c *cli) showZone(z *pb.Zone) error {
	return c.show(z, func(p *page) {
		p.line("Name", z.GetName())
		p.line("Serial", fmt.Sprint(z.GetSerial()))
		for _, a := range z.GetAliases() {
			p.line("Alias", a.GetName()+" is accelerator "+a.GetAcceleratorId())
		}
		p.line("DNSSEC", zoneKeys(z))
		for _, k := range z.GetKeys() {
			p.line("For the parent", k.GetDs())
		}
		p.line("Text", fmt.Sprintf("%d bytes; -o json shows it", len(z.GetText())))
	})
}

// zoneChange makes "create" and "update".
func (c *cli) zoneChange(use, short string, create bool) *cobra.Command {
	var (
		zone            pb.Zone
		file, algorithm string
		aliases         []string
		rev             uint64
		force           bool
	)
	verb, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short,
		Long: short + ".\n\nThe file is a zone file (RFC 1035). SOA and NS may be left out: they are made then. An alias is a\n" +
			"name (@ for the zone's own) that is answered like an accelerator's, with each client's nearest edges.",
		Example: "  nearcast zone " + verb + " example.com -f example.com.zone\n" +
			"  nearcast zone " + verb + " example.com --dnssec --alias @=web --alias www=web",
		Args: exactly(use[len(verb)+1:]),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			zone.Name = args[0]
			mask := changed(cmd, map[string]string{"file": "text", "alias": "aliases", "dnssec": "dnssec",
				"algorithm": "key_algorithm"})
			if !create && len(mask) == 0 {
				return usagef("nothing to change is said; use --file, --alias, --dnssec or --algorithm")
			}
			if file != "" {
				if zone.Text, err = c.readText(file); err != nil {
					return err
				}
			}
			if zone.KeyAlgorithm, err = parseAlgorithm(algorithm); err != nil {
				return err
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			if zone.Aliases, err = s.parseAliases(cmd.Context(), aliases); err != nil {
				return err
			}
			var made *pb.Zone
			if create {
				made, err = s.CreateZone(cmd.Context(), &pb.CreateZoneRequest{Zone: &zone})
			} else {
				made, err = s.UpdateZone(cmd.Context(), &pb.UpdateZoneRequest{
					Zone: &zone, UpdateMask: maskOf(mask...), ExpectedRevision: rev, Force: force,
				})
			}
			if err != nil {
				return err
			}
			return c.showZone(made)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "zone `file`; - is stdin")
	cmd.Flags().StringSliceVar(&aliases, "alias", nil, "`NAME=ACCELERATOR`; all of them")
	cmd.Flags().BoolVar(&zone.Dnssec, "dnssec", false, "sign the zone; the keys are made")
	cmd.Flags().StringVar(&algorithm, "algorithm", "", "of the next key: `ecdsap256sha256` (default) or ed25519")
	mustComplete(cmd, "algorithm", options("ecdsap256sha256", "ed25519"))
	if create {
		return cmd
	}
	cmd.Aliases, cmd.ValidArgsFunction = []string{"set"}, first(c.completeZones())
	addRevision(cmd, &rev)
	addForce(cmd, &force, "it leaves fewer than half of the zone's names")
	return cmd
}

// readText reads a file, or stdin.
func (c *cli) readText(file string) (string, error) {
	var in io.Reader = c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, model.ZoneTextMax+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return string(text), nil
}

func parseAlgorithm(s string) (pb.ZoneKeyAlgorithm, error) {
	switch strings.ToLower(s) {
	case "":
		return pb.ZoneKeyAlgorithm_ZONE_KEY_ALGORITHM_UNSPECIFIED, nil
	case "ecdsap256sha256", "p256", "13":
		return pb.ZoneKeyAlgorithm_ZONE_KEY_ALGORITHM_ECDSAP256SHA256, nil
	case "ed25519", "15":
		return pb.ZoneKeyAlgorithm_ZONE_KEY_ALGORITHM_ED25519, nil
	}
	return 0, usagef("--algorithm is ecdsap256sha256 or ed25519, not %q", s)
}

func (s *session) parseAliases(ctx context.Context, list []string) (all []*pb.ZoneAlias, err error) {
	for _, text := range list {
		name, accelerator, ok := strings.Cut(text, "=")
		if !ok || name == "" || accelerator == "" {
			return nil, usagef("--alias is NAME=ACCELERATOR, not %q", text)
		}
		a, err := s.accelerator(ctx, accelerator)
		if err != nil {
			return nil, err
		}
		all = append(all, &pb.ZoneAlias{Name: name, AcceleratorId: a.GetId()})
	}
	return all, nil
}

func (c *cli) zoneRoll() *cobra.Command {
	var step string
	var force bool
	steps := map[string]pb.ZoneKeyStep{
		"publish":  pb.ZoneKeyStep_ZONE_KEY_STEP_PUBLISH,
		"activate": pb.ZoneKeyStep_ZONE_KEY_STEP_ACTIVATE,
		"remove":   pb.ZoneKeyStep_ZONE_KEY_STEP_REMOVE,
	}
	cmd := &cobra.Command{
		Use: "roll ZONE", Short: "Take a step of the rollover of a zone's signing key",
		Long: "Take a step of the rollover of a zone's signing key:\n\n" +
			"  publish   make a new key; give its DS record to the parent zone, beside the old one\n" +
			"  activate  sign with the new key\n" +
			"  remove    take the old key out; take its DS out of the parent zone before",
		Example: "  nearcast zone roll example.com --step publish", Args: exactly("ZONE"),
		ValidArgsFunction: first(c.completeZones()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			number, ok := steps[step]
			if !ok {
				return usagef("--step is publish, activate or remove, not %q", step)
			}
			z, err := s.RollZoneKey(cmd.Context(), &pb.RollZoneKeyRequest{Name: args[0], Step: number, Force: force})
			if err != nil {
				return err
			}
			return c.showZone(z)
		},
	}
	cmd.Flags().StringVar(&step, "step", "", "`step`: publish, activate or remove")
	mustComplete(cmd, "step", options("publish", "activate", "remove"))
	addForce(cmd, &force, "resolvers may still know the keys as they were")
	return need(cmd, "step")
}

func (c *cli) steerCommand() *cobra.Command {
	get := &cobra.Command{
		Use: "get", Aliases: []string{"show"}, Short: "Show how names are answered",
		Example: "  nearcast steer get", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			st, err := s.GetSteering(cmd.Context(), &emptypb.Empty{})
			if err != nil {
				return err
			}
			return c.showSteering(st)
		},
	}
	return c.noun("steer", "Where clients are brought, and why",
		"  nearcast steer explain --client 198.51.100.7\n  nearcast steer update --network 10.0.0.0/8=fra", nil,
		get, c.steerUpdate(), c.steerExplain())
}

func (c *cli) steerUpdate() *cobra.Command {
	var (
		st                pb.Steering
		ttl               time.Duration
		networks, weights []string
		rev               uint64
	)
	cmd := &cobra.Command{
		Use: "update", Aliases: []string{"set"}, Short: "Change how names of accelerators on node pools are answered",
		Example: "  nearcast steer update --ttl 20s --network 10.0.0.0/8=fra,10.1.0.0/16=sin\n" +
			"  nearcast steer update --weight sin=50",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mask := changed(cmd, map[string]string{"ttl": "ttl", "addresses-max": "addresses_max",
				"network": "networks", "weight": "weights", "default-site": "default_site",
				"ignore-ecs": "ignore_ecs", "name-server": "name_servers",
				"explore": "explore_percent", "explore-off": "explore_off", "ignore-rtt": "ignore_rtt"})
			if len(mask) == 0 {
				return usagef("nothing to change is said")
			}
			st.Ttl = durationpb.New(ttl)
			for _, text := range networks {
				prefix, site, ok := strings.Cut(text, "=")
				if !ok {
					return usagef("--network is CIDR=SITE, not %q", text)
				}
				st.Networks = append(st.Networks, &pb.SteeringNetwork{Prefix: prefix, Site: site})
			}
			for _, text := range weights {
				site, percent, _ := strings.Cut(text, "=")
				n, err := strconv.ParseUint(strings.TrimSuffix(percent, "%"), 10, 32)
				if err != nil {
					return usagef("--weight is SITE=PERCENT, not %q", text)
				}
				st.Weights = append(st.Weights, &pb.SteeringWeight{Site: site, Percent: uint32(n)})
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.UpdateSteering(cmd.Context(), &pb.UpdateSteeringRequest{
				Steering: &st, UpdateMask: maskOf(mask...), ExpectedRevision: rev,
			})
			if err != nil {
				return err
			}
			return c.showSteering(made)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&ttl, "ttl", 0, "TTL of steered answers (default 30s)")
	f.Uint32Var(&st.AddressesMax, "addresses-max", 0, "addresses of one family in an answer (default 4)")
	f.StringSliceVar(&networks, "network", nil, "`CIDR=SITE` of clients whose site is known; all of them")
	f.StringSliceVar(&weights, "weight", nil,
		"`SITE=PERCENT` of the clients for whom it is the best that it gets; all that differ from 100")
	f.StringVar(&st.DefaultSite, "default-site", "", "`site` for clients about whom nothing is known")
	f.BoolVar(&st.IgnoreEcs, "ignore-ecs", false, "judge clients by their resolver only")
	f.Uint32Var(&st.ExplorePercent, "explore", 0,
		"`percent` of a client network's answers that try a site whose round trip is not known (default 2)")
	f.BoolVar(&st.ExploreOff, "explore-off", false, "try no sites")
	f.BoolVar(&st.IgnoreRtt, "ignore-rtt", false, "do not go by measured round trips")
	f.StringSliceVar(&st.NameServers, "name-server", nil, "`names` of the name servers of zones that name none; all of them")
	mustComplete(cmd, "default-site", c.completeSites())
	addRevision(cmd, &rev)
	return cmd
}

func (c *cli) showSteering(st *pb.Steering) error {
	return c.show(st, func(p *page) {
		p.line("TTL", st.GetTtl().AsDuration().String())
		p.line("Addresses", fmt.Sprintf("at most %d of a family", st.GetAddressesMax()))
		p.line("Default site", st.GetDefaultSite())
		p.line("Client subnets", map[bool]string{false: "used", true: "ignored"}[st.GetIgnoreEcs()])
		p.line("Round trips", steeringRTT(st))
		p.line("Name servers", strings.Join(st.GetNameServers(), " "))
		for _, n := range st.GetNetworks() {
			p.line("Network", n.GetPrefix()+" goes to "+n.GetSite())
		}
		for _, w := range st.GetWeights() {
			p.line("Weight", fmt.Sprintf("%s %d%%", w.GetSite(), w.GetPercent()))
		}
	})
}

// steeringRTT says how measured round trips are used.
func steeringRTT(st *pb.Steering) string {
	switch {
	case st.GetIgnoreRtt():
		return "ignored"
	case st.GetExploreOff():
		return "used; no site is tried for their sake"
	}
	return fmt.Sprintf("used; %d%% of a network's answers try a site that may be nearer", st.GetExplorePercent())
}

func (c *cli) steerExplain() *cobra.Command {
	var req pb.ExplainSteerRequest
	var accelerator string
	cmd := &cobra.Command{
		Use: "explain", Short: "Say which edge and which region a client is brought to, and why",
		Long: "Ask the nodes themselves: one that answers DNS which edges it would name to this client, and the\n" +
			"first of those which regions it would use. Numbers are those that the nodes decide by.",
		Example: "  nearcast steer explain --client 198.51.100.7\n" +
			"  nearcast steer explain --client 198.51.100.7 --resolver 192.0.2.53 --accelerator web\n" +
			"  nearcast steer explain --client 198.51.100.7 --accelerator game --port 10004",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			if accelerator != "" {
				a, err := s.accelerator(cmd.Context(), accelerator)
				if err != nil {
					return err
				}
				req.AcceleratorId = a.GetId()
			}
			r, err := s.ExplainSteer(cmd.Context(), &req)
			if err != nil {
				return err
			}
			return c.showExplained(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Client, "client", "", "the client's `address`")
	f.StringVar(&req.Resolver, "resolver", "", "`address` of a resolver that tells no client subnet")
	f.StringVar(&accelerator, "accelerator", "", "`accelerator` (default the first one on a node pool)")
	f.Uint32Var(&req.Port, "port", 0, "`port` of a custom routing accelerator: where it leads")
	f.StringVar(&req.Node, "node", "", "`node` that is asked (default any edge)")
	mustComplete(cmd, "node", c.completeNodes())
	return need(cmd, "client")
}

func (c *cli) showExplained(r *pb.ExplainSteerResponse) error {
	return c.show(r, func(p *page) {
		p.line("Name", r.GetName())
		p.line("Answer", strings.Join(r.GetAddresses(), " ")+", TTL "+r.GetTtl().AsDuration().String())
		p.line("Holds for", r.GetScope())
		p.line("Decided by", r.GetSource())
		p.line("Because", r.GetReason())
		p.line("Asked", r.GetAnsweredBy())
		for _, s := range r.GetSites() {
			p.line("Site "+s.GetSite(), explainedSite(s, r.GetSource()))
		}
		p.line("Edge", r.GetEdge())
		if m := r.GetMapping(); m != nil {
			p.line("Port leads to", explainedMapping(m))
		}
		for _, g := range r.GetRegions() {
			text := "distance unknown"
			if g.GetDistanceMs() >= 0 {
				text = fmt.Sprintf("%.1f ms away", g.GetDistanceMs())
			}
			if !g.GetServable() {
				text += ", cannot be served now"
			}
			p.line("Region "+g.GetRegion(), fmt.Sprintf("%s, dial %g%%, %d gateways", text, g.GetDial(), g.GetGateways()))
		}
	})
}

func explainedMapping(m *pb.ExplainedMapping) string {
	if m.GetGroupId() == "" {
		return "nothing: it is not mapped"
	}
	text := fmt.Sprintf("%s %s in subnet %s of %s", enumText(m.GetProtocol()), m.GetDestination(), m.GetSubnet(), m.GetRegion())
	switch {
	case !m.GetAllowed():
		return text + ", but traffic to it is denied"
	case len(m.GetGateways()) == 0:
		return text + ", but no gateway there can be reached"
	}
	return text + " by " + strings.Join(m.GetGateways(), " ") + ", client address " + enumText(m.GetClientAddress())
}

func explainedSite(s *pb.ExplainedSite, source string) string {
	var parts []string
	if s.GetRttMs() >= 0 {
		parts = append(parts, fmt.Sprintf("measured %.1f ms", s.GetRttMs()))
	}
	if s.GetDistanceKm() >= 0 {
		parts = append(parts, fmt.Sprintf("%.0f km", s.GetDistanceKm()))
	}
	if s.GetWeight() != 100 {
		parts = append(parts, fmt.Sprintf("weight %d%%", s.GetWeight()))
	}
	if len(s.GetNodes()) > 0 {
		parts = append(parts, "nodes "+strings.Join(s.GetNodes(), " "))
	}
	switch {
	case s.GetPassedOver() == "" && source == "anycast":
		parts = append(parts, "announces the address")
	case s.GetPassedOver() == "":
		parts = append(parts, "the answer")
	case source == "anycast":
		parts = append(parts, s.GetPassedOver())
	default:
		parts = append(parts, "passed over: "+s.GetPassedOver())
	}
	return strings.Join(parts, ", ")
}
