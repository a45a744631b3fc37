package countries

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

const (
	prefix      = "countries/"
	databaseKey = "countries/database"
	listsPrefix = "countries/lists/"

	// RevisionKey is written with every change of a list: who builds from lists watches it.
	RevisionKey = "countries/revision"
)

// Set is all lists of the store as of one moment. It is immutable.
type Set struct {
	Revision uint64                       // Modified of RevisionKey; 0: there were never any
	Lists    map[model.CountryCode][]byte // packed networks
}

// Revision returns the revision of the lists that the store has now.
func Revision(ctx context.Context, s *store.Store) (uint64, error) {
	kv, err := s.Get(ctx, RevisionKey)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	return kv.Modified, err
}

// Read returns the lists of the store, or known if they have not changed. They may be newer than its Revision
// says: who needs all of one moment asks Revision again afterwards.
func Read(ctx context.Context, s *store.Store, known Set) (Set, error) {
	revision, err := Revision(ctx, s)
	if err != nil || revision == known.Revision {
		return known, err
	}
	page, err := s.List(ctx, listsPrefix, store.ListOptions{})
	if err != nil {
		return known, err
	}
	set := Set{Revision: revision, Lists: make(map[model.CountryCode][]byte, len(page.Items))}
	for _, kv := range page.Items {
		var l v1.StoredCountryList
		if err := proto.Unmarshal(kv.Value, &l); err != nil {
			return known, fmt.Errorf("read %s from the store: %w", kv.Key, err)
		}
		set.Lists[model.CountryCode(strings.TrimPrefix(kv.Key, listsPrefix))] = l.GetList().GetNetworks()
	}
	return set, nil
}

// head is what a keeper remembers of a stored list.
type head struct {
	modified uint64
	networks int
	source   model.CountrySource
}

// stored is what the store has, without the lists themselves.
type stored struct {
	ready            bool // it has been read
	database         *model.CountryDatabase
	databaseModified uint64
	heads            map[model.CountryCode]head
}

// take takes over what the store told.
func (s *stored) take(u store.Update) error {
	if u.Reset {
		*s = stored{heads: map[model.CountryCode]head{}}
	}
	s.ready = true
	var errs []error
	for _, kv := range u.Puts {
		if err := s.put(kv); err != nil {
			errs = append(errs, fmt.Errorf("read %s from the store: %w", kv.Key, err))
		}
	}
	for _, key := range u.Deletes {
		if key == databaseKey {
			s.database, s.databaseModified = nil, 0
		}
		delete(s.heads, model.CountryCode(strings.TrimPrefix(key, listsPrefix)))
	}
	return errors.Join(errs...)
}

func (s *stored) put(kv store.KV) error {
	if kv.Key == databaseKey {
		var d v1.CountryDatabase
		if err := proto.Unmarshal(kv.Value, &d); err != nil {
			return err
		}
		s.database, s.databaseModified = model.CountryDatabaseFromProto(&d), kv.Modified
		return nil
	}
	code, ok := strings.CutPrefix(kv.Key, listsPrefix)
	if !ok {
		return nil
	}
	h := head{modified: kv.Modified} // also of one that cannot be read, which gives way to any
	var l v1.StoredCountryList
	err := proto.Unmarshal(kv.Value, &l)
	if err == nil {
		h.source = model.CountrySourceFromProto(l.GetSource())
		h.networks, err = model.CountNetworks(l.GetList().GetNetworks())
	}
	s.heads[model.CountryCode(code)] = h
	return err
}
