package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) siteCommand() *cobra.Command {
	type col = column[*pb.Site]
	return c.noun("site", "Nodes in one place", "  nearcast site create fra --region eu-fra-1 --at 50.11,8.68",
		[]string{"sites"},
		c.siteChange("create NAME", "Create a site; its region comes with it if it is new", true),
		getCommand(c, "SITE", "nearcast site get fra", c.completeSites(),
			func(ctx context.Context, s *session, name string) (*pb.Site, error) {
				return s.GetSite(ctx, &pb.GetRequest{Id: name})
			}, c.showSite),
		listCommand(c, "List the sites", "nearcast site list", (*session).sites, func(all []*pb.Site) error {
			return showList(c, "sites", all, col{"NAME", (*pb.Site).GetName},
				col{"REGION", (*pb.Site).GetRegion}, col{"PLACE", placeText})
		}),
		c.siteChange("update SITE", "Change a site's region or place", false),
		c.deleteCommand("SITE", "Delete a site that has no nodes", "nearcast site delete old",
			c.completeSites(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteSite(ctx, r)
				return err
			}))
}

func placeText(s *pb.Site) string { return fmt.Sprintf("%g,%g", s.GetLatitude(), s.GetLongitude()) }

func (c *cli) showSite(s *pb.Site) error {
	return c.show(s, func(p *page) {
		p.line("Name", s.GetName())
		p.line("Region", s.GetRegion())
		p.line("Place", placeText(s))
		bgpLines(p, s.GetBgp())
	})
}

// siteChange makes "create" and "update".
func (c *cli) siteChange(use, short string, create bool) *cobra.Command {
	var (
		site pb.Site
		bgp  siteBGP
		at   string
		rev  uint64
	)
	verb, _, _ := strings.Cut(use, " ")
	cmd := &cobra.Command{
		Use: use, Short: short, Example: "  nearcast site " + verb + " fra --region eu-fra-1 --at 50.11,8.68",
		Args: exactly(use[len(verb)+1:]),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			site.Name = args[0]
			if at != "" {
				if site.Latitude, site.Longitude, err = parsePlace(at); err != nil {
					return err
				}
			}
			if site.Bgp, err = bgp.of(cmd); err != nil {
				return err
			}
			mask := append(changed(cmd, map[string]string{"region": "region", "at": "latitude"}),
				changed(cmd, siteBGPFlags)...)
			if cmd.Flags().Changed("at") {
				mask = append(mask, "longitude")
			}
			if !create && len(mask) == 0 {
				return usagef("nothing to change is said; use --region, --at or --asn")
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			var made *pb.Site
			if create {
				made, err = s.CreateSite(cmd.Context(), &pb.CreateSiteRequest{Site: &site})
			} else {
				made, err = s.UpdateSite(cmd.Context(), &pb.UpdateSiteRequest{
					Site: &site, UpdateMask: maskOf(mask...), ExpectedRevision: rev,
				})
			}
			if err != nil {
				return err
			}
			return c.showSite(made)
		},
	}
	cmd.Flags().StringVar(&site.Region, "region", "", "`region` that its gateways serve")
	cmd.Flags().StringVar(&at, "at", "", "`LATITUDE,LONGITUDE` in degrees, north and east positive")
	bgp.register(c, cmd, create)
	mustComplete(cmd, "region", c.completeRegions())
	if create {
		return need(cmd, "region")
	}
	cmd.Aliases, cmd.ValidArgsFunction = []string{"set"}, first(c.completeSites())
	addRevision(cmd, &rev)
	return cmd
}

// parsePlace reads LATITUDE,LONGITUDE.
func parsePlace(text string) (latitude, longitude float64, err error) {
	lat, long, ok := strings.Cut(text, ",")
	latitude, err1 := strconv.ParseFloat(strings.TrimSpace(lat), 64)
	longitude, err2 := strconv.ParseFloat(strings.TrimSpace(long), 64)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, usagef("--at %q is not a place; write LATITUDE,LONGITUDE like 50.11,8.68", text)
	}
	return latitude, longitude, nil
}

// siteBGP is what the flags of a site say about BGP.
type siteBGP struct {
	bgp       pb.SiteBgp
	drainTime time.Duration
	none      bool
}

var siteBGPFlags = map[string]string{
	"asn": "bgp.local_asn", "router-id": "bgp.router_id", "announce-pool": "bgp.pools",
	"drain-time": "bgp.drain_time", "drain-prepend": "bgp.drain_prepends", "community": "bgp.communities",
	"dry-run": "bgp.dry_run", "no-bgp": "bgp",
}

func (b *siteBGP) register(c *cli, cmd *cobra.Command, create bool) {
	f := cmd.Flags()
	f.Uint32Var(&b.bgp.LocalAsn, "asn", 0, "announce anycast pools by BGP as this autonomous system `number`")
	f.StringVar(&b.bgp.RouterId, "router-id", "", "BGP router `id` (default each node's IPv4 address)")
	f.StringSliceVar(&b.bgp.Pools, "announce-pool", nil, "`pool` announced here (default all anycast pools)")
	f.DurationVar(&b.drainTime, "drain-time", 0, "how long a drained route is kept, less wanted (default 5s)")
	f.Uint32Var(&b.bgp.DrainPrepends, "drain-prepend", 0, "`times` more that the own number is in a drained path")
	f.StringSliceVar(&b.bgp.Communities, "community", nil, "`community` on every route of the site")
	f.BoolVar(&b.bgp.DryRun, "dry-run", false, "work out and report announcements, open no session")
	mustComplete(cmd, "announce-pool", c.completePools())
	if !create {
		f.BoolVar(&b.none, "no-bgp", false, "announce nothing any more")
	}
}

// of returns what the flags say, or nil if they say nothing.
func (b *siteBGP) of(cmd *cobra.Command) (*pb.SiteBgp, error) {
	given := changed(cmd, siteBGPFlags)
	switch {
	case b.none && len(given) > 1:
		return nil, usagef("--no-bgp does not go together with the other flags about BGP")
	case b.none || len(given) == 0:
		return nil, nil
	}
	if cmd.Flags().Changed("drain-time") {
		b.bgp.DrainTime = durationpb.New(b.drainTime)
	}
	return &b.bgp, nil
}

func bgpLines(p *page, b *pb.SiteBgp) {
	if b == nil {
		p.line("BGP", "none")
		return
	}
	p.line("BGP", fmt.Sprintf("AS %d", b.GetLocalAsn()))
	p.line("Router id", b.GetRouterId())
	pools := "all anycast pools"
	if len(b.GetPools()) > 0 {
		pools = strings.Join(b.GetPools(), " ")
	}
	p.line("Announces", pools)
	p.line("Drain", fmt.Sprintf("%v, %d prepends", b.GetDrainTime().AsDuration(), b.GetDrainPrepends()))
	p.line("Communities", strings.Join(b.GetCommunities(), " "))
	if b.GetDryRun() {
		p.line("Dry run", "yes: no session is opened")
	}
	if b.GetDrained() {
		p.line("Drained", "yes: nearcast announce restore --site …")
	}
}
