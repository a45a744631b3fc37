package catalog

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// Config of a Catalog.
type Config struct {
	// Store holds it. Its Run must be running too.
	Store *store.Store
	// Cluster is the cluster's name, put into every State.
	Cluster string
	// Debounce is how long Watch waits for more changes before it tells them. Default 20 ms: what one
	// `nearcast apply` does arrives as few snapshots, and a lone change is hardly delayed.
	Debounce time.Duration

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Options of a change. The zero value is right for most.
type Options struct {
	// ExpectedRevision, when not 0, makes the change fail with Aborted if the object's Revision is
	// another one by now.
	ExpectedRevision uint64
	// IdempotencyToken makes a create that is sent again return what the first one made. At most 255
	// bytes; it lives as long as the object. Creates of accelerators, listeners and groups only.
	IdempotencyToken string
	// Force lets a change through that a guard would refuse (ReasonGuard): one that takes away so much
	// at once that it is more likely a mistake than meant.
	Force bool
}

// PageOptions asks for one page of a listing, oldest object first.
type PageOptions struct {
	Size  int    // 1–1000; 0: 100
	Token string // what the page before returned; empty: the first page
}

// State is the whole configuration at one moment. It is immutable: nobody may change what it refers
// to. The lists are sorted by their keys (ids or names).
type State struct {
	// Revision of the store at which the configuration came to be this. Equal revisions mean equal
	// States at every controller.
	Revision     uint64
	Cluster      string
	Accelerators []model.Accelerator
	Listeners    []model.Listener
	Groups       []model.EndpointGroup // Host of each endpoint is resolved; Health is HealthInitial
	Targets      []model.Target
	Pools        []model.Pool
	Regions      []model.Region
	Sites        []model.Site
	Nodes        []model.Node // all, also revoked ones
	Settings     model.Settings
	GossipKeys   [][]byte // the first one encrypts, all decrypt
}

// Catalog is the configuration of one cluster. Its methods may be called from any goroutine; they wait
// until Run has read the store, within their context. Reads show at least every change that was
// answered, at whichever controller, before the read was asked for.
type Catalog struct {
	cfg Config
}

// New returns a Catalog over cfg.Store. Nothing is started before Run.
func New(cfg Config) (*Catalog, error) { return &Catalog{cfg: cfg}, nil }

// Run follows the store until ctx ends.
func (c *Catalog) Run(ctx context.Context) error { return errNotBuilt }

// Ready is closed once the catalog has been read from the store.
func (c *Catalog) Ready() <-chan struct{} { return nil }

// Load returns the configuration as it is now.
func (c *Catalog) Load(ctx context.Context) (*State, error) { return nil, errNotBuilt }

// Watch calls fn with the present State and then with a fresh one after changes (several close together
// are one call), until ctx ends or fn returns an error, which it returns. It needs no quorum:
// while the store is away it tells nothing.
func (c *Catalog) Watch(ctx context.Context, fn func(*State) error) error { return errNotBuilt }

var errNotBuilt = &Error{Code: Internal, Message: "not built yet"}

// CreateAccelerator makes an accelerator: id, addresses, DNS name and times are given here. Addresses
// may ask for certain free ones of its pools. Pools left empty are chosen.
func (c *Catalog) CreateAccelerator(ctx context.Context, a model.Accelerator, o Options) (model.Accelerator, error) {
	return a, errNotBuilt
}

// Accelerator returns one.
func (c *Catalog) Accelerator(ctx context.Context, id model.AcceleratorID) (model.Accelerator, error) {
	return model.Accelerator{}, errNotBuilt
}

// ListAccelerators returns a page and the token of the next, empty after the last.
func (c *Catalog) ListAccelerators(ctx context.Context, p PageOptions) ([]model.Accelerator, string, error) {
	return nil, "", errNotBuilt
}

// UpdateAccelerator lets change alter the accelerator's name, Enabled, IPAddressType and tags. change gets a
// copy of what is stored and may be called more than once; an error of its own is returned as it is.
func (c *Catalog) UpdateAccelerator(ctx context.Context, id model.AcceleratorID, o Options,
	change func(*model.Accelerator) error) (model.Accelerator, error) {
	return model.Accelerator{}, errNotBuilt
}

// DeleteAccelerator removes a disabled accelerator without listeners.
func (c *Catalog) DeleteAccelerator(ctx context.Context, id model.AcceleratorID, o Options) error {
	return errNotBuilt
}

// CreateListener adds a listener to l.Accelerator.
func (c *Catalog) CreateListener(ctx context.Context, l model.Listener, o Options) (model.Listener, error) {
	return l, errNotBuilt
}

// Listener returns one.
func (c *Catalog) Listener(ctx context.Context, id model.ListenerID) (model.Listener, error) {
	return model.Listener{}, errNotBuilt
}

// ListListeners returns a page of the listeners of one accelerator, or of all with an empty id.
func (c *Catalog) ListListeners(ctx context.Context, of model.AcceleratorID, p PageOptions) ([]model.Listener, string, error) {
	return nil, "", errNotBuilt
}

// UpdateListener lets change alter everything but ID and Accelerator.
func (c *Catalog) UpdateListener(ctx context.Context, id model.ListenerID, o Options,
	change func(*model.Listener) error) (model.Listener, error) {
	return model.Listener{}, errNotBuilt
}

// DeleteListener removes a listener without groups.
func (c *Catalog) DeleteListener(ctx context.Context, id model.ListenerID, o Options) error {
	return errNotBuilt
}

// CreateGroup adds an endpoint group to g.Listener, with the endpoints it has.
func (c *Catalog) CreateGroup(ctx context.Context, g model.EndpointGroup, o Options) (model.EndpointGroup, error) {
	return g, errNotBuilt
}

// Group returns one. Its endpoints' Health is HealthInitial: verdicts are not configuration.
func (c *Catalog) Group(ctx context.Context, id model.GroupID) (model.EndpointGroup, error) {
	return model.EndpointGroup{}, errNotBuilt
}

// ListGroups returns a page of the groups of one listener, or of all with an empty id.
func (c *Catalog) ListGroups(ctx context.Context, of model.ListenerID, p PageOptions) ([]model.EndpointGroup, string, error) {
	return nil, "", errNotBuilt
}

// UpdateGroup lets change alter everything but ID, Listener and Region. change sees HealthCheck.Port as
// it was given: 0 while it follows the listener's first port.
func (c *Catalog) UpdateGroup(ctx context.Context, id model.GroupID, o Options,
	change func(*model.EndpointGroup) error) (model.EndpointGroup, error) {
	return model.EndpointGroup{}, errNotBuilt
}

// DeleteGroup removes a group and its endpoints.
func (c *Catalog) DeleteGroup(ctx context.Context, id model.GroupID, o Options) error {
	return errNotBuilt
}

// AddEndpoints adds new endpoints to a group.
func (c *Catalog) AddEndpoints(ctx context.Context, id model.GroupID, endpoints []model.Endpoint, o Options) (model.EndpointGroup, error) {
	return model.EndpointGroup{}, errNotBuilt
}

// EndpointChange alters one endpoint; nil fields stay as they are.
type EndpointChange struct {
	ID            model.EndpointID
	Weight        *uint8
	ClientAddress *model.ClientAddressMode
}

// UpdateEndpoints alters endpoints that are there.
func (c *Catalog) UpdateEndpoints(ctx context.Context, id model.GroupID, changes []EndpointChange, o Options) (model.EndpointGroup, error) {
	return model.EndpointGroup{}, errNotBuilt
}

// RemoveEndpoints removes the endpoints named. Naming none is InvalidArgument, one that is not there
// NotFound.
func (c *Catalog) RemoveEndpoints(ctx context.Context, id model.GroupID, endpoints []model.EndpointID, o Options) (model.EndpointGroup, error) {
	return model.EndpointGroup{}, errNotBuilt
}

// CreateTarget names an address.
func (c *Catalog) CreateTarget(ctx context.Context, t model.Target, o Options) (model.Target, error) {
	return t, errNotBuilt
}

// Target returns one.
func (c *Catalog) Target(ctx context.Context, name string) (model.Target, error) {
	return model.Target{}, errNotBuilt
}

// ListTargets returns a page.
func (c *Catalog) ListTargets(ctx context.Context, p PageOptions) ([]model.Target, string, error) {
	return nil, "", errNotBuilt
}

// UpdateTarget lets change alter Region, Host and Tags.
func (c *Catalog) UpdateTarget(ctx context.Context, name string, o Options,
	change func(*model.Target) error) (model.Target, error) {
	return model.Target{}, errNotBuilt
}

// DeleteTarget removes a target that no endpoint names.
func (c *Catalog) DeleteTarget(ctx context.Context, name string, o Options) error { return errNotBuilt }

// CreatePool adds a pool.
func (c *Catalog) CreatePool(ctx context.Context, p model.Pool, o Options) (model.Pool, error) {
	return p, errNotBuilt
}

// Pool returns one.
func (c *Catalog) Pool(ctx context.Context, name model.PoolName) (model.Pool, error) {
	return model.Pool{}, errNotBuilt
}

// ListPools returns a page.
func (c *Catalog) ListPools(ctx context.Context, p PageOptions) ([]model.Pool, string, error) {
	return nil, "", errNotBuilt
}

// UpdatePool lets change alter Prefixes and Sites. Addresses that accelerators have must stay inside.
func (c *Catalog) UpdatePool(ctx context.Context, name model.PoolName, o Options,
	change func(*model.Pool) error) (model.Pool, error) {
	return model.Pool{}, errNotBuilt
}

// DeletePool removes a pool that no accelerator uses.
func (c *Catalog) DeletePool(ctx context.Context, name model.PoolName, o Options) error {
	return errNotBuilt
}

// CreateSite adds a site, and its region if that is new.
func (c *Catalog) CreateSite(ctx context.Context, s model.Site, o Options) (model.Site, error) {
	return s, errNotBuilt
}

// Site returns one.
func (c *Catalog) Site(ctx context.Context, name model.SiteName) (model.Site, error) {
	return model.Site{}, errNotBuilt
}

// ListSites returns a page.
func (c *Catalog) ListSites(ctx context.Context, p PageOptions) ([]model.Site, string, error) {
	return nil, "", errNotBuilt
}

// UpdateSite lets change alter everything but Name.
func (c *Catalog) UpdateSite(ctx context.Context, name model.SiteName, o Options,
	change func(*model.Site) error) (model.Site, error) {
	return model.Site{}, errNotBuilt
}

// DeleteSite removes a site that no node and no pool names.
func (c *Catalog) DeleteSite(ctx context.Context, name model.SiteName, o Options) error {
	return errNotBuilt
}

// CreateRegion adds a region by itself.
func (c *Catalog) CreateRegion(ctx context.Context, r model.Region, o Options) (model.Region, error) {
	return r, errNotBuilt
}

// ListRegions returns a page.
func (c *Catalog) ListRegions(ctx context.Context, p PageOptions) ([]model.Region, string, error) {
	return nil, "", errNotBuilt
}

// DeleteRegion removes a region that no site, group or target names.
func (c *Catalog) DeleteRegion(ctx context.Context, name model.RegionName, o Options) error {
	return errNotBuilt
}

// RegisterNode adds a node at enrolment and gives it its ID. A name that another node has is
// AlreadyExists; a site that does not exist is NotFound.
func (c *Catalog) RegisterNode(ctx context.Context, n model.Node) (model.Node, error) {
	return n, errNotBuilt
}

// Node returns one, by id or by name.
func (c *Catalog) Node(ctx context.Context, idOrName string) (model.Node, error) {
	return model.Node{}, errNotBuilt
}

// ListNodes returns a page.
func (c *Catalog) ListNodes(ctx context.Context, p PageOptions) ([]model.Node, string, error) {
	return nil, "", errNotBuilt
}

// UpdateNode lets change alter State and the addresses (State by operators, addresses when a node says
// Hello). A revoked node stays revoked.
func (c *Catalog) UpdateNode(ctx context.Context, id model.NodeID, o Options,
	change func(*model.Node) error) (model.Node, error) {
	return model.Node{}, errNotBuilt
}

// DeleteNode removes a node; its certificate is refused from then on.
func (c *Catalog) DeleteNode(ctx context.Context, id model.NodeID, o Options) error {
	return errNotBuilt
}

// Settings returns the cluster's limits.
func (c *Catalog) Settings(ctx context.Context) (model.Settings, error) {
	return model.Settings{}, errNotBuilt
}

// UpdateSettings lets change alter all of them.
func (c *Catalog) UpdateSettings(ctx context.Context, o Options,
	change func(*model.Settings) error) (model.Settings, error) {
	return model.Settings{}, errNotBuilt
}

// Tag sets tags on the accelerator, listener, group or target called id, keeping its other ones.
func (c *Catalog) Tag(ctx context.Context, id string, tags map[string]string) error {
	return errNotBuilt
}

// Untag removes tags. Naming no key is InvalidArgument; a key that is not there is ignored.
func (c *Catalog) Untag(ctx context.Context, id string, keys []string) error { return errNotBuilt }

// SetGossipKeys replaces the keys that nodes encrypt their gossip with: 1–3 of 16, 24 or 32 bytes.
func (c *Catalog) SetGossipKeys(ctx context.Context, keys [][]byte) error { return errNotBuilt }

// EnsureGossipKey makes a random key if there is none yet.
func (c *Catalog) EnsureGossipKey(ctx context.Context) error { return errNotBuilt }
