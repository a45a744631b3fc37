package admin

import (
	"context"
	"encoding/base64"
	"fmt"
	"sort"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// listed asks the catalog for the page that a request names and translates it.
func listed[M, P any](ctx context.Context, req *v1.ListRequest, to func(M) P,
	fetch func(context.Context, catalog.PageOptions) ([]M, string, error)) ([]P, string, error) {
	items, next, err := fetch(ctx, catalog.PageOptions{Size: int(req.GetPageSize()), Token: req.GetPageToken()})
	if err != nil {
		return nil, "", err
	}
	out := make([]P, len(items))
	for i, m := range items {
		out[i] = to(m)
	}
	return out, next, nil
}

// pageOf cuts the page that a request names out of items, which are sorted by key. A page token is the
// key of the last item before, so what is created or deleted meanwhile shifts nothing.
func pageOf[T any](req *v1.ListRequest, items []T, key func(T) string) (page []T, next string, err error) {
	size, after, err := pageRequest(req)
	if err != nil {
		return nil, "", err
	}
	if after != "" {
		items = items[sort.Search(len(items), func(i int) bool { return key(items[i]) > after }):]
	}
	if len(items) <= size {
		return items, "", nil
	}
	return items[:size], pageToken(key(items[size-1])), nil
}

// pageRequest reads what page is asked for.
func pageRequest(req *v1.ListRequest) (size int, after string, err error) {
	size = int(req.GetPageSize())
	if size == 0 {
		size = pageSizeDefault
	}
	if size > pageSizeMax {
		return 0, "", access.Invalid("page_size", fmt.Sprintf("must be at most %d", pageSizeMax))
	}
	token := req.GetPageToken()
	key, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(token) > pageTokenMax {
		return 0, "", access.Invalid("page_token", "is not one that a list returned")
	}
	return size, string(key), nil
}

func pageToken(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

// noParent refuses a parent where there is nothing to narrow: silently listing everything could make a
// caller believe that all of it belongs to the parent.
func noParent(req *v1.ListRequest) error {
	if req.GetParent() != "" {
		return access.Invalid("parent", "must be empty here")
	}
	return nil
}
