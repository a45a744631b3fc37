package awsapi

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"

	"github.com/nearcast/nearcast/controlplane/byoip"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TestEveryOperationOfTheSDK has one for each method of the SDK's client, and none that it lacks.
func TestEveryOperationOfTheSDK(t *testing.T) {
	client, found := reflect.TypeFor[*ga.Client](), 0
	for i := range client.NumMethod() {
		m := client.Method(i)
		if m.Type.NumIn() != 4 || !m.Type.IsVariadic() || m.Type.In(2).Elem().Name() != m.Name+"Input" {
			continue
		}
		found++
		op := operations[targetPrefix+m.Name]
		if op == nil {
			t.Errorf("%s is missing", m.Name)
			continue
		}
		// The members of a request are the fields of the SDK's, whose last one is its own.
		theirs, ours := m.Type.In(2).Elem(), map[string]bool{}
		for _, f := range reflect.VisibleFields(reflect.TypeOf(op.request).Elem()) {
			ours[f.Name] = !f.Anonymous
		}
		for j := range theirs.NumField() {
			if f := theirs.Field(j); f.IsExported() && !ours[f.Name] {
				t.Errorf("%s has no member %s", m.Name, f.Name)
			}
		}
	}
	if found != 56 || len(operations) != 57 {
		t.Errorf("the SDK has %d operations, and the table %d with GetResources; want 56 and 57", found, len(operations))
	}
}

const consumer = "210987654321"

// sharing is a world with an owner of a target, a subnet and a consumer's accelerator.
type sharing struct {
	*world
	owner, user *ga.Client
	accelerator *types.Accelerator
	group       *string
}

const sharedARN = "arn:aws:elasticloadbalancing:us-east-1:" + account + ":loadbalancer/app/shared/1"

func newSharing(t *testing.T) *sharing {
	w := newWorld(t)
	s := &sharing{world: w, owner: w.operator(), user: w.client(v1.Role_ROLE_OPERATOR, "consumer", consumer)}
	must[model.Target](t)(w.catalog.CreateTarget(t.Context(), model.Target{Name: sharedARN, Region: "us-east-1",
		Host: "10.0.0.9", Project: "default"}, catalog.Options{}))
	s.accelerator = w.accelerator(s.user, "theirs")
	s.group = w.group(s.user, w.listener(s.user, s.accelerator.AcceleratorArn, types.ProtocolTcp, 80, 80).ListenerArn,
		"us-east-1", "10.1.0.1").EndpointGroupArn
	return s
}

func (s *sharing) add(attachment *string) error {
	return second(s.user.AddEndpoints(s.t.Context(), &ga.AddEndpointsInput{EndpointGroupArn: s.group,
		EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String(sharedARN), AttachmentArn: attachment}}}))
}

func (s *sharing) endpoints() int {
	s.t.Helper()
	return len(must[*ga.DescribeEndpointGroupOutput](s.t)(s.user.DescribeEndpointGroup(s.t.Context(),
		&ga.DescribeEndpointGroupInput{EndpointGroupArn: s.group})).EndpointGroup.EndpointDescriptions)
}

func TestAttachments(t *testing.T) {
	s := newSharing(t)
	ctx := t.Context()
	wantCode(t, "another project's target", s.add(nil), "AccessDeniedException")
	create := &ga.CreateCrossAccountAttachmentInput{Name: aws.String("shared"), IdempotencyToken: aws.String("t1"),
		Principals: []string{consumer}, Resources: []types.Resource{{EndpointId: aws.String(sharedARN), Region: aws.String("us-east-1")}},
		Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}
	a := must[*ga.CreateCrossAccountAttachmentOutput](t)(s.owner.CreateCrossAccountAttachment(ctx, create)).CrossAccountAttachment
	if !strings.HasPrefix(*a.AttachmentArn, arnPrefix+account+":attachment/") || a.CreatedTime == nil ||
		fmt.Sprint(a.Principals) != "["+consumer+"]" || len(a.Resources) != 1 || *a.Resources[0].EndpointId != sharedARN {
		t.Errorf("created %s", jsonOf(t, a))
	}
	again := must[*ga.CreateCrossAccountAttachmentOutput](t)(s.owner.CreateCrossAccountAttachment(ctx, create))
	if *again.CrossAccountAttachment.AttachmentArn != *a.AttachmentArn {
		t.Error("the same token made another attachment")
	}
	if tags := must[*ga.ListTagsForResourceOutput](t)(s.owner.ListTagsForResource(ctx,
		&ga.ListTagsForResourceInput{ResourceArn: a.AttachmentArn})).Tags; len(tags) != 1 {
		t.Errorf("tags %s", jsonOf(t, tags))
	}
	must[any](t)(s.owner.TagResource(ctx, &ga.TagResourceInput{ResourceArn: a.AttachmentArn, Tags: create.Tags}))

	// What the consumer sees, and uses.
	accounts := must[*ga.ListCrossAccountResourceAccountsOutput](t)(s.user.ListCrossAccountResourceAccounts(ctx, nil))
	if fmt.Sprint(accounts.ResourceOwnerAwsAccountIds) != "["+account+"]" {
		t.Errorf("owners %v", accounts.ResourceOwnerAwsAccountIds)
	}
	list := must[*ga.ListCrossAccountResourcesOutput](t)(s.user.ListCrossAccountResources(ctx,
		&ga.ListCrossAccountResourcesInput{ResourceOwnerAwsAccountId: aws.String(account),
			AcceleratorArn: s.accelerator.AcceleratorArn})).CrossAccountResources
	if len(list) != 1 || *list[0].EndpointId != sharedARN || *list[0].AttachmentArn != *a.AttachmentArn {
		t.Errorf("resources %s", jsonOf(t, list))
	}
	other := aws.String(*a.AttachmentArn + "0")
	wantCode(t, "an attachment that is not there", s.add(other), "InvalidArgumentException")
	wantCode(t, "no attachment", s.add(s.group), "InvalidArgumentException")
	if err := s.add(a.AttachmentArn); err != nil {
		t.Fatal(err)
	}

	// Terraform's and CloudFormation's updates: differences, also empty ones.
	update := func(in ga.UpdateCrossAccountAttachmentInput) (*types.Attachment, error) {
		in.AttachmentArn = a.AttachmentArn
		out, err := s.owner.UpdateCrossAccountAttachment(ctx, &in)
		if err != nil {
			return nil, err
		}
		return out.CrossAccountAttachment, nil
	}
	updated := must[*types.Attachment](t)(update(ga.UpdateCrossAccountAttachmentInput{Name: aws.String("renamed"),
		AddPrincipals: []string{*s.accelerator.AcceleratorArn}, RemovePrincipals: []string{consumer},
		AddResources: []types.Resource{}, RemoveResources: []types.Resource{}}))
	if *updated.Name != "renamed" || fmt.Sprint(updated.Principals) != "["+*s.accelerator.AcceleratorArn+"]" || s.endpoints() != 2 {
		t.Errorf("updated %s, %d endpoints", jsonOf(t, updated), s.endpoints())
	}
	for what, in := range map[string]ga.UpdateCrossAccountAttachmentInput{
		"an account without a project": {AddPrincipals: []string{"999999999999"}},
		"no principal":                 {AddPrincipals: []string{"arn:aws:iam::" + consumer + ":root"}},
		"no target":                    {AddResources: []types.Resource{{EndpointId: aws.String("i-nothing")}}},
		"another region":               {AddResources: []types.Resource{{EndpointId: aws.String(sharedARN), Region: aws.String("eu-ams-1")}}},
		"a range that is not brought":  {AddResources: []types.Resource{{Cidr: aws.String("192.0.2.0/24")}}},
		"no range":                     {AddResources: []types.Resource{{Cidr: aws.String("192.0.2.0")}}},
		"neither":                      {AddResources: []types.Resource{{}}},
		"no name":                      {Name: aws.String("")},
	} {
		wantCode(t, what, second(update(in)), "InvalidArgumentException")
	}
	many := ga.UpdateCrossAccountAttachmentInput{}
	for i := range 10 {
		id := fmt.Sprintf("3000000000%02d", i)
		s.client(v1.Role_ROLE_VIEWER, fmt.Sprint("p", i), id)
		many.AddPrincipals = append(many.AddPrincipals, id)
	}
	wantCode(t, "eleven principals", second(update(many)), "LimitExceededException")

	// Another account's attachment does not exist for the consumer.
	_, err := s.user.DescribeCrossAccountAttachment(ctx, &ga.DescribeCrossAccountAttachmentInput{AttachmentArn: a.AttachmentArn})
	wantCode(t, "another's attachment", err, "AttachmentNotFoundException")
	_, err = s.user.DeleteCrossAccountAttachment(ctx, &ga.DeleteCrossAccountAttachmentInput{AttachmentArn: a.AttachmentArn})
	wantCode(t, "another's attachment", err, "AttachmentNotFoundException")
	if mine := must[*ga.ListCrossAccountAttachmentsOutput](t)(s.user.ListCrossAccountAttachments(ctx, nil)); len(mine.CrossAccountAttachments) != 0 {
		t.Errorf("the consumer lists %s", jsonOf(t, mine))
	}

	// What is taken back leaves the consumer's group, and the group's own endpoint stays.
	must[*types.Attachment](t)(update(ga.UpdateCrossAccountAttachmentInput{RemovePrincipals: []string{*s.accelerator.AcceleratorArn}}))
	if n := s.endpoints(); n != 1 {
		t.Errorf("%d endpoints after the principal was removed, want 1", n)
	}
	must[any](t)(s.owner.DeleteCrossAccountAttachment(ctx, &ga.DeleteCrossAccountAttachmentInput{AttachmentArn: a.AttachmentArn}))
	_, err = s.owner.DescribeCrossAccountAttachment(ctx, &ga.DescribeCrossAccountAttachmentInput{AttachmentArn: a.AttachmentArn})
	wantCode(t, "a deleted one", err, "AttachmentNotFoundException")
	for i := range 11 {
		create.IdempotencyToken = aws.String(fmt.Sprint("limit", i))
		if _, err = s.owner.CreateCrossAccountAttachment(ctx, create); i < 10 && err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, "the eleventh attachment", err, "LimitExceededException")
	pages := must[*ga.ListCrossAccountAttachmentsOutput](t)(s.owner.ListCrossAccountAttachments(ctx,
		&ga.ListCrossAccountAttachmentsInput{MaxResults: aws.Int32(4)}))
	if len(pages.CrossAccountAttachments) != 4 || pages.NextToken == nil {
		t.Errorf("a page of %d", len(pages.CrossAccountAttachments))
	}
	first := must[*ga.ListCrossAccountResourcesOutput](t)(s.user.ListCrossAccountResources(ctx,
		&ga.ListCrossAccountResourcesInput{ResourceOwnerAwsAccountId: aws.String(account), MaxResults: aws.Int32(7)}))
	rest := must[*ga.ListCrossAccountResourcesOutput](t)(s.user.ListCrossAccountResources(ctx,
		&ga.ListCrossAccountResourcesInput{ResourceOwnerAwsAccountId: aws.String(account), NextToken: first.NextToken}))
	if len(first.CrossAccountResources) != 7 || len(rest.CrossAccountResources) != 3 || rest.NextToken != nil {
		t.Errorf("pages of %d and %d resources", len(first.CrossAccountResources), len(rest.CrossAccountResources))
	}
	_, err = s.user.ListCrossAccountResources(ctx, &ga.ListCrossAccountResourcesInput{
		ResourceOwnerAwsAccountId: aws.String(account), NextToken: aws.String("resources-x")})
	wantCode(t, "no token of this listing", err, "InvalidNextTokenException")
}

// bringer signs for ranges.
type bringer struct {
	t   *testing.T
	key *rsa.PrivateKey
}

// newBringer has the operator record a range and whose key may sign for it.
func (w *world) newBringer(cidr string) *bringer {
	w.t.Helper()
	key := must[*rsa.PrivateKey](w.t)(rsa.GenerateKey(rand.Reader, 2048))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "owner"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	der := must[[]byte](w.t)(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	must[model.RangeRecord](w.t)(w.catalog.SetRangeRecord(w.t.Context(), model.RangeRecord{
		CIDR:     netip.MustParsePrefix(cidr),
		Document: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}))
	return &bringer{w.t.(*testing.T), key}
}

func (b *bringer) provision(cidr, account string) *ga.ProvisionByoipCidrInput {
	message := fmt.Sprintf("1|aws|%s|%s|%s|SHA256|RSAPSS", account, cidr, time.Now().UTC().Add(24*time.Hour).Format("20060102"))
	sum := sha256.Sum256([]byte(message))
	signature := must[[]byte](b.t)(rsa.SignPSS(rand.Reader, b.key, crypto.SHA256, sum[:], nil))
	return &ga.ProvisionByoipCidrInput{Cidr: &cidr, CidrAuthorizationContext: &types.CidrAuthorizationContext{
		Message: &message, Signature: aws.String(byoip.EncodeSignature(signature))}}
}

func TestBYOIP(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.operator(), t.Context()
	const mine = "192.0.2.0/24"
	wantCode(t, "no record", second(c.ProvisionByoipCidr(ctx, (&bringer{t, must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))}).
		provision(mine, account))), "InvalidArgumentException")
	b := w.newBringer("192.0.0.0/16")
	for what, in := range map[string]*ga.ProvisionByoipCidrInput{
		"another account's message": b.provision(mine, consumer),
		"a range that is too small": b.provision("192.0.2.0/25", account),
		"no range":                  b.provision("192.0.2.0", account),
		"a range of a pool":         b.provision("198.51.100.0/24", account),
		"bits beyond its length":    b.provision("192.0.2.1/24", account),
	} {
		wantCode(t, what, second(c.ProvisionByoipCidr(ctx, in)), "InvalidArgumentException")
	}
	forged := b.provision(mine, account)
	forged.CidrAuthorizationContext.Signature = aws.String(strings.Repeat("A", 344))
	wantCode(t, "a forged signature", second(c.ProvisionByoipCidr(ctx, forged)), "InvalidArgumentException")

	state := func(want types.ByoipCidrState, events int) {
		t.Helper()
		list := must[*ga.ListByoipCidrsOutput](t)(c.ListByoipCidrs(ctx, nil)).ByoipCidrs
		if len(list) != 1 || list[0].State != want || len(list[0].Events) != events || *list[0].Cidr != mine {
			t.Errorf("listed %s, want %s and %d events", jsonOf(t, list), want, events)
		}
	}
	one := &ga.AdvertiseByoipCidrInput{Cidr: aws.String(mine)}
	wantCode(t, "advertised before it is there", second(c.AdvertiseByoipCidr(ctx, one)), "ByoipCidrNotFoundException")
	made := must[*ga.ProvisionByoipCidrOutput](t)(c.ProvisionByoipCidr(ctx, b.provision(mine, account))).ByoipCidr
	if made.State != types.ByoipCidrStatePendingProvisioning {
		t.Errorf("provisioned: %s", made.State)
	}
	state(types.ByoipCidrStatePendingProvisioning, 1)
	w.set(func() { w.deployed = true })
	state(types.ByoipCidrStateReady, 1)
	wantCode(t, "provisioned twice", second(c.ProvisionByoipCidr(ctx, b.provision(mine, account))), "IncorrectCidrStateException")
	create := &ga.CreateAcceleratorInput{Name: aws.String("own"), IpAddresses: []string{"192.0.2.10"}}
	wantCode(t, "an address that is not advertised", second(c.CreateAccelerator(ctx, create)), "InvalidArgumentException")
	wantCode(t, "withdrawn before", second(c.WithdrawByoipCidr(ctx, &ga.WithdrawByoipCidrInput{Cidr: one.Cidr})),
		"IncorrectCidrStateException")
	must[any](t)(c.AdvertiseByoipCidr(ctx, one))
	state(types.ByoipCidrStateAdvertising, 2)
	wantCode(t, "advertised twice", second(c.AdvertiseByoipCidr(ctx, one)), "IncorrectCidrStateException")
	wantCode(t, "given back while advertised", second(c.DeprovisionByoipCidr(ctx, &ga.DeprovisionByoipCidrInput{Cidr: one.Cidr})),
		"IncorrectCidrStateException")

	// Addresses go to those who ask for them, and only of the same project.
	plain := w.accelerator(c, "plain")
	own := must[*ga.CreateAcceleratorOutput](t)(c.CreateAccelerator(ctx, create)).Accelerator
	if got := own.IpSets[0].IpAddresses; len(got) != 2 || got[0] != "192.0.2.10" || strings.HasPrefix(got[1], "192.0.2.") ||
		strings.Contains(jsonOf(t, plain.IpSets), "192.0.2.") {
		t.Errorf("addresses %v; one that asked for none has %s", got, jsonOf(t, plain.IpSets))
	}
	user := w.client(v1.Role_ROLE_OPERATOR, "consumer", consumer)
	theirs := &ga.CreateAcceleratorInput{Name: aws.String("theirs"), IpAddresses: []string{"192.0.2.20"}}
	wantCode(t, "another project's address", second(user.CreateAccelerator(ctx, theirs)), "AccessDeniedException")
	attachment := must[*ga.CreateCrossAccountAttachmentOutput](t)(c.CreateCrossAccountAttachment(ctx,
		&ga.CreateCrossAccountAttachmentInput{Name: aws.String("range"), Principals: []string{consumer},
			Resources: []types.Resource{{Cidr: aws.String("192.0.2.0/24")}}})).CrossAccountAttachment
	shared := must[*ga.CreateAcceleratorOutput](t)(user.CreateAccelerator(ctx, theirs)).Accelerator
	wantCode(t, "a share that is used", second(c.DeleteCrossAccountAttachment(ctx,
		&ga.DeleteCrossAccountAttachmentInput{AttachmentArn: attachment.AttachmentArn})), "InvalidArgumentException")
	withdraw := func() error {
		return second(c.WithdrawByoipCidr(ctx, &ga.WithdrawByoipCidrInput{Cidr: one.Cidr}))
	}
	wantCode(t, "withdrawn while it is used", withdraw(), "IncorrectCidrStateException")
	for client, arn := range map[*ga.Client]*string{c: own.AcceleratorArn, user: shared.AcceleratorArn} {
		must[any](t)(client.UpdateAccelerator(ctx, &ga.UpdateAcceleratorInput{AcceleratorArn: arn, Enabled: aws.Bool(false)}))
		must[any](t)(client.DeleteAccelerator(ctx, &ga.DeleteAcceleratorInput{AcceleratorArn: arn}))
	}
	if err := withdraw(); err != nil {
		t.Fatal(err)
	}
	state(types.ByoipCidrStateReady, 3)
	w.set(func() { w.deployed = false })
	state(types.ByoipCidrStatePendingWithdrawing, 3)
	w.set(func() { w.deployed = true })
	back := &ga.DeprovisionByoipCidrInput{Cidr: one.Cidr}
	wantCode(t, "given back while shared", second(c.DeprovisionByoipCidr(ctx, back)), "IncorrectCidrStateException")
	must[any](t)(c.DeleteCrossAccountAttachment(ctx, &ga.DeleteCrossAccountAttachmentInput{AttachmentArn: attachment.AttachmentArn}))
	wantCode(t, "another project's range", second(user.DeprovisionByoipCidr(ctx, back)), "ByoipCidrNotFoundException")
	must[any](t)(c.DeprovisionByoipCidr(ctx, back))
	state(types.ByoipCidrStateDeprovisioned, 4)
	must[any](t)(c.ProvisionByoipCidr(ctx, b.provision(mine, account)))
	must[any](t)(c.ProvisionByoipCidr(ctx, b.provision("192.0.3.0/24", account)))
	wantCode(t, "a third range", second(c.ProvisionByoipCidr(ctx, b.provision("192.0.4.0/24", account))), "LimitExceededException")
}
