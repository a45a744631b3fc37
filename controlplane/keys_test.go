package controlplane

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestAccessKeysThroughTheAPI(t *testing.T) {
	c := start(t)
	admin := adminOf(t, c.cfg.DataDir, c.addr)
	made := must[*v1.AccessKeySecret](t)(admin.CreateAccessKey(t.Context(), &v1.CreateAccessKeyRequest{
		Key: &v1.AccessKey{Role: v1.Role_ROLE_OPERATOR, Project: "shop", AccountId: "123456789012"}}))
	if k := made.GetKey(); k.GetProject() != "shop" || k.GetAccountId() != "123456789012" ||
		k.GetCreatedBy() != "admin" || k.GetExpires() != nil || len(made.GetSecret()) != 40 {
		t.Errorf("made %v", k)
	}
	next := must[*v1.AccessKeySecret](t)(admin.RotateAccessKey(t.Context(), &v1.RotateAccessKeyRequest{
		Id: made.GetKey().GetId(), Grace: durationpb.New(3600e9)}))
	list := must[*v1.ListAccessKeysResponse](t)(admin.ListAccessKeys(t.Context(), &v1.ListRequest{}))
	if len(list.GetKeys()) != 2 || list.GetKeys()[0].GetExpires() == nil {
		t.Errorf("listed %v", list)
	}
	if strings.Contains(list.String(), made.GetSecret()) || strings.Contains(list.String(), next.GetSecret()) {
		t.Error("a list has a secret in it")
	}
	if _, err := admin.DeleteAccessKey(t.Context(), &v1.DeleteRequest{Id: next.GetKey().GetId()}); err != nil {
		t.Fatal(err)
	}
	_, err := admin.DeleteAccessKey(t.Context(), &v1.DeleteRequest{Id: next.GetKey().GetId()})
	wantCode(t, "to revoke a key twice", err, codes.NotFound)
	_, err = admin.RotateAccessKey(t.Context(), &v1.RotateAccessKeyRequest{Id: made.GetKey().GetId(),
		Grace: durationpb.New(-1)})
	wantCode(t, "a negative grace", err, codes.InvalidArgument)
	_, err = admin.CreateAccessKey(t.Context(), &v1.CreateAccessKeyRequest{})
	wantCode(t, "a key without a role", err, codes.InvalidArgument)
	audit := must[*v1.ListAuditResponse](t)(admin.ListAudit(t.Context(), &v1.ListRequest{}))
	if s := audit.String(); !strings.Contains(s, "CreateAccessKey") || strings.Contains(s, made.GetSecret()) {
		t.Error("the audit log does not tell of the key, or tells its secret")
	}
}
