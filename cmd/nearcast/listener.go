package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) listenerCommand() *cobra.Command {
	return c.noun("listener", "Ports of an accelerator that take traffic",
		"  nearcast listener create --accelerator web --ports 80,443\n  nearcast listener list",
		[]string{"listeners"},
		c.listenerCreate(), c.listenerGet(), c.listenerList(), c.listenerUpdate(), c.listenerDelete(),
		c.tagCommand("LISTENER", "web:443", c.completeListeners(), c.listenerID),
		c.untagCommand("LISTENER", "web:443", c.completeListeners(), c.listenerID))
}

func (c *cli) listenerID(ctx context.Context, s *session, ref string) (string, error) {
	l, err := s.listener(ctx, ref)
	return l.GetId(), err
}

// listenerFlags are the fields of a listener as flags.
type listenerFlags struct {
	l        pb.Listener
	ports    []string
	tcp, udp time.Duration
	guard    pb.Guard
	rates    struct{ source, total, syn string }
}

// fields maps the flags to the fields that they set.
var listenerFields = map[string]string{
	"ports": "port_ranges", "protocol": "protocol", "affinity": "affinity",
	"tcp-idle-timeout": "tcp_idle_timeout", "udp-idle-timeout": "udp_idle_timeout",
	"proxy-protocol-from": "proxy_protocol_from", "max-flows": "max_flows",
	"max-flows-per-source": "max_flows_per_source",
	"allow-from":           "guard.allow_networks", "deny-from": "guard.deny_networks",
	"source-rate": "guard.source_rate", "total-rate": "guard.total_rate", "syn-cookies-above": "guard.syn_rate",
	"allow-countries": "guard.allow_countries", "deny-countries": "guard.deny_countries",
	"drop-fragments": "guard.drop_fragments", "max-amplification": "guard.max_amplification",
}

func (v *listenerFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&v.ports, "ports", nil, "`ports` and ranges, like 80,443,8000-8999")
	enumFlag(cmd, &v.l.Protocol, "protocol", "what it takes")
	enumFlag(cmd, &v.l.Affinity, "affinity",
		"which flows go to one endpoint: source_ip keeps a client with its own")
	f.DurationVar(&v.tcp, "tcp-idle-timeout", 0, "when an idle TCP flow ends, 1s to 24h (default 340s)")
	f.DurationVar(&v.udp, "udp-idle-timeout", 0, "when an idle UDP flow ends, 1s to 1h (default 30s)")
	f.StringSliceVar(&v.l.ProxyProtocolFrom, "proxy-protocol-from", nil,
		"`networks` whose connections begin with a PROXY protocol header that is believed")
	f.Uint32Var(&v.l.MaxFlows, "max-flows", 0, "most concurrent flows on a node; 0 is the node's limit")
	f.Uint32Var(&v.l.MaxFlowsPerSource, "max-flows-per-source", 0,
		"the same for one source address; 0 is a quarter")
	v.addGuard(f)
}

// addGuard adds what the listener lets in.
func (v *listenerFlags) addGuard(f *pflag.FlagSet) {
	f.StringSliceVar(&v.guard.AllowNetworks, "allow-from", nil, "drop what is not from these `networks`; '' is any")
	f.StringSliceVar(&v.guard.DenyNetworks, "deny-from", nil, "drop what is from these `networks`; '' is none")
	f.StringSliceVar(&v.guard.AllowCountries, "allow-countries", nil,
		"drop what is neither from these countries (`codes` of ISO 3166-1, like DE,AT) nor --allow-from; '' is any")
	f.StringSliceVar(&v.guard.DenyCountries, "deny-countries", nil,
		"drop what is from these countries (`codes`) and not --allow-from; '' is none")
	const rate = "; `RATE[/BURST]`, 0 is no limit"
	f.StringVar(&v.rates.source, "source-rate", "", "most new flows and UDP packets a second of one source, on a node"+rate)
	f.StringVar(&v.rates.total, "total-rate", "", "the same of all sources"+rate)
	f.StringVar(&v.rates.syn, "syn-cookies-above", "", "new flows a second beyond which SYN cookies are handed out"+rate)
	f.BoolVar(&v.guard.DropFragments, "drop-fragments", false, "drop fragments of packets")
	f.Uint32Var(&v.guard.MaxAmplification, "max-amplification", 0,
		"UDP: most bytes to a source that has not proved itself for each byte from it; 0 is no limit")
}

// fillGuard takes over what the flags say.
func (v *listenerFlags) fillGuard() error {
	for _, r := range []struct {
		flag, text string
		to         **pb.GuardRate
	}{
		{"source-rate", v.rates.source, &v.guard.SourceRate}, {"total-rate", v.rates.total, &v.guard.TotalRate},
		{"syn-cookies-above", v.rates.syn, &v.guard.SynRate},
	} {
		rate, err := manifest.ParseRate(r.text)
		if err != nil {
			return usagef("--%s: %v", r.flag, err)
		}
		*r.to = rate
	}
	if !proto.Equal(&v.guard, &pb.Guard{}) {
		v.l.Guard = &v.guard
	}
	return nil
}

// listener returns what the flags say.
func (v *listenerFlags) listener() (*pb.Listener, error) {
	if len(v.ports) > 0 {
		ranges, err := manifest.ParsePorts(strings.Join(v.ports, ","))
		if err != nil {
			return nil, usageError{err}
		}
		v.l.PortRanges = ranges
	}
	if err := v.fillGuard(); err != nil {
		return nil, err
	}
	if v.tcp != 0 {
		v.l.TcpIdleTimeout = durationpb.New(v.tcp)
	}
	if v.udp != 0 {
		v.l.UdpIdleTimeout = durationpb.New(v.udp)
	}
	return &v.l, nil
}

func (c *cli) listenerCreate() *cobra.Command {
	var (
		v                  listenerFlags
		tags               []string
		accelerator, token string
	)
	v.l.Protocol = pb.Protocol_PROTOCOL_TCP
	cmd := &cobra.Command{
		Use: "create", Short: "Add a listener to an accelerator",
		Example: "  nearcast listener create --accelerator web --ports 80,443\n" +
			"  nearcast listener create --accelerator game --protocol udp --ports 27000-27100 --wait\n" +
			"  nearcast listener create --accelerator db --ports 5432 --allow-from 203.0.113.0/24 --source-rate 5/20",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := v.listener()
			if err != nil {
				return err
			}
			if l.Tags, err = parseTags(tags); err != nil {
				return err
			}
			return c.changeListener(cmd.Context(), func(ctx context.Context, s *session) (*pb.Listener, error) {
				a, err := s.accelerator(ctx, accelerator)
				if err != nil {
					return nil, err
				}
				l.AcceleratorId = a.GetId()
				return s.CreateListener(ctx, &pb.CreateListenerRequest{Listener: l, IdempotencyToken: token})
			})
		},
	}
	cmd.Flags().StringVar(&accelerator, "accelerator", "", "`name` or id of the accelerator")
	v.add(cmd)
	cmd.Flags().StringVar(&token, "idempotency-token", "",
		"a `word` of your own: the same create sent again makes no second one")
	addTags(cmd, &tags)
	c.addWait(cmd)
	mustComplete(cmd, "accelerator", c.completeAccelerators())
	return need(cmd, "accelerator", "ports")
}

func (c *cli) listenerUpdate() *cobra.Command {
	var (
		v   listenerFlags
		rev uint64
	)
	cmd := &cobra.Command{
		Use: "update LISTENER", Aliases: []string{"set"}, Short: "Change a listener; what is not said stays",
		Example: "  nearcast listener update web:443 --ports 443,8443\n" +
			"  nearcast listener update web:443 --tcp-idle-timeout 1h --wait\n" +
			"  nearcast listener update web:443 --deny-countries KP,RU\n" +
			"  nearcast listener update web:443 --allow-countries DE,AT,CH --allow-from 203.0.113.0/24",
		Args: exactly("LISTENER"), ValidArgsFunction: first(c.completeListeners()),
		RunE: func(cmd *cobra.Command, args []string) error {
			mask := changed(cmd, listenerFields)
			if len(mask) == 0 {
				return usagef("nothing to change is said")
			}
			l, err := v.listener()
			if err != nil {
				return err
			}
			return c.changeListener(cmd.Context(), func(ctx context.Context, s *session) (*pb.Listener, error) {
				found, err := s.listener(ctx, args[0])
				if err != nil {
					return nil, err
				}
				l.Id = found.GetId()
				return s.UpdateListener(ctx, &pb.UpdateListenerRequest{
					Listener: l, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}, ExpectedRevision: rev,
				})
			})
		},
	}
	v.add(cmd)
	addRevision(cmd, &rev)
	c.addWait(cmd)
	return cmd
}

// changeListener makes a change, waits if that is wanted, and prints what has become of it.
func (c *cli) changeListener(ctx context.Context, change func(context.Context, *session) (*pb.Listener,
	error)) error {
	s, err := c.admin()
	if err != nil {
		return err
	}
	l, err := change(ctx, s)
	if err != nil {
		return err
	}
	if c.flags.wait {
		if err := c.waitDeployed(ctx, s, l.GetAcceleratorId()); err != nil {
			return err
		}
	}
	return c.show(l, func(p *page) { listenerLines(p, l) })
}

func listenerLines(p *page, l *pb.Listener) {
	p.line("ID", l.GetId())
	p.line("Accelerator", l.GetAcceleratorId())
	p.line("Protocol", enumText(l.GetProtocol()))
	p.line("Ports", portsText(l.GetPortRanges()))
	p.line("Affinity", enumText(l.GetAffinity()))
	p.line("TCP idle timeout", durationText(l.GetTcpIdleTimeout()))
	p.line("UDP idle timeout", durationText(l.GetUdpIdleTimeout()))
	p.line("PROXY protocol from", strings.Join(l.GetProxyProtocolFrom(), ", "))
	p.line("Max flows", countText(l.GetMaxFlows()))
	p.line("Max flows per source", countText(l.GetMaxFlowsPerSource()))
	p.line("Guard", manifest.GuardText(l.GetGuard()))
	p.line("Tags", tagsText(l.GetTags()))
}

func (c *cli) listenerGet() *cobra.Command {
	return &cobra.Command{
		Use: "get LISTENER", Aliases: []string{"show"}, Short: "Show a listener and its groups",
		Example: "  nearcast listener get web:443\n  nearcast listener get 4fd0ab12 -o yaml",
		Args:    exactly("LISTENER"), ValidArgsFunction: first(c.completeListeners()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			l, err := s.listener(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			groups, err := s.groups(cmd.Context(), l.GetId())
			if err != nil {
				return err
			}
			return c.show(l, func(p *page) {
				listenerLines(p, l)
				p.heading("Groups: %d", len(groups))
				if len(groups) > 0 {
					p.rows(endpointRows(groups))
				}
			})
		},
	}
}

func (c *cli) listenerList() *cobra.Command {
	var accelerator string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List listeners, of one accelerator or of all",
		Example: "  nearcast listener list\n  nearcast listener list --accelerator web",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			names, all, err := s.named(cmd.Context())
			if err != nil {
				return err
			}
			if accelerator != "" {
				a, err := s.accelerator(cmd.Context(), accelerator)
				if err != nil {
					return err
				}
				all = filter(all, func(l *pb.Listener) bool { return l.GetAcceleratorId() == a.GetId() })
			}
			type col = column[*pb.Listener]
			return showList(c, "listeners", all,
				col{"ID", (*pb.Listener).GetId},
				col{"ACCELERATOR", func(l *pb.Listener) string { return names[l.GetAcceleratorId()].GetName() }},
				col{"PROTOCOL", func(l *pb.Listener) string { return enumText(l.GetProtocol()) }},
				col{"PORTS", func(l *pb.Listener) string { return portsText(l.GetPortRanges()) }},
				col{"AFFINITY", func(l *pb.Listener) string { return enumText(l.GetAffinity()) }})
		},
	}
	cmd.Flags().StringVar(&accelerator, "accelerator", "", "only of this one, by `name` or id")
	mustComplete(cmd, "accelerator", c.completeAccelerators())
	return cmd
}

func (c *cli) listenerDelete() *cobra.Command {
	var (
		cascade bool
		rev     uint64
	)
	cmd := &cobra.Command{
		Use: "delete LISTENER", Aliases: []string{"rm"}, Short: "Delete a listener",
		Example: "  nearcast listener delete web:443\n  nearcast listener delete 4fd0ab12 --cascade --yes",
		Args:    exactly("LISTENER"), ValidArgsFunction: first(c.completeListeners()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			l, err := s.listener(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			with := ""
			if cascade {
				with = " with its groups"
			}
			if err := c.confirm("Delete listener %s (%s %s)%s?", l.GetId(), enumText(l.GetProtocol()),
				portsText(l.GetPortRanges()), with); err != nil {
				return err
			}
			if cascade {
				return c.deleteListener(cmd.Context(), s, l, args[0])
			}
			_, err = s.DeleteListener(cmd.Context(), &pb.DeleteRequest{Id: l.GetId(), ExpectedRevision: rev})
			return c.done(err, "deleted listener %s", l.GetId())
		},
	}
	cmd.Flags().BoolVar(&cascade, "cascade", false, "delete its groups first")
	addRevision(cmd, &rev)
	c.addYes(cmd)
	return cmd
}
