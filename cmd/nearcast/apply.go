package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) applyCommand() *cobra.Command {
	var v applyFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make the cluster what a file says",
		Long: `Make the cluster what a YAML file says: accelerators with their listeners, groups and endpoints,
pools, sites with their BGP sessions, regions, targets, DNS zones and steering. Applying the same file
again changes nothing.

What the file does not name is left alone. With --prune, listeners, groups and endpoints that are below
an accelerator of the file, in a list that the file has, and are not in it are deleted, and so are peers
of a site of the file; nothing else is ever deleted. A step that would leave fewer than half of a group's
endpoints or of a zone's names, or an enabled accelerator without an active edge, is refused without
--force.

A field that is left out has its default, except tags, pools, addresses, a site's bgp, all of a zone, and
lists of listeners, groups, endpoints and peers, which are then not touched. "bgp: none" takes BGP away.

A peer's password is given by password or by password_file (a path beside the file). Nobody is told
passwords: export writes "password_set: true" instead, which keeps the one that is there. Whether a
password that the file gives differs from it shows when it is applied. Zones' keys are not exported.

  regions:
    - {name: eu-fra-1, description: Frankfurt}
  sites:
    - name: fra
      region: eu-fra-1
      latitude: 50.11
      longitude: 8.68
      bgp: {local_asn: 64500}
      peers:
        - {name: transit, address: 192.0.2.1, asn: 64496, password_file: transit.secret, bfd: true}
  steering: {ttl: 20s, networks: [{prefix: 10.0.0.0/8, site: fra}]}
  zones:
    - name: example.com
      text: |
        mail IN A 192.0.2.25
      aliases: [{name: www, accelerator: web}]
      dnssec: true
  pools:
    - {name: anycast-a, zone: a, prefixes: [192.0.2.0/24]}
    - {name: anycast-b, zone: b, prefixes: [198.51.100.0/24]}
  accelerators:
    - name: web
      listeners:
        - ports: [443, 8000-8999]
          groups:
            - region: eu-fra-1
              health_check: {protocol: http, port: 8080, path: /healthz, interval: 10s}
              endpoints:
                - 10.0.0.1
                - {id: 10.0.0.2, weight: 64, client_address: proxy_v2}`,
		Example: "  nearcast apply -f nearcast.yaml --dry-run\n" +
			"  nearcast apply -f nearcast.yaml --prune --wait\n" +
			"  nearcast export web | sed s/10.0.0.1/10.0.0.9/ | nearcast apply -f - --prune",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.apply(cmd.Context(), v) },
	}
	f := cmd.Flags()
	f.StringVarP(&v.file, "filename", "f", "", "`file` to apply; - is stdin")
	f.BoolVar(&v.dryRun, "dry-run", false, "only show what would change")
	f.BoolVar(&v.exitCode, "exit-code", false, "with --dry-run: exit with 3 if something would change")
	f.BoolVar(&v.prune, "prune", false, "delete what is below accelerators and sites of the file and not in it")
	addForce(cmd, &v.force, forceShrink+", or "+forceServed)
	c.addYes(cmd)
	c.addWait(cmd)
	return need(cmd, "filename")
}

type applyFlags struct {
	file                    string
	dryRun, exitCode, prune bool
	force                   bool
}

func (c *cli) apply(ctx context.Context, v applyFlags) error {
	f, err := c.readManifest(v.file)
	if err != nil {
		return err
	}
	s, err := c.admin()
	if err != nil {
		return err
	}
	state, err := s.state(ctx, f)
	if err != nil {
		return err
	}
	plan, err := manifest.Compare(f, state, manifest.Options{Prune: v.prune})
	if err != nil {
		return manifestError(v.file, err)
	}
	for _, left := range plan.Left {
		c.note("not in the file, left alone: %s (--prune would delete it)", left)
	}
	if v.dryRun {
		return c.showPlan(plan, v.exitCode)
	}
	if err := c.confirmPlan(plan); err != nil {
		return err
	}
	for i, step := range plan.Steps {
		if err := s.execute(ctx, step, v.force); err != nil {
			return &stepError{step, i, len(plan.Steps), err}
		}
		if c.flags.output == "table" && !step.Maybe {
			c.note("%sd %s %s", step.Verb, step.Kind, step.Name)
		}
	}
	planned := len(plan.Steps)
	plan.Steps = slices.DeleteFunc(plan.Steps, func(s *manifest.Step) bool { return s.Maybe })
	plan.Unchanged += planned - len(plan.Steps)
	if c.flags.wait {
		var ids []string
		for _, a := range plan.Accelerators {
			ids = append(ids, a.ID)
		}
		if err := c.waitDeployed(ctx, s, ids...); err != nil {
			return err
		}
	}
	if c.flags.output != "table" {
		return c.showPlan(plan, false)
	}
	_, err = fmt.Fprintln(c.stdout, summary(plan, "created", "changed", "deleted"))
	return err
}

func (c *cli) readManifest(path string) (*manifest.File, error) {
	in := c.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, manifest.BytesMax+1))
	if err != nil {
		return nil, err
	}
	f, err := manifest.Parse(text)
	if err == nil {
		err = f.ReadSecrets(func(name string) ([]byte, error) { return readSecret(path, name) })
	}
	if err != nil {
		return nil, manifestError(path, err)
	}
	return f, nil
}

// secretBytesMax is more than any password that is possible has.
const secretBytesMax = 4096

// readSecret reads a file that a manifest names, by a path from where the manifest is; that of stdin is here.
func readSecret(manifest, name string) ([]byte, error) {
	if !filepath.IsAbs(name) && manifest != "-" {
		name = filepath.Join(filepath.Dir(manifest), name)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, secretBytesMax))
}

// manifestError gives each field that is wrong a line.
func manifestError(path string, err error) error {
	if path == "-" {
		path = "stdin"
	}
	var fields model.FieldErrors
	if !errors.As(err, &fields) {
		return fmt.Errorf("%s: %w", path, err)
	}
	text := path + " cannot be applied, and nothing was changed:"
	for _, f := range fields {
		text += "\n  " + f.Error()
	}
	return errors.New(text)
}

// stepError is a step of a plan that failed after others had been done.
type stepError struct {
	step     *manifest.Step
	done, of int
	error
}

func (e *stepError) Unwrap() error { return e.error }

// state reads all that a file can name; of zones and of what is about announcements and steering only what
// f speaks of, if f is not nil.
func (s *session) state(ctx context.Context, f *manifest.File) (*manifest.State, error) {
	var st manifest.State
	var err error
	read := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	read(func() (err error) { st.Regions, err = s.regions(ctx); return err })
	read(func() (err error) { st.Sites, err = s.sites(ctx); return err })
	read(func() (err error) { st.Pools, err = s.pools(ctx); return err })
	read(func() (err error) { st.Targets, err = s.targets(ctx); return err })
	read(func() (err error) { st.Accelerators, err = s.accelerators(ctx); return err })
	read(func() (err error) { st.Listeners, err = s.listeners(ctx, ""); return err })
	read(func() (err error) { st.Groups, err = s.groups(ctx, ""); return err })
	if f == nil || len(f.Sites) > 0 {
		read(func() (err error) { st.Peers, err = s.peers(ctx); return err })
	}
	if f == nil || f.Steering != nil {
		read(func() (err error) { st.Steering, err = s.GetSteering(ctx, &emptypb.Empty{}); return err })
	}
	if f == nil || len(f.Zones) > 0 {
		read(func() (err error) { st.Zones, err = s.zonesWithText(ctx, f); return err })
	}
	return &st, err
}

// zonesWithText reads the zones that a file names, or all with nil: a list is without their text.
func (s *session) zonesWithText(ctx context.Context, f *manifest.File) (zones []*pb.Zone, err error) {
	all, err := s.zones(ctx)
	if err != nil {
		return nil, err
	}
	for _, z := range all {
		if f != nil && !slices.ContainsFunc(f.Zones, func(n manifest.Zone) bool {
			return manifest.ZoneKey(n.Name) == z.GetName()
		}) {
			continue
		}
		if z, err = s.GetZone(ctx, &pb.GetRequest{Id: z.GetName()}); err != nil {
			return nil, err
		}
		zones = append(zones, z)
	}
	return zones, nil
}

// execute makes the call of a step. force overrides the controller's guards.
func (s *session) execute(ctx context.Context, step *manifest.Step, force bool) error {
	switch step.Verb {
	case manifest.Create:
		return s.executeCreate(ctx, step)
	case manifest.Update:
		return s.executeUpdate(ctx, step, force)
	}
	var err error
	req := &pb.DeleteRequest{Id: step.Self.ID}
	switch step.Kind {
	case manifest.KindGroup:
		_, err = s.DeleteEndpointGroup(ctx, req)
	case manifest.KindListener:
		_, err = s.DeleteListener(ctx, req)
	case manifest.KindPeer:
		_, err = s.DeleteBgpPeer(ctx, req)
	default:
		err = fmt.Errorf("a %s is never deleted by apply", step.Kind)
	}
	return err
}

func (s *session) executeCreate(ctx context.Context, step *manifest.Step) (err error) {
	switch o := proto.Clone(step.Object).(type) {
	case *pb.Region:
		_, err = s.CreateRegion(ctx, &pb.CreateRegionRequest{Region: o})
	case *pb.Site:
		_, err = s.CreateSite(ctx, &pb.CreateSiteRequest{Site: o})
	case *pb.Pool:
		_, err = s.CreatePool(ctx, &pb.CreatePoolRequest{Pool: o})
	case *pb.Target:
		_, err = s.CreateTarget(ctx, &pb.CreateTargetRequest{Target: o})
	case *pb.Accelerator:
		var made *pb.Accelerator
		made, err = s.CreateAccelerator(ctx, &pb.CreateAcceleratorRequest{Accelerator: o})
		step.Self.ID = made.GetId()
	case *pb.Listener:
		var made *pb.Listener
		o.AcceleratorId = step.Parent.ID
		made, err = s.CreateListener(ctx, &pb.CreateListenerRequest{Listener: o})
		step.Self.ID = made.GetId()
	case *pb.EndpointGroup:
		var made *pb.EndpointGroup
		o.ListenerId = step.Parent.ID
		made, err = s.CreateEndpointGroup(ctx, &pb.CreateEndpointGroupRequest{Group: o})
		step.Self.ID = made.GetId()
	case *pb.BgpPeer:
		_, err = s.CreateBgpPeer(ctx, &pb.CreateBgpPeerRequest{Peer: o})
	case *pb.Zone:
		_, err = s.CreateZone(ctx, &pb.CreateZoneRequest{Zone: withAliases(o, step)})
	}
	return err
}

// withAliases fills the ids of a zone's accelerators, which exist now.
func withAliases(z *pb.Zone, step *manifest.Step) *pb.Zone {
	for i, a := range z.GetAliases() {
		a.AcceleratorId = step.Aliases[i].ID
	}
	return z
}

func (s *session) executeUpdate(ctx context.Context, step *manifest.Step, force bool) (err error) {
	mask, rev := maskOf(step.Mask...), step.Revision
	switch o := proto.Clone(step.Object).(type) {
	case *pb.Site:
		_, err = s.UpdateSite(ctx, &pb.UpdateSiteRequest{Site: o, UpdateMask: mask, ExpectedRevision: rev})
	case *pb.Pool:
		_, err = s.UpdatePool(ctx,
			&pb.UpdatePoolRequest{Pool: o, UpdateMask: mask, ExpectedRevision: rev, Force: force})
	case *pb.Target:
		_, err = s.UpdateTarget(ctx, &pb.UpdateTargetRequest{Target: o, UpdateMask: mask, ExpectedRevision: rev})
	case *pb.Accelerator:
		o.Id = step.Self.ID
		_, err = s.UpdateAccelerator(ctx,
			&pb.UpdateAcceleratorRequest{Accelerator: o, UpdateMask: mask, ExpectedRevision: rev})
	case *pb.Listener:
		o.Id = step.Self.ID
		_, err = s.UpdateListener(ctx, &pb.UpdateListenerRequest{Listener: o, UpdateMask: mask,
			ExpectedRevision: rev})
	case *pb.EndpointGroup:
		o.Id = step.Self.ID
		_, err = s.UpdateEndpointGroup(ctx,
			&pb.UpdateEndpointGroupRequest{Group: o, UpdateMask: mask, ExpectedRevision: rev, Force: force})
	case *pb.BgpPeer:
		var made *pb.BgpPeer
		o.Id = step.Self.ID
		made, err = s.UpdateBgpPeer(ctx, &pb.UpdateBgpPeerRequest{Peer: o, UpdateMask: mask, ExpectedRevision: rev})
		step.Maybe = step.Maybe && err == nil && made.GetRevision() == rev // then it was that password already
	case *pb.Zone:
		_, err = s.UpdateZone(ctx, &pb.UpdateZoneRequest{
			Zone: withAliases(o, step), UpdateMask: mask, ExpectedRevision: rev, Force: force,
		})
	case *pb.Steering:
		_, err = s.UpdateSteering(ctx,
			&pb.UpdateSteeringRequest{Steering: o, UpdateMask: mask, ExpectedRevision: rev})
	}
	return err
}

// confirmPlan asks before anything is deleted.
func (c *cli) confirmPlan(plan *manifest.Plan) error {
	var doomed []string
	for _, s := range plan.Steps {
		if s.Verb == manifest.Delete {
			doomed = append(doomed, string(s.Kind)+" "+s.Name)
		}
		for _, ch := range s.Changes {
			if s.Verb == manifest.Update && ch.To == "" && (ch.Field == "bgp" ||
				strings.HasPrefix(ch.Field, "endpoints[") || strings.HasPrefix(ch.Field, "aliases[")) {
				doomed = append(doomed, ch.Field+" of "+s.Name)
			}
		}
	}
	if len(doomed) == 0 {
		return nil
	}
	return c.confirm("This deletes %s. Go on?", few(doomed))
}

// showPlan prints what a plan does (or has done).
func (c *cli) showPlan(plan *manifest.Plan, exitCode bool) error {
	type change struct {
		Field string `json:"field"`
		From  string `json:"from"`
		To    string `json:"to"`
	}
	type shown struct {
		Verb    string   `json:"verb"`
		Kind    string   `json:"kind"`
		Name    string   `json:"name"`
		ID      string   `json:"id"`
		Changes []change `json:"changes"`
	}
	if c.flags.output == "table" {
		if _, err := io.WriteString(c.stdout, planText(plan)); err != nil {
			return err
		}
	} else {
		steps := []shown{}
		for _, s := range plan.Steps {
			one := shown{string(s.Verb), string(s.Kind), s.Name, s.Self.ID, []change{}}
			for _, ch := range s.Changes {
				one.Changes = append(one.Changes, change(ch))
			}
			steps = append(steps, one)
		}
		if err := c.data(steps); err != nil {
			return err
		}
	}
	certain := func(s *manifest.Step) bool { return !s.Maybe }
	if exitCode && slices.ContainsFunc(plan.Steps, certain) {
		return exitError{exitDiffers}
	}
	return nil
}

// planText is a plan for people.
func planText(plan *manifest.Plan) string {
	var out strings.Builder
	sign := map[manifest.Verb]string{manifest.Create: "+", manifest.Update: "~", manifest.Delete: "-"}
	for _, s := range plan.Steps {
		fmt.Fprintf(&out, "%s %s %s\n", sign[s.Verb], s.Kind, printable(s.Name))
		var lines [][]string
		for _, ch := range s.Changes {
			text := ch.To
			switch {
			case s.Verb == manifest.Update && ch.From == "":
				text = "+ " + ch.To
			case s.Verb == manifest.Update && ch.To == "":
				text = "- " + ch.From
			case s.Verb == manifest.Update:
				text = ch.From + " → " + ch.To
			}
			lines = append(lines, []string{ch.Field, text})
		}
		_ = writeRows(&out, lines, "    ", 0) // a Builder takes everything
	}
	out.WriteString(summary(plan, "to create", "to change", "to delete") + "\n")
	return out.String()
}

func summary(plan *manifest.Plan, created, updated, deleted string) string {
	count := map[manifest.Verb]int{}
	maybe := 0
	for _, s := range plan.Steps {
		if s.Maybe {
			maybe++
		} else {
			count[s.Verb]++
		}
	}
	text := fmt.Sprintf("%d %s, %d %s, %d %s, %d unchanged", count[manifest.Create], created,
		count[manifest.Update], updated, count[manifest.Delete], deleted, plan.Unchanged)
	if maybe > 0 {
		text += fmt.Sprintf(", %d unchanged if that is the password already", maybe)
	}
	return text
}

func (c *cli) exportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "export [ACCELERATOR…]", Short: "Print the file that apply reads, of what is there",
		Long: "Print the YAML file that apply reads, of what is there: everything, or certain accelerators.\n" +
			"To apply it changes nothing. Passwords of peers and keys of zones stay where they are: neither is in it.",
		Example: "  nearcast export > nearcast.yaml\n  nearcast export web",
		Args:    cobra.ArbitraryArgs, ValidArgsFunction: c.completeAccelerators(),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			state, err := s.state(cmd.Context(), nil)
			if err != nil {
				return err
			}
			for i, ref := range args {
				a, err := pick("accelerator", ref, state.Accelerators, (*pb.Accelerator).GetId, (*pb.Accelerator).GetName)
				if err != nil {
					return err
				}
				args[i] = a.GetId()
			}
			text, err := manifest.FromState(state, args...).Marshal()
			if err != nil {
				return err
			}
			head := fmt.Sprintf("# %s, %s\n", orAny(clusterOf(s.target)), c.now().UTC().Format(time.RFC3339))
			_, err = c.stdout.Write(slices.Concat([]byte(head), text))
			return err
		},
	}
}
