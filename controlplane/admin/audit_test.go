package admin

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/access"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestAuditEntry(t *testing.T) {
	const service = "/nearcast.v1.AdminService/"
	for name, tc := range map[string]struct {
		call    access.Call
		object  string
		request string // must be in it
		outcome string
	}{
		"create": {access.Call{Method: service + "CreateListener",
			Request:  &v1.CreateListenerRequest{Listener: &v1.Listener{AcceleratorId: "acc"}},
			Response: &v1.Listener{Id: "4fd0ab12", Revision: 7}}, "listener/4fd0ab12", `"accelerator_id":"acc"`, "ok"},
		"delete": {access.Call{Method: service + "DeleteNode", Request: &v1.DeleteRequest{Id: "n1"}},
			"node/n1", `"id":"n1"`, "ok"},
		"refused": {access.Call{Method: service + "DeleteSite", Request: &v1.DeleteRequest{Id: "ams"},
			Err: status.Error(codes.NotFound, "no such site")}, "site/ams", "ams", "NotFound: no such site"},
		"endpoints": {access.Call{Method: service + "AddEndpoints",
			Request: &v1.AddEndpointsRequest{GroupId: "g1"}}, "endpoints/g1", "g1", "ok"},
		"operator": {access.Call{Method: service + "CreateOperator",
			Request:  &v1.CreateOperatorRequest{Operator: &v1.Operator{Name: "vera"}},
			Response: &v1.CreateOperatorResponse{Operator: &v1.Operator{Name: "vera"}, Secret: "s3cret"}},
			"operator/vera", "vera", "ok"},
		"token": {access.Call{Method: service + "CreateJoinToken",
			Request:  &v1.CreateJoinTokenRequest{Token: &v1.JoinToken{Description: "new racks"}},
			Response: &v1.CreateJoinTokenResponse{Token: &v1.JoinToken{Id: "abc"}, Secret: "s3cret"}},
			"jointoken/abc", "new racks", "ok"},
		"enrol": {access.Call{Method: "/nearcast.v1.EnrollService/Enroll",
			Request: &v1.EnrollRequest{Token: "NC1.s3cret", CertificateRequest: []byte("s3cret"),
				Node: &v1.Node{Name: "n1"}},
			Response: &v1.EnrollResponse{NodeId: "id1"}}, "enroll/id1", "n1", "ok"},
		"settings": {access.Call{Method: service + "UpdateSettings",
			Request:  &v1.UpdateSettingsRequest{Settings: &v1.Settings{AcceleratorsMax: 3}},
			Response: &v1.Settings{Revision: 9}}, "settings", "3", "ok"},
		"nothing": {access.Call{Method: service + "DeletePool"}, "pool", "", "ok"},
	} {
		e := auditEntry(access.Caller{Name: "ada"}, tc.call, time.Now())
		if e.GetObject() != tc.object || !strings.Contains(e.GetRequest(), tc.request) ||
			e.GetOutcome() != tc.outcome || e.GetOperator() != "ada" {
			t.Errorf("%s: %v", name, e)
		}
		if text := e.String(); strings.Contains(text, "s3cret") || strings.Contains(text, "czNjcmV0") {
			t.Errorf("%s: a secret is written down: %s", name, text)
		}
	}
}

func TestAuditRequestIsBounded(t *testing.T) {
	req := &v1.CreateTargetRequest{Target: &v1.Target{Name: strings.Repeat("ü", 100_000)}}
	if n := len(withoutSecrets(req)); n > auditRequestBytes+3 {
		t.Errorf("%d bytes kept, want about %d", n, auditRequestBytes)
	}
	if req.GetTarget().GetName() == "" {
		t.Error("the request itself was changed")
	}
}

func TestAuditKeysSortNewestFirst(t *testing.T) {
	now := time.Now()
	if a, b := auditKey(now.Add(time.Microsecond)), auditKey(now); a >= b {
		t.Errorf("the newer key %s is not before the older %s", a, b)
	}
}

// Whatever a request holds: no panic, and no secret.
func FuzzAuditEntry(f *testing.F) {
	for _, m := range []proto.Message{
		&v1.EnrollRequest{Token: "x", Node: &v1.Node{Name: "n"}},
		&v1.UpdateEndpointGroupRequest{Group: &v1.EndpointGroup{Id: "g", Tags: map[string]string{"a": "b"}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []proto.Message{&v1.EnrollRequest{}, &v1.UpdateEndpointGroupRequest{},
			&v1.CreateAcceleratorRequest{}} {
			if proto.Unmarshal(b, m) != nil {
				continue
			}
			auditEntry(access.Caller{}, access.Call{Method: "/s/CreateX", Request: m}, time.Now())
			if e, ok := m.(*v1.EnrollRequest); ok && len(e.GetToken()) > 12 &&
				strings.Contains(withoutSecrets(m), e.GetToken()) &&
				!strings.Contains(e.GetNode().String(), e.GetToken()) {
				t.Errorf("the token is written down: %s", withoutSecrets(m))
			}
		}
	})
}
