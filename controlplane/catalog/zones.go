package catalog

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/proto/zonefile"
)

var zoneKind = &kind[model.ZoneName, model.Zone]{
	name: "zone", prefix: "zones/", missing: ReasonZoneNotFound,
	key:      func(z *model.Zone) model.ZoneName { return z.Name },
	revision: func(z *model.Zone) *uint64 { return &z.Revision },
	clone:    model.Zone.Clone,
	encode:   encoder(func(z model.Zone) *pb.Zone { z.Revision = 0; return model.ZoneToProto(z) }),
	decode:   decoder(model.ZoneFromProto),
}

var steeringKind = &kind[string, model.Steering]{
	name: "steering", prefix: "steering/",
	key:      func(*model.Steering) string { return settingsKey },
	revision: func(s *model.Steering) *uint64 { return &s.Revision },
	clone:    model.Steering.Clone,
	encode:   encoder(func(s model.Steering) *pb.Steering { s.Revision = 0; return model.SteeringToProto(s) }),
	decode:   decoder(model.SteeringFromProto),
}

func zonesTable(o *objects) *table[model.ZoneName, model.Zone] { return &o.zones }

// CreateZone adds a zone. A signed one gets its first key, which is active at once: nobody knows the
// zone yet.
func (c *Catalog) CreateZone(ctx context.Context, z model.Zone, _ Options) (model.Zone, error) {
	z = z.Clone()
	z.Keys = nil
	err := c.change(ctx, func(ch *change) error {
		if ch.zones.get(z.Name) != nil {
			return exists(ReasonNone, "there is a zone %q already", z.Name)
		}
		if n := ch.zones.len(); n >= model.SnapshotZonesMax {
			return &Error{Code: LimitExceeded, Reason: ReasonLimit,
				Message: fmt.Sprintf("there are %d zones; more are not possible", n)}
		}
		return ch.putZone(z)
	})
	if err != nil {
		return model.Zone{}, err
	}
	return c.Zone(ctx, z.Name)
}

// Zone returns one, by its name in any case and with or without the final dot.
func (c *Catalog) Zone(ctx context.Context, name model.ZoneName) (model.Zone, error) {
	return get(c, ctx, zonesTable, canonicalZone(name), plain(zoneKind))
}

// ListZones returns a page.
func (c *Catalog) ListZones(ctx context.Context, p PageOptions) ([]model.Zone, string, error) {
	return list(c, ctx, p, zonesTable, nil, plain(zoneKind))
}

func canonicalZone(name model.ZoneName) model.ZoneName {
	return model.ZoneName(strings.ToLower(strings.TrimSuffix(string(name), ".")))
}

// UpdateZone lets edit alter Text, Aliases, DNSSEC and KeyAlgorithm; see UpdateAccelerator. Fewer than
// half of the names left is more likely a file cut short than meant, and guarded.
func (c *Catalog) UpdateZone(ctx context.Context, name model.ZoneName, o Options,
	edit func(*model.Zone) error) (model.Zone, error) {
	name = canonicalZone(name)
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.zones.need(name)
		if err != nil {
			return err
		}
		z, changed, err := update(&ch.zones, name, before.Revision, o, edit, zoneFixed)
		if err != nil || !changed {
			return err
		}
		z.Keys = before.Clone().Keys
		if !o.Force {
			if had, has := countNames(before), countNames(&z); 2*has < had {
				return guarded("zone %s would have %d names instead of %d", name, has, had)
			}
		}
		return ch.putZone(z)
	})
	if err != nil {
		return model.Zone{}, err
	}
	return c.Zone(ctx, name)
}

var zoneFixed = map[string]func(a, b *model.Zone) bool{
	"zone.name": func(a, b *model.Zone) bool { return a.Name == b.Name },
}

// countNames counts the owner names of a zone; a text that cannot be read has none.
func countNames(z *model.Zone) int {
	records, err := zonefile.Parse(z.Name, z.Text)
	if err != nil {
		return 0
	}
	names := map[string]bool{}
	for _, rr := range records {
		names[rr.Header().Name] = true
	}
	for _, a := range z.Aliases {
		names[aliasName(z.Name, a.Name)] = true
	}
	return len(names)
}

func aliasName(zone model.ZoneName, alias string) string {
	if alias == "@" {
		return dns.CanonicalName(string(zone))
	}
	return dns.CanonicalName(alias + "." + string(zone))
}

// putZone checks a zone against everything else, gives it the key that it needs, and stages it.
func (ch *change) putZone(z model.Zone) error {
	if z.DNSSEC && len(z.Keys) == 0 {
		k, err := zonefile.NewKey(z.KeyAlgorithm)
		if err != nil {
			return &Error{Code: Internal, Err: err, Message: fmt.Sprintf("make a key: %v", err)}
		}
		k.State, k.Since = model.KeyActive, ch.now
		z.Keys = []model.ZoneKey{k}
	}
	if err := invalid(z.Validate()); err != nil {
		return err
	}
	records, err := zonefile.Parse(z.Name, z.Text)
	if err != nil {
		return invalid(err)
	}
	types := map[string]map[uint16]bool{}
	for _, rr := range records {
		h := rr.Header()
		if types[h.Name] == nil {
			types[h.Name] = map[uint16]bool{}
		}
		types[h.Name][h.Rrtype] = true
	}
	for i, a := range z.Aliases {
		path := fmt.Sprintf("zone.aliases[%d]", i)
		if ch.accelerators.get(a.Accelerator) == nil {
			return field(ReasonAcceleratorNotFound, path+".accelerator_id", "there is no accelerator %q", a.Accelerator)
		}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeCNAME} {
			if types[aliasName(z.Name, a.Name)][t] {
				return field(ReasonNone, path+".name", "has %s records in the text, too; leave out one or the other",
					dns.TypeToString[t])
			}
		}
	}
	total := len(z.Text)
	for other := range ch.zones.all() {
		if other.Name != z.Name {
			total += len(other.Text)
		}
	}
	if total > model.SnapshotZoneBytesMax {
		return &Error{Code: LimitExceeded, Reason: ReasonLimit, Message: fmt.Sprintf(
			"all zones together would have %d bytes of text; at most %d are possible",
			total, model.SnapshotZoneBytesMax)}
	}
	return put(ch, &ch.zones, z)
}

// DeleteZone removes a zone with its keys.
func (c *Catalog) DeleteZone(ctx context.Context, name model.ZoneName, o Options) error {
	name = canonicalZone(name)
	return c.change(ctx, func(ch *change) error {
		z, err := ch.zones.need(name)
		if err != nil {
			return err
		}
		if err := expect(o, zoneKind.name, string(name), z.Revision); err != nil {
			return err
		}
		remove(ch, &ch.zones, name)
		return nil
	})
}

// KeyStep is a step of a zone key's rollover.
type KeyStep int

// The steps, in their order: see the schema.
const (
	KeyStepPublish KeyStep = iota + 1
	KeyStepActivate
	KeyStepRemove
)

// RollZoneKey takes one step of a rollover. Resolvers keep what they know for as long as its TTL says,
// so that a step too early would make the zone bogus for some: it is refused unless forced.
func (c *Catalog) RollZoneKey(ctx context.Context, name model.ZoneName, step KeyStep, o Options) (model.Zone, error) {
	name = canonicalZone(name)
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.zones.need(name)
		if err != nil {
			return err
		}
		z := before.Clone()
		if !z.DNSSEC {
			return precondition(ReasonNone, "zone %s is not signed", name)
		}
		if err := roll(&z, step, ch.now, o.Force); err != nil {
			return err
		}
		return ch.putZone(z)
	})
	if err != nil {
		return model.Zone{}, err
	}
	return c.Zone(ctx, name)
}

// keyWait is how long resolvers may know a set of keys, with as much again for the parent's DS.
const keyWait = 2 * zonefile.KeyTTLSeconds * time.Second

func roll(z *model.Zone, step KeyStep, now time.Time, force bool) error {
	find := func(s model.ZoneKeyState) int {
		return slices.IndexFunc(z.Keys, func(k model.ZoneKey) bool { return k.State == s })
	}
	wait := func(since time.Time) error {
		if left := keyWait - now.Sub(since); left > 0 && !force {
			return guarded("resolvers may not know the keys as they are for another %v", left.Round(time.Minute))
		}
		return nil
	}
	published, active, retired := find(model.KeyPublished), find(model.KeyActive), find(model.KeyRetired)
	switch step {
	case KeyStepPublish:
		if published >= 0 || retired >= 0 {
			return precondition(ReasonInUse, "zone %s is in the middle of a rollover; go on with activate or remove", z.Name)
		}
		k, err := zonefile.NewKey(z.KeyAlgorithm)
		if err != nil {
			return &Error{Code: Internal, Err: err, Message: fmt.Sprintf("make a key: %v", err)}
		}
		k.Since = now
		z.Keys = append(z.Keys, k)
	case KeyStepActivate:
		if published < 0 {
			return precondition(ReasonNone, "zone %s has no published key; take the step publish first", z.Name)
		}
		if err := wait(z.Keys[published].Since); err != nil {
			return err
		}
		z.Keys[published].State, z.Keys[published].Since = model.KeyActive, now
		if active >= 0 {
			z.Keys[active].State, z.Keys[active].Since = model.KeyRetired, now
		}
	case KeyStepRemove:
		if retired < 0 {
			return precondition(ReasonNone, "zone %s has no retired key", z.Name)
		}
		if err := wait(z.Keys[retired].Since); err != nil {
			return err
		}
		z.Keys = slices.Delete(z.Keys, retired, retired+1)
	default:
		return field(ReasonNone, "step", "is missing; use PUBLISH, ACTIVATE or REMOVE")
	}
	return nil
}

// steering returns the steering, or the defaults if none was ever set.
func (o *objects) steering() model.Steering {
	if s := o.steer.get(settingsKey); s != nil {
		return *s
	}
	s, _ := model.SteeringFromProto(nil) // nothing in nothing can be wrong
	return s
}

// Steering returns how names are answered.
func (c *Catalog) Steering(ctx context.Context) (s model.Steering, err error) {
	err = c.read(ctx, func(o *objects) error {
		s = o.steering().Clone()
		return nil
	})
	return s, err
}

// UpdateSteering lets edit alter all of it; see UpdateAccelerator.
func (c *Catalog) UpdateSteering(ctx context.Context, o Options,
	edit func(*model.Steering) error) (model.Steering, error) {
	err := c.change(ctx, func(ch *change) error {
		before := ch.steering()
		if err := expect(o, steeringKind.name, settingsKey, before.Revision); err != nil {
			return err
		}
		s := before.Clone()
		if err := edit(&s); err != nil {
			return err
		}
		s, err := model.SteeringFromProto(model.SteeringToProto(s)) // zeros become what they mean
		if err != nil {
			return invalid(err)
		}
		if err := invalid(s.Validate()); err != nil {
			return err
		}
		for site, path := range sitesOf(&s) {
			if ch.sites.get(site) == nil {
				return field(ReasonSiteNotFound, path, "there is no site %q", site)
			}
		}
		return put(ch, &ch.steer, s)
	})
	if err != nil {
		return model.Steering{}, err
	}
	return c.Steering(ctx)
}

// sitesOf returns the sites that steering names, and where.
func sitesOf(s *model.Steering) map[model.SiteName]string {
	named := map[model.SiteName]string{}
	for i, n := range s.Networks {
		named[n.Site] = fmt.Sprintf("steering.networks[%d].site", i)
	}
	for i, w := range s.Weights {
		named[w.Site] = fmt.Sprintf("steering.weights[%d].site", i)
	}
	if s.DefaultSite != "" {
		named[s.DefaultSite] = "steering.default_site"
	}
	return named
}

// siteSteered refuses the end of a site that steering names.
func (ch *change) siteSteered(name model.SiteName) error {
	s := ch.steering()
	if path, ok := sitesOf(&s)[name]; ok {
		return precondition(ReasonInUse, "%s names site %s; take it out there first", path, name)
	}
	return nil
}

// acceleratorAliased refuses the end of an accelerator that a zone names.
func (ch *change) acceleratorAliased(id model.AcceleratorID) error {
	for _, z := range inOrder(ch.zones.all(), zoneKind.key) {
		for _, a := range z.Aliases {
			if a.Accelerator == id {
				return precondition(ReasonInUse, "%s of zone %s is an alias of accelerator %s; remove it first",
					a.Name, z.Name, id)
			}
		}
	}
	return nil
}

// cookieSecret is a secret of DNS cookies and when it was made.
type cookieSecret struct {
	Secret []byte    `json:"secret"`
	Made   time.Time `json:"made"`
}

// RotateCookieSecrets takes one step every interval, and makes the first secrets (RFC 9018 5): the
// other one of the two becomes the one in use if it is newer, and else is replaced. So every node knows
// a secret before any node uses it, and cookies of the one before stay good for an interval.
func (c *Catalog) RotateCookieSecrets(ctx context.Context, interval time.Duration) error {
	return c.change(ctx, func(ch *change) error {
		now := slices.Clone(ch.cookies)
		fresh := func() cookieSecret { return cookieSecret{newSecret(cookieSecretBytes), ch.now} }
		switch {
		case len(now) == 0:
			now = []cookieSecret{fresh()}
		case ch.now.Sub(latest(now)) < interval:
			return nil
		case len(now) == 1:
			now = append(now, fresh())
		case now[1].Made.After(now[0].Made):
			now[0], now[1] = now[1], now[0]
			now[0].Made = ch.now // it is in use since
		default:
			now[1] = fresh()
			now[1].Made = ch.now.Add(time.Nanosecond)
		}
		return ch.putJSON(cookiesKey, now)
	})
}

func latest(secrets []cookieSecret) time.Time {
	return slices.MaxFunc(secrets, func(a, b cookieSecret) int { return a.Made.Compare(b.Made) }).Made
}

// secrets returns the bytes alone.
func secrets(list []cookieSecret) (out [][]byte) {
	for _, s := range list {
		out = append(out, s.Secret)
	}
	return out
}
