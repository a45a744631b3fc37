package catalog

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane/byoip"
	"github.com/nearcast/nearcast/proto/model"
)

// TestSharedSubnets: a project's subnet is led to by another one's accelerator while an attachment lets it, and
// its ports are free again when that ends.
func TestSharedSubnets(t *testing.T) {
	c, a, l := customWorld(t, 1000, 1099)
	ctx := t.Context()
	ok(t)(c.CreateSubnet(ctx, model.Subnet{Name: "subnet-x", Region: "eu", Project: "owner",
		Prefix: netip.MustParsePrefix("10.10.0.0/28")}, Options{}))
	_, err := c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "eu", "subnet-0", "subnet-x"), Options{})
	refused(t, err, InvalidArgument, ReasonNotShared, "belongs to another project")
	share := must[model.Attachment](t)(c.CreateAttachment(ctx, model.Attachment{Project: "owner", Name: "x",
		Accelerators: []model.AcceleratorID{a.ID}, Resources: []model.SharedResource{{Endpoint: "subnet-x", Region: "eu"}}}, Options{}))
	g := must[model.CustomRoutingGroup](t)(c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "eu", "subnet-0", "subnet-x"), Options{}))
	refused(t, c.DeleteSubnet(ctx, "subnet-x", Options{}), FailedPrecondition, ReasonInUse, "endpoint of group")
	before := must[model.Accelerator](t)(c.Accelerator(ctx, a.ID)).Revision
	if err := c.DeleteAttachment(ctx, share.ID, Options{}); err != nil {
		t.Fatal(err)
	}
	g = must[model.CustomRoutingGroup](t)(c.CustomRoutingGroup(ctx, g.ID))
	if len(g.Endpoints) != 1 || g.Endpoints[0].Subnet != "subnet-0" {
		t.Errorf("endpoints %+v after the share ended", g.Endpoints)
	}
	if after := must[model.Accelerator](t)(c.Accelerator(ctx, a.ID)).Revision; after == before {
		t.Error("the accelerator's revision did not move: nobody would wait for the change")
	}
}

func TestAttachmentsGuardWhatTheyShare(t *testing.T) {
	c := world(t)
	ctx := t.Context()
	for name, project := range map[string]string{"mine": "owner", "everybodys": "", "theirs": "other"} {
		ok(t)(c.CreateTarget(ctx, model.Target{Name: name, Host: "10.0.0.1", Project: project}, Options{}))
	}
	share := func(name string) (model.Attachment, error) {
		return c.CreateAttachment(ctx, model.Attachment{Project: "owner", Name: name, Projects: []string{"default"},
			Resources: []model.SharedResource{{Endpoint: model.EndpointID(name)}}}, Options{})
	}
	_, err := share("theirs")
	refused(t, err, InvalidArgument, ReasonNone, "another project")
	ok(t)(share("everybodys"))
	made := must[model.Attachment](t)(share("mine"))
	refused(t, c.DeleteTarget(ctx, "mine", Options{}), FailedPrecondition, ReasonInUse, "shares target")
	_, err = c.UpdateTarget(ctx, "mine", Options{}, func(t *model.Target) error { t.Project = "other"; return nil })
	refused(t, err, FailedPrecondition, ReasonInUse, "shares target")
	got := must[[]Shared](t)(c.SharedWith(ctx, "default", ""))
	if len(got) != 2 {
		t.Errorf("shared with default: %+v", got)
	}
	if got := must[[]Shared](t)(c.SharedWith(ctx, "owner", "")); len(got) != 0 {
		t.Errorf("the owner's own: %+v", got)
	}
	if err := c.Tag(ctx, string(made.ID), map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	_, err = c.UpdateAttachment(ctx, made.ID, Options{}, func(a *model.Attachment) error { a.Project = "other"; return nil })
	refused(t, err, InvalidArgument, ReasonNone, "attachment.project")
	_, err = c.UpdateAttachment(ctx, made.ID, Options{ExpectedRevision: made.Revision}, func(*model.Attachment) error { return nil })
	refused(t, err, Aborted, ReasonRevision)
}

// owner makes records of ranges and signs for them.
func owner(t *testing.T, c *Catalog, cidr string) func(cidr string) byoip.Request {
	t.Helper()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "owner"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	der := must[[]byte](t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	ok(t)(c.SetRangeRecord(t.Context(), model.RangeRecord{CIDR: netip.MustParsePrefix(cidr),
		Document: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}))
	return func(cidr string) byoip.Request {
		message := fmt.Sprintf("1|nearcast|123456789012|%s|%s|SHA256|ECDSA", cidr, time.Now().UTC().Add(24*time.Hour).Format("20060102"))
		sum := sha256.Sum256([]byte(message))
		signature := must[[]byte](t)(key.Sign(rand.Reader, sum[:], crypto.SHA256))
		return byoip.Request{Account: "123456789012", CIDR: netip.MustParsePrefix(cidr), Message: message,
			Signature: byoip.EncodeSignature(signature)}
	}
}

func TestRanges(t *testing.T) {
	c := world(t)
	ctx := t.Context()
	ok(t)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error { s.BYOIPRangesMax = 20; return nil }))
	wide, narrow := owner(t, c, "192.0.0.0/16"), owner(t, c, "192.0.2.0/24")
	_, err := c.ProvisionRange(ctx, "shop", wide("192.0.2.0/24"))
	refused(t, err, InvalidArgument, ReasonNone, "signature") // the longest record says who may
	r := must[model.BYOIPRange](t)(c.ProvisionRange(ctx, "shop", narrow("192.0.2.0/24")))
	pool := func() model.Pool { return must[model.Pool](t)(c.Pool(ctx, r.Pool)) }
	announced := func() bool { p := pool(); return (&model.SiteBGP{}).Announces(&p) }
	if p := pool(); p.Project != "shop" || announced() {
		t.Errorf("the pool is %+v", p)
	}
	_, err = c.UpdatePool(ctx, r.Pool, Options{}, func(p *model.Pool) error { p.Withheld = false; return nil })
	refused(t, err, FailedPrecondition, ReasonInUse, "brought")
	refused(t, c.DeletePool(ctx, r.Pool, Options{}), FailedPrecondition, ReasonInUse, "brought")
	ask := model.Accelerator{Name: "own", Project: "shop", Pools: []model.PoolName{r.Pool, "pool-a"}}
	_, err = c.CreateAccelerator(ctx, ask, Options{})
	refused(t, err, InvalidArgument, ReasonRangeState, "not advertised")
	ok(t)(c.AdvertiseRange(ctx, "shop", r.CIDR))
	if !announced() {
		t.Error("an advertised range is not announced")
	}
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, ask, Options{}))
	if !r.CIDR.Contains(a.Addresses[0]) || r.CIDR.Contains(a.Addresses[1]) {
		t.Errorf("addresses %v", a.Addresses)
	}
	ask.Project = "default"
	_, err = c.CreateAccelerator(ctx, ask, Options{})
	refused(t, err, InvalidArgument, ReasonNotShared, "another project")
	_, err = c.WithdrawRange(ctx, "shop", r.CIDR)
	refused(t, err, FailedPrecondition, ReasonRangeState, string(a.ID))
	if err := c.DeleteAccelerator(ctx, a.ID, Options{}); err != nil {
		t.Fatal(err)
	}
	ok(t)(c.WithdrawRange(ctx, "shop", r.CIDR))
	if announced() {
		t.Error("a withdrawn range is announced")
	}
	ok(t)(c.DeprovisionRange(ctx, "shop", r.CIDR))
	if _, err := c.Pool(ctx, r.Pool); CodeOf(err) != NotFound {
		t.Errorf("the pool of a range that was given back: %v", err)
	}
	// What was given back is remembered, and not for ever.
	for i := range deprovisionedMax + 2 {
		made := must[model.BYOIPRange](t)(c.ProvisionRange(ctx, "shop", wide(fmt.Sprintf("192.0.%d.0/24", 100+i))))
		ok(t)(c.DeprovisionRange(ctx, "shop", made.CIDR))
	}
	all, _, err := c.ListRanges(ctx, "shop", PageOptions{})
	if err != nil || len(all) != deprovisionedMax || all[0].CIDR != netip.MustParsePrefix("192.0.102.0/24") {
		t.Errorf("%d ranges, the first %v; %v", len(all), all, err)
	}
	if err := c.DeleteRangeRecord(ctx, netip.MustParsePrefix("192.0.2.0/24"), Options{}); err != nil {
		t.Fatal(err)
	}
	ok(t)(c.ProvisionRange(ctx, "shop", wide("192.0.2.0/24")))
	_, err = c.SetRangeRecord(ctx, model.RangeRecord{CIDR: netip.MustParsePrefix("192.0.2.0/25"), Document: "x"})
	refused(t, err, InvalidArgument, ReasonNone, "record.cidr")
	_, err = c.SetRangeRecord(ctx, model.RangeRecord{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Document: "x"})
	refused(t, err, InvalidArgument, ReasonNone, "record.document")
}
