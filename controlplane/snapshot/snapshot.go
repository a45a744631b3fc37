// Package snapshot answers: what are the nodes told?
package snapshot

import (
	"errors"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/proto/model"
)

// Build compiles a State and the health verdicts into what every node is told, numbered revision: the
// greater of the store revisions that the two came from. It is pure: the same input makes the same
// snapshot, byte for byte, at every controller. The snapshot has passed Consistent; an error means that
// the State breaks a rule that the catalog should have kept, and that nothing must be sent.
func Build(s *catalog.State, verdicts map[health.Key]health.Verdict, revision uint64) (*model.Snapshot, error) {
	return nil, errors.New("not built yet")
}
