package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) groupCommand() *cobra.Command {
	return c.noun("group", "Endpoint groups: what one region gets of a listener",
		"  nearcast group create --listener web:443 --region eu-fra-1 --endpoint 10.0.0.1\n  nearcast group list",
		[]string{"groups", "endpoint-group"},
		c.groupCreate(), c.groupGet(), c.groupList(), c.groupUpdate(), c.groupDelete(),
		c.tagCommand("GROUP", "web:443@eu-fra-1", c.completeGroups(), c.groupID),
		c.untagCommand("GROUP", "web:443@eu-fra-1", c.completeGroups(), c.groupID))
}

func (c *cli) groupID(ctx context.Context, s *session, ref string) (string, error) {
	g, err := s.group(ctx, ref)
	return g.GetId(), err
}

// groupFlags are the fields of a group as flags.
type groupFlags struct {
	dial              float32
	check             pb.HealthCheck
	port              uint16
	interval, timeout time.Duration
	overrides         []string
	endpoints         []string
	mode              pb.ClientAddressMode
}

// groupFields maps the flags to the fields that they set.
var groupFields = map[string]string{
	"dial": "traffic_dial", "port-override": "port_overrides", "endpoint": "endpoints",
	"health-protocol": "health_check.protocol", "health-port": "health_check.port",
	"health-path": "health_check.path", "health-interval": "health_check.interval",
	"health-timeout": "health_check.timeout", "healthy-threshold": "health_check.healthy_threshold",
	"unhealthy-threshold": "health_check.unhealthy_threshold", "health-host": "health_check.host",
	"health-codes": "health_check.expected_codes",
}

func (v *groupFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Float32Var(&v.dial, "dial", 100,
		"`percent` of the traffic nearest to this region that it gets; the rest goes on to the next")
	f.StringArrayVar(&v.overrides, "port-override", nil,
		"`LISTENER:ENDPOINT` ports, like 80:8080; may be given several times")
	f.StringArrayVar(&v.endpoints, "endpoint", nil,
		"`ENDPOINT` or ENDPOINT=WEIGHT: an IP address, a DNS name or a target; "+
			"may be given several times")
	enumFlag(cmd, &v.mode, "client-address", "how these endpoints learn the client's address")
	enumFlag(cmd, &v.check.Protocol, "health-protocol", "how endpoints are checked")
	f.Uint16Var(&v.port, "health-port", 0, "where they are checked (default the listener's first port)")
	f.StringVar(&v.check.Path, "health-path", "", "what is asked for, with http and https (default \"/\")")
	f.DurationVar(&v.interval, "health-interval", 0, "how often, 1s to 300s (default 30s)")
	f.DurationVar(&v.timeout, "health-timeout", 0,
		"when a check has failed (default the smaller of 5s and the interval)")
	f.Uint32Var(&v.check.HealthyThreshold, "healthy-threshold", 0,
		"checks to pass before it is healthy, 1 to 10 (default 3)")
	f.Uint32Var(&v.check.UnhealthyThreshold, "unhealthy-threshold", 0,
		"checks to fail before it is not, 1 to 10 (default 3)")
	f.StringVar(&v.check.Host, "health-host", "",
		"Host header and TLS server `name` (default the endpoint's address)")
	f.StringVar(&v.check.ExpectedCodes, "health-codes", "", "`codes` that pass (default \"200-399\")")
}

// group returns what the flags say.
func (v *groupFlags) group(cmd *cobra.Command) (*pb.EndpointGroup, error) {
	g := &pb.EndpointGroup{HealthCheck: &v.check}
	if cmd.Flags().Changed("dial") {
		g.TrafficDial = proto.Float32(v.dial)
	}
	v.check.Port = uint32(v.port)
	if v.interval != 0 {
		v.check.Interval = durationpb.New(v.interval)
	}
	if v.timeout != 0 {
		v.check.Timeout = durationpb.New(v.timeout)
	}
	var err error
	if g.PortOverrides, err = parseOverrides(v.overrides); err != nil {
		return nil, err
	}
	g.Endpoints, err = parseEndpoints(v.endpoints, v.mode)
	return g, err
}

// parseOverrides reads LISTENER:ENDPOINT ports.
func parseOverrides(words []string) (overrides []*pb.PortOverride, err error) {
	for _, w := range words {
		from, to, ok := strings.Cut(w, ":")
		f, err1 := manifest.ParsePort(from)
		t, err2 := manifest.ParsePort(to)
		if !ok || err1 != nil || err2 != nil {
			return nil, usagef("%q is not a port override; write LISTENER:ENDPOINT, like 80:8080", w)
		}
		overrides = append(overrides, &pb.PortOverride{ListenerPort: f, EndpointPort: t})
	}
	return overrides, nil
}

// parseEndpoints reads ENDPOINT or ENDPOINT=WEIGHT words. A name may hold a '=' itself, so only a number
// after the last one is a weight.
func parseEndpoints(words []string, mode pb.ClientAddressMode) (endpoints []*pb.Endpoint, err error) {
	for _, w := range words {
		e := &pb.Endpoint{Id: w, ClientAddress: mode}
		if i := strings.LastIndexByte(w, '='); i >= 0 && strings.Trim(w[i+1:], "0123456789") == "" {
			n, err := strconv.ParseUint(w[i+1:], 10, 8)
			if err != nil || i == 0 {
				return nil, usagef("%q is not an endpoint; write ENDPOINT or ENDPOINT=WEIGHT with a weight of 0 to 255",
					w)
			}
			e.Id, e.Weight = w[:i], proto.Uint32(uint32(n))
		}
		endpoints = append(endpoints, e)
	}
	return endpoints, nil
}

func (c *cli) groupCreate() *cobra.Command {
	var (
		v               groupFlags
		tags            []string
		listener, token string
		region          string
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Add a region to a listener, with its endpoints",
		Example: "  nearcast group create --listener web:443 --region eu-fra-1 --endpoint 10.0.0.1=64\n" +
			"  nearcast group create --listener web --region us-iad-1 --dial 0 --endpoint app.example.com \\\n" +
			"      --health-protocol http --health-path /healthz --health-interval 10s --port-override 80:8080 --wait",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			g, err := v.group(cmd)
			if err != nil {
				return err
			}
			g.Region = region
			if g.Tags, err = parseTags(tags); err != nil {
				return err
			}
			return c.changeGroup(cmd.Context(), func(ctx context.Context, s *session) (*pb.EndpointGroup, error) {
				l, err := s.listener(ctx, listener)
				if err != nil {
					return nil, err
				}
				g.ListenerId = l.GetId()
				return s.CreateEndpointGroup(ctx, &pb.CreateEndpointGroupRequest{Group: g, IdempotencyToken: token})
			})
		},
	}
	cmd.Flags().StringVar(&listener, "listener", "", "id of the `listener`, or ACCELERATOR:PORT")
	cmd.Flags().StringVar(&region, "region", "", "`region` where the endpoints are")
	v.add(cmd)
	cmd.Flags().StringVar(&token, "idempotency-token", "",
		"a `word` of your own: the same create sent again makes no second one")
	addTags(cmd, &tags)
	c.addWait(cmd)
	mustComplete(cmd, "listener", c.completeListeners())
	mustComplete(cmd, "region", c.completeRegions())
	mustComplete(cmd, "endpoint", c.completeTargets())
	return need(cmd, "listener", "region")
}

func (c *cli) groupUpdate() *cobra.Command {
	var (
		v     groupFlags
		rev   uint64
		force bool
	)
	cmd := &cobra.Command{
		Use: "update GROUP", Aliases: []string{"set"}, Short: "Change a group; what is not said stays",
		Long: "Change a group; what is not said stays. --endpoint and --port-override replace the whole list:\n" +
			"to change one endpoint use nearcast endpoint add, set and remove.",
		Example: "  nearcast group update web:443@eu-fra-1 --dial 50 --wait\n" +
			"  nearcast group update 0a1b2c3d4e5f --health-protocol https --health-path /healthz\n" +
			"  nearcast group update web@eu-fra-1 --endpoint 10.0.0.9 --force",
		Args: exactly("GROUP"), ValidArgsFunction: first(c.completeGroups()),
		RunE: func(cmd *cobra.Command, args []string) error {
			mask := changed(cmd, groupFields)
			if len(mask) == 0 {
				return usagef("nothing to change is said")
			}
			g, err := v.group(cmd)
			if err != nil {
				return err
			}
			return c.changeGroup(cmd.Context(), func(ctx context.Context, s *session) (*pb.EndpointGroup, error) {
				if g.Id, err = c.groupID(ctx, s, args[0]); err != nil {
					return nil, err
				}
				return s.UpdateEndpointGroup(ctx, &pb.UpdateEndpointGroupRequest{
					Group: g, UpdateMask: maskOf(mask...), ExpectedRevision: rev, Force: force,
				})
			})
		},
	}
	v.add(cmd)
	addRevision(cmd, &rev)
	addForce(cmd, &force, forceShrink)
	c.addWait(cmd)
	mustComplete(cmd, "endpoint", c.completeTargets())
	return cmd
}

// changeGroup makes a change, waits if that is wanted, and prints what has become of it.
func (c *cli) changeGroup(ctx context.Context, change func(context.Context, *session) (*pb.EndpointGroup,
	error)) error {
	s, err := c.admin()
	if err != nil {
		return err
	}
	g, err := change(ctx, s)
	if err != nil {
		return err
	}
	if c.flags.wait {
		l, err := s.GetListener(ctx, &pb.GetRequest{Id: g.GetListenerId()})
		if err != nil {
			return err
		}
		if err := c.waitDeployed(ctx, s, l.GetAcceleratorId()); err != nil {
			return err
		}
	}
	return c.show(g, func(p *page) { groupLines(p, g) })
}

func groupLines(p *page, g *pb.EndpointGroup) {
	h := g.GetHealthCheck()
	p.line("ID", g.GetId())
	p.line("Listener", g.GetListenerId())
	p.line("Region", g.GetRegion())
	p.line("Traffic dial", dialText(g))
	p.line("Health check", healthCheckText(h))
	var overrides []string
	for _, o := range g.GetPortOverrides() {
		overrides = append(overrides, fmt.Sprintf("%d:%d", o.GetListenerPort(), o.GetEndpointPort()))
	}
	p.line("Port overrides", strings.Join(overrides, " "))
	p.line("Tags", tagsText(g.GetTags()))
	p.heading("Endpoints: %d", len(g.GetEndpoints()))
	if len(g.GetEndpoints()) == 0 {
		return
	}
	table := [][]string{{"ENDPOINT", "WEIGHT", "CLIENT ADDRESS", "HEALTH", "REASON"}}
	for _, e := range g.GetEndpoints() {
		table = append(table, []string{e.GetId(), weightText(e), enumText(e.GetClientAddress()),
			enumText(e.GetHealth()), e.GetHealthReason()})
	}
	p.rows(table)
}

// healthCheckText is a health check in one line.
func healthCheckText(h *pb.HealthCheck) string {
	words := []string{enumText(h.GetProtocol())}
	if h.GetPort() != 0 {
		words = append(words, "port "+countText(h.GetPort()))
	}
	if h.GetProtocol() == pb.HealthProtocol_HEALTH_PROTOCOL_HTTP ||
		h.GetProtocol() == pb.HealthProtocol_HEALTH_PROTOCOL_HTTPS {
		words = append(words, h.GetPath())
		if h.GetHost() != "" {
			words = append(words, "host "+h.GetHost())
		}
		words = append(words, "expecting "+h.GetExpectedCodes())
	}
	words = append(words, "every "+durationText(h.GetInterval()), "timeout "+durationText(h.GetTimeout()),
		fmt.Sprintf("up after %d, down after %d", h.GetHealthyThreshold(), h.GetUnhealthyThreshold()))
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), ", ")
}

func dialText(g *pb.EndpointGroup) string {
	if g.TrafficDial == nil {
		return "100%"
	}
	return strconv.FormatFloat(float64(g.GetTrafficDial()), 'g', -1, 32) + "%"
}

func weightText(e *pb.Endpoint) string {
	if e.Weight == nil {
		return "128"
	}
	return fmt.Sprint(e.GetWeight())
}

func countText(n uint32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func (c *cli) groupGet() *cobra.Command {
	return &cobra.Command{
		Use: "get GROUP", Aliases: []string{"show"}, Short: "Show a group and its endpoints",
		Example: "  nearcast group get web:443@eu-fra-1\n  nearcast group get 0a1b2c3d4e5f -o json",
		Args:    exactly("GROUP"), ValidArgsFunction: first(c.completeGroups()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			g, err := s.group(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.show(g, func(p *page) { groupLines(p, g) })
		},
	}
}

func (c *cli) groupList() *cobra.Command {
	var listener string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List groups, of one listener or of all",
		Example: "  nearcast group list\n  nearcast group list --listener web:443",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			parent := ""
			if listener != "" {
				if parent, err = c.listenerID(cmd.Context(), s, listener); err != nil {
					return err
				}
			}
			labels, all, err := s.labelled(cmd.Context(), parent)
			if err != nil {
				return err
			}
			type col = column[*pb.EndpointGroup]
			return showList(c, "groups", all,
				col{"ID", (*pb.EndpointGroup).GetId},
				col{"LISTENER", func(g *pb.EndpointGroup) string { return labels[g.GetListenerId()] }},
				col{"REGION", (*pb.EndpointGroup).GetRegion},
				col{"DIAL", dialText},
				col{"ENDPOINTS", func(g *pb.EndpointGroup) string { return fmt.Sprint(len(g.GetEndpoints())) }},
				col{"HEALTHY", healthyText})
		},
	}
	cmd.Flags().StringVar(&listener, "listener", "", "only of this `listener`, by id or ACCELERATOR:PORT")
	mustComplete(cmd, "listener", c.completeListeners())
	return cmd
}

func healthyText(g *pb.EndpointGroup) string {
	n := 0
	for _, e := range g.GetEndpoints() {
		if e.GetHealth() == pb.HealthState_HEALTH_STATE_HEALTHY {
			n++
		}
	}
	return fmt.Sprint(n)
}

func (c *cli) groupDelete() *cobra.Command {
	var rev uint64
	cmd := &cobra.Command{
		Use: "delete GROUP", Aliases: []string{"rm"}, Short: "Delete a group with its endpoints",
		Example: "  nearcast group delete web:443@us-iad-1\n  nearcast group delete 0a1b2c3d4e5f --yes",
		Args:    exactly("GROUP"), ValidArgsFunction: first(c.completeGroups()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			g, err := s.group(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.confirm("Delete group %s (%s, %s)?", g.GetId(), g.GetRegion(),
				plural(len(g.GetEndpoints()), "endpoint")); err != nil {
				return err
			}
			_, err = s.DeleteEndpointGroup(cmd.Context(), &pb.DeleteRequest{Id: g.GetId(), ExpectedRevision: rev})
			return c.done(err, "deleted group %s", g.GetId())
		},
	}
	addRevision(cmd, &rev)
	c.addYes(cmd)
	return cmd
}
