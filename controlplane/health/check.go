package health

import (
	"context"
	"errors"

	"github.com/nearcast/nearcast/proto/model"
)

// Check probes host (an IP address or DNS name) once as hc says and returns nil if it passed, and
// otherwise why not, in words for people. hc.Port must be set. rules are asked about every address that
// host resolves to, so a name cannot lead the controller where endpoints must not lie.
func Check(ctx context.Context, host string, hc model.HealthCheck, rules *model.EndpointRules) error {
	return errors.New("not built yet")
}
