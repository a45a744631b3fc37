package admin

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func paths(p ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: p} }

func storedGroup(t *testing.T) model.EndpointGroup {
	t.Helper()
	g, err := model.EndpointGroupFromProto(&v1.EndpointGroup{
		Id: "0123456789ab", ListenerId: "01234567", Region: "eu", TrafficDial: proto.Float32(50),
		HealthCheck: &v1.HealthCheck{Protocol: v1.HealthProtocol_HEALTH_PROTOCOL_HTTP, Path: "/up",
			Interval: durationpb.New(10 * time.Second)},
		Endpoints: []*v1.Endpoint{{Id: "192.0.2.1", Weight: proto.Uint32(7)}},
		Tags:      map[string]string{"a": "b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestMaskChangesWhatItNames(t *testing.T) {
	for name, tc := range map[string]struct {
		request *v1.EndpointGroup
		mask    []string
		check   func(before, after model.EndpointGroup) bool
	}{
		"dial": {&v1.EndpointGroup{TrafficDial: proto.Float32(0)}, []string{"traffic_dial"},
			func(_, g model.EndpointGroup) bool { return g.TrafficDial == 0 && len(g.Endpoints) == 1 }},
		"dial absent is the default": {&v1.EndpointGroup{}, []string{"traffic_dial"},
			func(_, g model.EndpointGroup) bool { return g.TrafficDial == 100 }},
		"one field of the check": {&v1.EndpointGroup{HealthCheck: &v1.HealthCheck{Path: "/live"}},
			[]string{"health_check.path"}, func(b, g model.EndpointGroup) bool {
				b.HealthCheck.Path = "/live"
				return g.HealthCheck == b.HealthCheck
			}},
		"a field of an absent check": {&v1.EndpointGroup{}, []string{"health_check.path"},
			func(_, g model.EndpointGroup) bool { return g.HealthCheck.Path == "/" }},
		"the whole check": {&v1.EndpointGroup{HealthCheck: &v1.HealthCheck{Path: "/live"}},
			[]string{"health_check"}, func(_, g model.EndpointGroup) bool {
				return g.HealthCheck.Path == "/live" && g.HealthCheck.Interval == model.DefaultHealthInterval
			}},
		"no endpoints": {&v1.EndpointGroup{}, []string{"endpoints"},
			func(_, g model.EndpointGroup) bool { return len(g.Endpoints) == 0 && len(g.Tags) == 1 }},
		"what is not named stays": {&v1.EndpointGroup{Region: "us", Tags: map[string]string{"x": "y"},
			TrafficDial: proto.Float32(1)}, []string{"tags"}, func(_, g model.EndpointGroup) bool {
			return g.Region == "eu" && g.TrafficDial == 50 && g.Tags["x"] == "y" && g.Tags["a"] == ""
		}},
		"two": {&v1.EndpointGroup{TrafficDial: proto.Float32(1)}, []string{"traffic_dial", "tags"},
			func(_, g model.EndpointGroup) bool { return g.TrafficDial == 1 && len(g.Tags) == 0 }},
	} {
		change, err := groups.change(tc.request, paths(tc.mask...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		g := storedGroup(t)
		if err := change(&g); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !tc.check(storedGroup(t), g) {
			t.Errorf("%s: %+v", name, g)
		}
	}
}

func TestBadMasks(t *testing.T) {
	for name, mask := range map[string]*fieldmaskpb.FieldMask{
		"none": nil, "empty": paths(), "output": paths("revision"), "immutable": paths("region"),
		"id": paths("id"), "star": paths("*"), "unknown": paths("tags", "colour"), "nothing": paths(""),
		"inside a list": paths("endpoints.weight"), "inside a map": paths("tags.a"),
		"too deep": paths("traffic_dial.x"), "unknown below": paths("health_check.colour"),
		"dots": paths("health_check."),
	} {
		_, err := groups.change(&v1.EndpointGroup{}, mask)
		var fields model.FieldErrors
		if !errors.As(err, &fields) {
			t.Errorf("%s: %v, want an error that names the mask", name, err)
		}
	}
	if _, err := groups.change(nil, paths("tags")); err == nil {
		t.Error("a request without an object is accepted")
	}
}

// Every field that an update may name exists, and what a method cannot change is not among them.
func TestWritableFieldsExist(t *testing.T) {
	check := func(m proto.Message, writable []string) {
		for _, name := range writable {
			if !hasField(m.ProtoReflect().Descriptor(), []string{name}) {
				t.Errorf("%T has no field %q", m, name)
			}
			if name == "id" || name == "revision" {
				t.Errorf("%T: %q must not be writable", m, name)
			}
		}
	}
	check(&v1.Accelerator{}, accelerators.writable)
	check(&v1.Listener{}, listeners.writable)
	check(&v1.EndpointGroup{}, groups.writable)
	check(&v1.Target{}, targets.writable)
	check(&v1.Pool{}, pools.writable)
	check(&v1.Site{}, sites.writable)
	check(&v1.Node{}, nodes.writable)
	check(&v1.Settings{}, settings.writable)
}

func FuzzMask(f *testing.F) {
	f.Add("health_check.path", []byte{})
	f.Add("traffic_dial", []byte{37, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, path string, b []byte) {
		request := new(v1.EndpointGroup)
		if proto.Unmarshal(b, request) != nil {
			return
		}
		if change, err := groups.change(request, paths(path)); err == nil {
			g := model.EndpointGroup{ID: "0123456789ab"}
			_ = change(&g)
		}
	})
}

func TestPages(t *testing.T) {
	all := make([]string, 250)
	for i := range all {
		all[i] = fmt.Sprintf("%04d", 2*i)
	}
	key := func(s string) string { return s }
	var got []string
	token := ""
	for range 10 {
		page, next, err := pageOf(&v1.ListRequest{PageSize: 60, PageToken: token}, all, key)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page...)
		if token = next; next == "" {
			break
		}
		// What goes and comes before the place changes nothing.
		all = append([]string{"0001"}, all[1:]...)
	}
	if len(got) != 250 || got[249] != "0498" {
		t.Errorf("%d items, last %s", len(got), got[len(got)-1])
	}
	if page, _, _ := pageOf(&v1.ListRequest{}, all, key); len(page) != pageSizeDefault {
		t.Errorf("a page has %d items by default, want %d", len(page), pageSizeDefault)
	}
	for _, bad := range []*v1.ListRequest{{PageSize: pageSizeMax + 1}, {PageToken: "?"}} {
		if _, _, err := pageOf(bad, all, key); err == nil {
			t.Errorf("%v: accepted", bad)
		}
	}
}
