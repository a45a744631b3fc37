package admin

import (
	"errors"
	"log/slog"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/countries"
	"github.com/nearcast/nearcast/controlplane/enroll"
	"github.com/nearcast/nearcast/controlplane/fleet"
	"github.com/nearcast/nearcast/controlplane/store"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Config of the AdminService. All but Log are needed.
type Config struct {
	Catalog   *catalog.Catalog
	Fleet     *fleet.Fleet
	Authority *enroll.Authority
	Tokens    *enroll.Tokens
	Operators *access.Operators
	Keys      *access.Keys
	Audit     *Audit
	Store     *store.Store // asked for its health only
	Countries *countries.Keeper

	Log *slog.Logger // nil: discarded
}

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Catalog == nil || c.Fleet == nil || c.Authority == nil || c.Tokens == nil || c.Operators == nil ||
		c.Keys == nil || c.Audit == nil || c.Store == nil || c.Countries == nil {
		return errors.New("admin: Catalog, Fleet, Authority, Tokens, Operators, Keys, Audit, Store and Countries must be set")
	}
	return nil
}

// Service is what operators call.
type Service interface {
	v1.AdminServiceServer
	v1.CustomRoutingServiceServer
	v1.SharingServiceServer
}

// service is Service. Its methods are documented in the schema.
type service struct {
	v1.UnimplementedAdminServiceServer
	v1.UnimplementedCustomRoutingServiceServer
	v1.UnimplementedSharingServiceServer
	cfg Config
	log *slog.Logger
}

// New makes the Service. It needs access.Guard before it.
func New(cfg Config) (Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &service{cfg: cfg, log: log}, nil
}
