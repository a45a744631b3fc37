package model

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestSharingRoundTrips(t *testing.T) {
	at := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	a := Attachment{ID: "a1", Project: "shop", Name: "x", Projects: []string{"p"}, Accelerators: []AcceleratorID{"acc"},
		Resources: []SharedResource{{Endpoint: "i-1", Region: "eu"}, {CIDR: netip.MustParsePrefix("192.0.2.0/24")}},
		Tags:      map[string]string{"k": "v"}, Created: at, Modified: at, Revision: 3}
	if err := a.Validate(); err != nil {
		t.Error(err)
	}
	compare := cmpopts.EquateComparable(netip.Prefix{})
	if got, err := AttachmentFromProto(AttachmentToProto(a)); err != nil || !cmp.Equal(a, got, compare) {
		t.Errorf("%v: %s", err, cmp.Diff(a, got, compare))
	}
	r := BYOIPRange{CIDR: netip.MustParsePrefix("192.0.2.0/24"), Project: "shop", State: BYOIPReady, Pool: "p",
		Events: []BYOIPEvent{{at, "withdrawn"}, {at, "advertised"}}, Revision: 4}
	if got, err := BYOIPRangeFromProto(BYOIPRangeToProto(r)); err != nil || !cmp.Equal(r, got, compare) || !got.Withdrawn() {
		t.Errorf("%v: %s", err, cmp.Diff(r, got, compare))
	}
	d := RangeRecord{CIDR: r.CIDR, Document: "x", Revision: 5}
	if got, err := RangeRecordFromProto(RangeRecordToProto(d)); err != nil || got != d {
		t.Errorf("%v: %+v", err, got)
	}
	p := Pool{Name: "p", Kind: PoolAnycast, Withheld: true}
	if (&SiteBGP{}).Announces(&p) {
		t.Error("a pool that is withheld is announced")
	}
}

func TestAttachmentsThatAreWrong(t *testing.T) {
	for name, edit := range map[string]func(*Attachment){
		"no name":                    func(a *Attachment) { a.Name = "" },
		"no project":                 func(a *Attachment) { a.Project = "" },
		"itself":                     func(a *Attachment) { a.Projects = []string{"shop"} },
		"a project twice":            func(a *Attachment) { a.Projects = []string{"p", "p"} },
		"an accelerator twice":       func(a *Attachment) { a.Accelerators = []AcceleratorID{"a", "a"} },
		"nothing":                    func(a *Attachment) { a.Resources = []SharedResource{{}} },
		"both":                       func(a *Attachment) { a.Resources = []SharedResource{{"i-1", "", netip.MustParsePrefix("::/0")}} },
		"a network's region":         func(a *Attachment) { a.Resources = []SharedResource{{"", "eu", netip.MustParsePrefix("::/0")}} },
		"a resource twice":           func(a *Attachment) { a.Resources = []SharedResource{{Endpoint: "i"}, {Endpoint: "i"}} },
		"a region that cannot be it": func(a *Attachment) { a.Resources = []SharedResource{{Endpoint: "i", Region: "/"}} },
	} {
		a := Attachment{Project: "shop", Name: "x"}
		edit(&a)
		if a.Validate() == nil {
			t.Errorf("%s: it is taken for valid", name)
		}
	}
	for _, p := range []string{"192.0.2.0/25", "192.0.2.1/24", "10.0.0.0/7", "2001:db8::/49", "2001::/18"} {
		if CheckRange("cidr", netip.MustParsePrefix(p)) == nil {
			t.Errorf("%s is taken for a range that can be brought", p)
		}
	}
	for _, p := range []string{"192.0.2.0/24", "2001:db8::/48"} {
		if err := CheckRange("cidr", netip.MustParsePrefix(p)); err != nil {
			t.Error(err)
		}
	}
}
