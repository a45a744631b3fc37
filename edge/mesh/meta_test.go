package mesh

import (
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func TestMeta(t *testing.T) {
	for _, m := range []Meta{
		{},
		{Edge: true, Gateway: true, Site: "ams", Region: "eu-1", Version: "v1.2.3"},
		{Draining: true, Version: "dev"},
	} {
		got, err := parseMeta(appendMeta(nil, m))
		if err != nil || got != m {
			t.Errorf("%+v became %+v, %v", m, got, err)
		}
	}
	long := strings.Repeat("x", 1000)
	b := appendMeta(nil, Meta{Site: model.SiteName(long), Region: model.RegionName(long), Version: long})
	if len(b) > metaBytesMax {
		t.Errorf("%d bytes", len(b))
	}
	if m, err := parseMeta(b); err != nil || len(m.Version) != wordBytesMax {
		t.Errorf("cut words: %v, %d bytes", err, len(m.Version))
	}
	whole := appendMeta(nil, Meta{Site: "ams", Region: "eu", Version: "v1"})
	for n := range whole {
		if _, err := parseMeta(whole[:n]); err == nil {
			t.Errorf("the first %d bytes were accepted", n)
		}
	}
	if _, err := parseMeta(append(whole, "later fields"...)); err != nil {
		t.Errorf("appended fields: %v", err)
	}
	whole[0] = 2
	if _, err := parseMeta(whole); err == nil {
		t.Error("another form was accepted")
	}
}

func FuzzParseMeta(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendMeta(nil, Meta{Edge: true, Site: "ams", Region: "eu", Version: "v1"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		// What was read is written shorter only by what is cut or appended, and reads the same.
		again, err := parseMeta(appendMeta(nil, m))
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Site) <= wordBytesMax && len(m.Region) <= wordBytesMax && len(m.Version) <= wordBytesMax &&
			again != m {
			t.Errorf("%+v reads again as %+v", m, again)
		}
	})
}
