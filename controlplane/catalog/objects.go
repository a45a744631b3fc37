package catalog

import (
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// Keys of the store. All of the configuration lies under one prefix, so that one watch sees it whole.
const (
	configPrefix = "config/"
	// guardKey is written with every change and compared by every change: two changes that read the
	// same configuration cannot both be made. Its KV.Modified is the configuration's revision.
	guardKey     = configPrefix + "guard"
	gossipKey    = configPrefix + "gossip-keys"
	cookiesKey   = configPrefix + "cookie-secrets"
	tokensPrefix = "tokens/"
)

// token remembers what a create with an idempotency token made.
type token struct {
	ID      string `json:"-"`       // hash of method, project and token
	Request string `json:"request"` // hash of the request
	Object  string `json:"object"`  // id of what it made
}

var tokenKind = &kind[string, token]{
	name: "idempotency token", prefix: tokensPrefix,
	key:      func(t *token) string { return t.ID },
	revision: func(*token) *uint64 { return new(uint64) },
	clone:    func(t token) token { return t },
	encode:   func(t token) ([]byte, error) { return json.Marshal(t) },
	decode: func(b []byte) (t token, err error) {
		err = json.Unmarshal(b, &t)
		return t, err
	},
}

// objects is the whole configuration, as the store has it or as a change is about to make it.
type objects struct {
	accelerators table[model.AcceleratorID, model.Accelerator]
	listeners    table[model.ListenerID, model.Listener]
	groups       table[model.GroupID, model.EndpointGroup]
	targets      table[string, model.Target]
	pools        table[model.PoolName, model.Pool]
	regions      table[model.RegionName, model.Region]
	sites        table[model.SiteName, model.Site]
	nodes        table[model.NodeID, model.Node]
	peers        table[model.PeerID, model.BGPPeer]
	subnets      table[model.SubnetName, model.Subnet]
	customGroups table[model.GroupID, model.CustomRoutingGroup]
	setting      table[string, model.Settings]
	tokens       table[string, token]
	zones        table[model.ZoneName, model.Zone]
	steer        table[string, model.Steering]
	attachments  table[model.AttachmentID, model.Attachment]
	ranges       table[string, model.BYOIPRange]
	records      table[string, model.RangeRecord]
	gossip       [][]byte
	cookies      []cookieSecret

	guard    uint64           // KV.Modified of guardKey; 0: nothing was ever configured
	revision uint64           // of the store, up to which all this is known
	broken   map[string]error // keys that this version cannot read
}

func newObjects() *objects {
	return &objects{
		accelerators: newTable(acceleratorKind), listeners: newTable(listenerKind),
		groups: newTable(groupKind), targets: newTable(targetKind), pools: newTable(poolKind),
		regions: newTable(regionKind), sites: newTable(siteKind), nodes: newTable(nodeKind),
		peers:   newTable(peerKind),
		subnets: newTable(subnetKind), customGroups: newTable(customGroupKind),
		setting: newTable(settingsKind), tokens: newTable(tokenKind), broken: map[string]error{},
		zones: newTable(zoneKind), steer: newTable(steeringKind),
		attachments: newTable(attachmentKind), ranges: newTable(rangeKind), records: newTable(recordKind),
	}
}

// view returns objects in which a change can be staged without touching o.
func (o *objects) view() *objects {
	v := *o
	v.accelerators, v.listeners, v.groups = o.accelerators.view(), o.listeners.view(), o.groups.view()
	v.targets, v.pools, v.regions = o.targets.view(), o.pools.view(), o.regions.view()
	v.peers = o.peers.view()
	v.sites, v.nodes, v.setting, v.tokens = o.sites.view(), o.nodes.view(), o.setting.view(), o.tokens.view()
	v.subnets, v.customGroups = o.subnets.view(), o.customGroups.view()
	v.zones, v.steer = o.zones.view(), o.steer.view()
	v.attachments, v.ranges, v.records = o.attachments.view(), o.ranges.view(), o.records.view()
	return &v
}

// apply takes over what the store says.
func (o *objects) apply(u store.Update) {
	if u.Reset {
		*o = *newObjects()
	}
	for _, key := range u.Deletes {
		o.remove(key)
	}
	for _, kv := range u.Puts {
		delete(o.broken, kv.Key)
		if err := o.load(kv); err != nil {
			o.broken[kv.Key] = err
		}
	}
	o.revision = u.Revision
}

func (o *objects) load(kv store.KV) error {
	switch kv.Key {
	case guardKey:
		o.guard = kv.Modified
		return nil
	case gossipKey:
		o.gossip = nil
		return json.Unmarshal(kv.Value, &o.gossip)
	case cookiesKey:
		o.cookies = nil
		return json.Unmarshal(kv.Value, &o.cookies)
	}
	kind, name := splitKey(kv.Key)
	switch kind {
	case acceleratorKind.prefix:
		return o.accelerators.load(model.AcceleratorID(name), kv.Value, kv.Created, kv.Modified)
	case listenerKind.prefix:
		return o.listeners.load(model.ListenerID(name), kv.Value, kv.Created, kv.Modified)
	case groupKind.prefix:
		return o.groups.load(model.GroupID(name), kv.Value, kv.Created, kv.Modified)
	case targetKind.prefix:
		return o.targets.load(name, kv.Value, kv.Created, kv.Modified)
	case poolKind.prefix:
		return o.pools.load(model.PoolName(name), kv.Value, kv.Created, kv.Modified)
	case regionKind.prefix:
		return o.regions.load(model.RegionName(name), kv.Value, kv.Created, kv.Modified)
	case siteKind.prefix:
		return o.sites.load(model.SiteName(name), kv.Value, kv.Created, kv.Modified)
	case nodeKind.prefix:
		return o.nodes.load(model.NodeID(name), kv.Value, kv.Created, kv.Modified)
	case peerKind.prefix:
		return o.peers.load(model.PeerID(name), kv.Value, kv.Created, kv.Modified)
	case subnetKind.prefix:
		return o.subnets.load(model.SubnetName(name), kv.Value, kv.Created, kv.Modified)
	case customGroupKind.prefix:
		return o.customGroups.load(model.GroupID(name), kv.Value, kv.Created, kv.Modified)
	case zoneKind.prefix:
		return o.zones.load(model.ZoneName(name), kv.Value, kv.Created, kv.Modified)
	case steeringKind.prefix:
		return o.steer.load(name, kv.Value, kv.Created, kv.Modified)
	case attachmentKind.prefix:
		return o.attachments.load(model.AttachmentID(name), kv.Value, kv.Created, kv.Modified)
	case rangeKind.prefix:
		return o.ranges.load(name, kv.Value, kv.Created, kv.Modified)
	case recordKind.prefix:
		return o.records.load(name, kv.Value, kv.Created, kv.Modified)
	case settingsKind.prefix:
		return o.setting.load(name, kv.Value, kv.Created, kv.Modified)
	case tokenKind.prefix:
		var t token
		if err := json.Unmarshal(kv.Value, &t); err != nil {
			return err
		}
		t.ID = name
		o.tokens.base[name] = &entry[token]{t, kv.Created, kv.Modified}
		return nil
	}
	return fmt.Errorf("a kind of object that this version does not know")
}

func (o *objects) remove(key string) {
	delete(o.broken, key)
	switch key {
	case guardKey:
		o.guard = 0
		return
	case gossipKey:
		o.gossip = nil
		return
	case cookiesKey:
		o.cookies = nil
		return
	}
	kind, name := splitKey(key)
	switch kind {
	case acceleratorKind.prefix:
		delete(o.accelerators.base, model.AcceleratorID(name))
	case listenerKind.prefix:
		delete(o.listeners.base, model.ListenerID(name))
	case groupKind.prefix:
		delete(o.groups.base, model.GroupID(name))
	case targetKind.prefix:
		delete(o.targets.base, name)
	case poolKind.prefix:
		delete(o.pools.base, model.PoolName(name))
	case regionKind.prefix:
		delete(o.regions.base, model.RegionName(name))
	case siteKind.prefix:
		delete(o.sites.base, model.SiteName(name))
	case nodeKind.prefix:
		delete(o.nodes.base, model.NodeID(name))
	case peerKind.prefix:
		delete(o.peers.base, model.PeerID(name))
	case subnetKind.prefix:
		delete(o.subnets.base, model.SubnetName(name))
	case customGroupKind.prefix:
		delete(o.customGroups.base, model.GroupID(name))
	case zoneKind.prefix:
		delete(o.zones.base, model.ZoneName(name))
	case steeringKind.prefix:
		delete(o.steer.base, name)
	case attachmentKind.prefix:
		delete(o.attachments.base, model.AttachmentID(name))
	case rangeKind.prefix:
		delete(o.ranges.base, name)
	case recordKind.prefix:
		delete(o.records.base, name)
	case settingsKind.prefix:
		delete(o.setting.base, name)
	case tokenKind.prefix:
		delete(o.tokens.base, name)
	}
}

// splitKey parts "config/listeners/4fd0ab12" into "listeners/" and "4fd0ab12".
func splitKey(key string) (kind, name string) {
	key = strings.TrimPrefix(key, configPrefix)
	if i := strings.IndexByte(key, '/'); i >= 0 {
		return key[:i+1], key[i+1:]
	}
	return "", key
}

// readable returns an error while anything is stored that this version cannot read: rules that span
// objects cannot be kept over what is not understood, and a State without it would be wrong.
func (o *objects) readable() error {
	for key, err := range o.broken {
		return &Error{Code: Internal, Err: err, Message: fmt.Sprintf(
			"%d stored objects cannot be read by this version, like %s: %v", len(o.broken), key, err)}
	}
	return nil
}

// settings returns the settings, or the defaults if none were ever set.
func (o *objects) settings() model.Settings {
	if s := o.setting.get(settingsKey); s != nil {
		return *s
	}
	s, _ := model.SettingsFromProto(nil) // nothing in nothing can be wrong
	return s
}

func (o *objects) listenersOf(a model.AcceleratorID) iter.Seq[*model.Listener] {
	return where(o.listeners.all(), func(l *model.Listener) bool { return l.Accelerator == a })
}

func (o *objects) groupsOf(l model.ListenerID) iter.Seq[*model.EndpointGroup] {
	return where(o.groups.all(), func(g *model.EndpointGroup) bool { return g.Listener == l })
}

func where[T any](in iter.Seq[*T], keep func(*T) bool) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for v := range in {
			if keep(v) && !yield(v) {
				return
			}
		}
	}
}

// inOrder makes a rule's first finding the same each time.
func inOrder[T any, K ~string](in iter.Seq[*T], key func(*T) K) []*T {
	return slices.SortedFunc(in, func(a, b *T) int { return strings.Compare(string(key(a)), string(key(b))) })
}

// acceleratorOut returns a as callers see it.
func (o *objects) acceleratorOut(a *model.Accelerator) model.Accelerator {
	out := acceleratorKind.clone(*a)
	if o.targets.len() == 0 {
		return out // most often, and then nothing below need be looked at: a tenth of the time of a busy API
	}
	for l := range o.listenersOf(a.ID) {
		for g := range o.groupsOf(l.ID) {
			out.Revision = max(out.Revision, o.targetsRevision(g))
		}
	}
	return out
}

// targetRevisions is targetsRevision of all groups of each accelerator, in one pass.
func (o *objects) targetRevisions() map[model.AcceleratorID]uint64 {
	revisions := map[model.AcceleratorID]uint64{}
	if o.targets.len() == 0 {
		return revisions
	}
	for g := range o.groups.all() {
		if l := o.listeners.get(g.Listener); l != nil {
			revisions[l.Accelerator] = max(revisions[l.Accelerator], o.targetsRevision(g))
		}
	}
	return revisions
}

// targetsRevision is the revision of the last change to a target that g uses: what lies beside an
// accelerator changes what nodes do for it, too.
func (o *objects) targetsRevision(g *model.EndpointGroup) (revision uint64) {
	for i := range g.Endpoints {
		if t := o.targets.get(string(g.Endpoints[i].ID)); t != nil {
			revision = max(revision, t.Revision)
		}
	}
	return revision
}

// groupOut returns g as callers see it: endpoints resolved, the health check's port filled in.
func (o *objects) groupOut(g *model.EndpointGroup) model.EndpointGroup {
	out := groupKind.clone(*g)
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		e.Host, _ = o.resolve(e.ID)
	}
	if l := o.listeners.get(g.Listener); l != nil && out.HealthCheck.Port == 0 {
		out.HealthCheck.Port = l.PortRanges[0].From
	}
	return out
}

// state compiles the State of o, which is not a view.
func (o *objects) state(cluster string) *State {
	s := &State{
		Revision:     o.guard,
		Cluster:      cluster,
		Accelerators: o.accelerators.sorted(),
		Listeners:    o.listeners.sorted(),
		Groups:       o.groups.sorted(),
		Targets:      o.targets.sorted(),
		Pools:        o.pools.sorted(),
		Regions:      o.regions.sorted(),
		Sites:        o.sites.sorted(),
		Nodes:        o.nodes.sorted(),
		BGPPeers:     o.peers.sorted(),
		Settings:     settingsKind.clone(o.settings()),
		GossipKeys:   o.gossip,

		Subnets:             o.subnets.sorted(),
		CustomRoutingGroups: o.customGroups.sorted(),
		Zones:               o.zones.sorted(),
		Steering:            o.steering().Clone(),
		Cookies:             secrets(o.cookies),
	}
	for i := range s.Groups {
		s.Groups[i] = o.groupOut(&s.Groups[i])
	}
	revisions := o.targetRevisions()
	for i := range s.Accelerators {
		a := &s.Accelerators[i]
		a.Revision = max(a.Revision, revisions[a.ID])
	}
	return s
}
