package edge

import (
	"github.com/nearcast/nearcast/edge/site"
	"github.com/nearcast/nearcast/proto/model"
)

// buildSite makes the part that shares flows with the other nodes of the site, if the kernel program is there.
func (n *Node) buildSite() (err error) {
	b := n.kernel.Balance()
	if b == nil {
		return nil
	}
	n.site, err = site.New(site.Config{
		Log: n.log.With("room", "site"), Metrics: n.registry, Self: n.self, Site: model.SiteName(n.cfg.Site),
		Balancer: b, State: n.siteState,
	})
	return err
}

// siteState is what this node tells the others of its site.
func (n *Node) siteState() site.State {
	s := n.snapshot.Load()
	switch {
	case s == nil:
		return site.Closed
	case n.drained(s):
		return site.Draining
	case len(n.missing()) > 0:
		return site.Closed
	}
	return site.Serving
}
