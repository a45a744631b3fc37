package awsapi

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nearcast/nearcast/controlplane/access"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// FuzzTokens gives any text as a listing's token: it is refused as one, or it is one of the listing's own form and
// leads to a page that is no larger than asked for.
func FuzzTokens(f *testing.F) {
	w := newWorld(f)
	c := w.operator()
	for i := range 3 {
		w.accelerator(c, fmt.Sprint("a", i))
	}
	key := access.AccessKey{ID: "k", Role: v1.Role_ROLE_OPERATOR, Project: "default", Account: account}
	h := must[*Handler](f)(New(w.bare()))
	for _, token := range []string{"accelerators-1", "resources-1", "ranges-", "attachments-zz", "accelerators--1", "x",
		"accelerators-zzzzzzzzzzzzzzzzz", "custom-accelerators-1", "mappings-0", ""} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		size := int64(2)
		owner := account
		lists := map[string]func() (map[string]any, error){
			"ListAccelerators": func() (map[string]any, error) {
				return call{h, key}.listAccelerators(t.Context(), &listRequest{&size, &token})
			},
			"ListCustomRoutingAccelerators": func() (map[string]any, error) {
				return call{h, key}.listCustomAccelerators(t.Context(), &listRequest{&size, &token})
			},
			"ListByoipCidrs": func() (map[string]any, error) {
				return call{h, key}.listCidrs(t.Context(), &listRequest{&size, &token})
			},
			"ListCrossAccountAttachments": func() (map[string]any, error) {
				return call{h, key}.listAttachments(t.Context(), &listRequest{&size, &token})
			},
			"ListCrossAccountResources": func() (map[string]any, error) {
				return call{h, key}.listResources(t.Context(), &listCrossAccountResources{nil, &owner, &size, &token})
			},
		}
		taken := 0
		for name, list := range lists {
			answer, err := list()
			if err != nil {
				fault, theirs := operations[targetPrefix+name].translate(err, account)
				if !theirs || fault.code != exInvalidToken {
					t.Errorf("%s %q: %v", name, token, errors.Join(err, fault))
				}
				continue
			}
			taken++
			for member, items := range answer {
				if list, ok := items.([]acceleratorOut); ok && len(list) > int(size) {
					t.Errorf("%s %q: %d %s", name, token, len(list), member)
				}
			}
		}
		if taken > 1 {
			t.Errorf("%q is a token of %d listings", token, taken)
		}
	})
}
