package catalog

import (
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

func hosted(name model.ZoneName, text string, aliases ...model.ZoneAlias) model.Zone {
	return model.Zone{Name: name, Text: text, Aliases: aliases, KeyAlgorithm: model.ECDSAP256SHA256}
}

func TestZones(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	acc := must[model.Accelerator](t)(c.CreateAccelerator(ctx, model.Accelerator{Name: "web", Enabled: true,
		IPAddressType: model.IPv4}, Options{}))
	create := func(z model.Zone) error { _, err := c.CreateZone(ctx, z, Options{}); return err }
	refused(t, create(hosted("example.com", "www IN A 192.0.2.300")), InvalidArgument, ReasonNone, "line 1")
	refused(t, create(hosted("example.com", "", model.ZoneAlias{Name: "www", Accelerator: "no"})),
		InvalidArgument, ReasonAcceleratorNotFound, "zone.aliases[0].accelerator_id")
	refused(t, create(hosted("example.com", "www IN CNAME web.example.net.", model.ZoneAlias{Name: "www", Accelerator: acc.ID})),
		InvalidArgument, ReasonNone, "zone.aliases[0].name", "CNAME")
	refused(t, create(hosted("exa mple.com", "")), InvalidArgument, ReasonNone, "zone.name")
	if err := create(hosted("example.com", "a IN A 192.0.2.1\nb IN A 192.0.2.2\nc IN A 192.0.2.3\nd IN A 192.0.2.4\n",
		model.ZoneAlias{Name: "@", Accelerator: acc.ID})); err != nil {
		t.Fatal(err)
	}
	refused(t, create(hosted("example.com", "")), AlreadyExists, ReasonNone, "example.com")
	if z := must[model.Zone](t)(c.Zone(ctx, "EXAMPLE.com.")); len(z.Keys) != 0 || z.Revision == 0 {
		t.Errorf("%+v", z)
	}

	// Half a file is not taken for what was meant; an accelerator that a zone names stays.
	update := func(o Options, edit func(*model.Zone)) error {
		_, err := c.UpdateZone(ctx, "example.com", o, func(z *model.Zone) error { edit(z); return nil })
		return err
	}
	short := func(z *model.Zone) { z.Text = "a IN A 192.0.2.1\n" }
	refused(t, update(Options{}, short), FailedPrecondition, ReasonGuard, "2 names instead of 5")
	if err := update(Options{Force: true}, short); err != nil {
		t.Error(err)
	}
	refused(t, update(Options{}, func(z *model.Zone) { z.Name = "other.example" }), InvalidArgument, ReasonNone, "zone.name")

	// Keys are made with the signing, and go with the zone.
	if err := update(Options{}, func(z *model.Zone) { z.DNSSEC = true }); err != nil {
		t.Fatal(err)
	}
	z := must[model.Zone](t)(c.Zone(ctx, "example.com"))
	if len(z.Keys) != 1 || z.Keys[0].State != model.KeyActive || len(z.Keys[0].Private) != 32 {
		t.Fatalf("keys: %+v", z.Keys)
	}
	if err := c.DeleteZone(ctx, "example.com", Options{}); err != nil {
		t.Error(err)
	}
	_, err := c.Zone(ctx, "example.com")
	refused(t, err, NotFound, zoneKind.missing, "example.com")
}

// TestRoll walks a key through its life: no step comes before resolvers can have forgotten what was.
func TestRoll(t *testing.T) {
	now := time.Unix(1e9, 0)
	z := hosted("example.com", "")
	z.DNSSEC, z.Keys = true, []model.ZoneKey{{Tag: 1, State: model.KeyActive}}
	step := func(s KeyStep, after time.Duration, force bool) error {
		now = now.Add(after)
		return roll(&z, s, now, force)
	}
	refused(t, step(KeyStepActivate, 0, false), FailedPrecondition, ReasonNone, "publish")
	refused(t, step(KeyStepRemove, 0, false), FailedPrecondition, ReasonNone, "no retired key")
	if err := step(KeyStepPublish, 0, false); err != nil {
		t.Fatal(err)
	}
	refused(t, step(KeyStepPublish, time.Hour, true), FailedPrecondition, ReasonInUse, "in the middle")
	refused(t, step(KeyStepActivate, 0, false), FailedPrecondition, ReasonGuard, "resolvers")
	if err := step(KeyStepActivate, keyWait, false); err != nil {
		t.Fatal(err)
	}
	if z.Keys[0].State != model.KeyRetired || z.Keys[1].State != model.KeyActive || z.Keys[1].Tag == 1 {
		t.Errorf("after activate: %+v", z.Keys)
	}
	refused(t, step(KeyStepRemove, time.Minute, false), FailedPrecondition, ReasonGuard, "resolvers")
	if err := step(KeyStepRemove, keyWait, false); err != nil {
		t.Fatal(err)
	}
	if len(z.Keys) != 1 || z.Keys[0].State != model.KeyActive {
		t.Errorf("in the end: %+v", z.Keys)
	}
}

func TestSteering(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	set := func(edit func(*model.Steering)) error {
		_, err := c.UpdateSteering(ctx, Options{}, func(s *model.Steering) error { edit(s); return nil })
		return err
	}
	refused(t, set(func(s *model.Steering) { s.DefaultSite = "nowhere" }), InvalidArgument, ReasonSiteNotFound, "default_site")
	refused(t, set(func(s *model.Steering) { s.ExplorePercent = 51 }), InvalidArgument, ReasonNone, "explore_percent")
	refused(t, set(func(s *model.Steering) { s.TTL = time.Millisecond }), InvalidArgument, ReasonNone, "ttl")
	if err := set(func(s *model.Steering) { s.DefaultSite, s.ExploreOff = "ams", true }); err != nil {
		t.Fatal(err)
	}
	if s := must[model.Steering](t)(c.Steering(ctx)); s.DefaultSite != "ams" || !s.ExploreOff ||
		s.ExplorePercent != model.DefaultExplorePercent || s.TTL != model.DefaultSteeringTTL {
		t.Errorf("%+v", s)
	}
	refused(t, c.DeleteSite(ctx, "ams", Options{}), FailedPrecondition, ReasonInUse)
}
