package fleet

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Keys of the store. What nodes say is not configuration: none of it moves the catalog's revision.
const (
	fleetPrefix       = "fleet/"
	nodesPrefix       = "fleet/nodes/"       // <node>: nodeRecord
	connectionsPrefix = "fleet/connections/" // <node>/<controller>, leased: nothing
	controllersPrefix = "fleet/controllers/" // <controller>, leased: controllerRecord
	healthPrefix      = "fleet/health/"      // <prober>/<group>: v1.HealthReport
	pathsPrefix       = "fleet/paths/"       // <node>: v1.NodePaths
	clientsPrefix     = "fleet/clients/"     // <node>: v1.ClientNetworks
	directPrefix      = "fleet/direct/"      // <region>/<network>: v1.DirectPath

	verdictsPrefix = "verdicts/"
	// verdictsRevision is written in every transaction that changes a verdict, so its Modified is the
	// revision of the verdicts as a whole.
	verdictsRevision = "verdicts/revision"
	verdictsGroups   = "verdicts/groups/" // <group>: verdictRecord

	election = "leader"
)

// nodeRecord is what is known of a node's present condition.
type nodeRecord struct {
	Session            string          `json:"session"` // random; whose Sync stream wrote this
	Controller         string          `json:"controller"`
	Version            string          `json:"version,omitempty"`
	AppliedRevision    uint64          `json:"applied_revision,omitempty"`
	AppliedHash        []byte          `json:"applied_hash,omitempty"`
	RejectedRevision   uint64          `json:"rejected_revision,omitempty"`
	Rejections         []*v1.Rejection `json:"rejections,omitempty"`
	Notes              []string        `json:"notes,omitempty"`
	Announce           []byte          `json:"announce,omitempty"` // v1.AnnounceReport
	CertificateExpires time.Time       `json:"certificate_expires,omitzero"`
	LastSeen           time.Time       `json:"last_seen"`
}

// controllerRecord is a controller that is there now.
type controllerRecord struct {
	Address string `json:"address"` // "host:port" for nodes and operators
	Version string `json:"version,omitempty"`
}

// verdictRecord is the verdicts of one group's endpoints; HealthInitial is left out.
type verdictRecord map[model.EndpointID]storedVerdict

type storedVerdict struct {
	State  model.HealthState `json:"state"`
	Reason string            `json:"reason,omitempty"`
	Since  time.Time         `json:"since"`
}

// verdictSet is all verdicts as of one moment.
type verdictSet struct {
	revision uint64 // of verdictsRevision; 0: there were never any
	verdicts map[health.Key]health.Verdict
}

// readVerdicts decodes a listing of verdictsPrefix.
func readVerdicts(items []store.KV) (verdictSet, error) {
	set := verdictSet{verdicts: map[health.Key]health.Verdict{}}
	for _, kv := range items {
		if kv.Key == verdictsRevision {
			set.revision = kv.Modified
			continue
		}
		group, ok := strings.CutPrefix(kv.Key, verdictsGroups)
		if !ok {
			continue
		}
		var record verdictRecord
		if err := json.Unmarshal(kv.Value, &record); err != nil {
			return set, fmt.Errorf("read %s from the store: %w", kv.Key, err)
		}
		for id, v := range record {
			key := health.Key{Group: model.GroupID(group), Endpoint: id}
			set.verdicts[key] = health.Verdict{State: v.State, Reason: v.Reason, Since: v.Since}
		}
	}
	return set, nil
}

// groupVerdicts encodes the verdicts of each group; equal verdicts have equal bytes.
func groupVerdicts(verdicts map[health.Key]health.Verdict) (map[model.GroupID][]byte, error) {
	records := map[model.GroupID]verdictRecord{}
	for k, v := range verdicts {
		if v.State == model.HealthInitial {
			continue
		}
		if records[k.Group] == nil {
			records[k.Group] = verdictRecord{}
		}
		records[k.Group][k.Endpoint] = storedVerdict{State: v.State, Reason: v.Reason, Since: v.Since.UTC()}
	}
	encoded := make(map[model.GroupID][]byte, len(records))
	for group, r := range records {
		value, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encode verdicts: %w", err)
		}
		encoded[group] = value
	}
	return encoded, nil
}

// clip cuts text from outside to what is stored, at a character's border.
func clip(s string, bytesMax int) string {
	if len(s) > bytesMax {
		s = s[:bytesMax]
	}
	return strings.ToValidUTF8(s, "")
}
