package admin

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nearcast/nearcast/controlplane/fleet"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// problems collects what is not as it should be, in sentences for people. Its methods are called worst
// first.
type problems struct {
	now       time.Time
	published *fleet.Published
	newest    uint64     // revision that may have been told since
	nodes     []*v1.Node // with their condition
	list      []string
}

func (w *problems) add(format string, args ...any) {
	if len(w.list) < problemsMax {
		w.list = append(w.list, fmt.Sprintf(format, args...))
	}
}

func (w *problems) store(err error) {
	if err != nil {
		w.add("the store does not take changes: %v", err)
	}
}

func (w *problems) configuration() {
	switch p := w.published; {
	case p.Err != nil:
		w.add("the configuration cannot be compiled, nodes keep revision %d: %v", p.Revision(), p.Err)
	case p.Snapshot == nil:
		w.add("there is no snapshot yet")
	}
}

// rejections lists nodes that refuse what they are told.
func (w *problems) rejections() {
	for _, n := range w.nodes {
		if r := n.GetRejections(); len(r) > 0 && n.GetState() != v1.NodeState_NODE_STATE_REVOKED {
			more := ""
			if len(r) > 1 {
				more = fmt.Sprintf(" (and %d more)", len(r)-1)
			}
			w.add("node %s refuses the snapshot and keeps revision %d: %s: %s%s", n.GetName(),
				n.GetAppliedRevision(), r[0].GetField(), r[0].GetMessage(), more)
		}
	}
}

// announcements lists BGP sessions that are not up, and prefixes that the floor keeps announced.
func (w *problems) announcements(nodes []*v1.NodeAnnouncements) {
	for _, n := range nodes {
		if !n.GetConnected() {
			continue
		}
		for _, p := range n.GetReport().GetSessions() {
			switch p.GetState() {
			case "established", "disabled", "dry run":
			default:
				reason := ""
				if p.GetReason() != "" {
					reason = ": " + p.GetReason()
				}
				w.add("BGP session of node %s with %s (%s) is %s%s", n.GetName(), p.GetPeer(), p.GetAddress(),
					p.GetState(), reason)
			}
		}
		for _, a := range n.GetReport().GetAnnouncements() {
			if a.GetHeld() {
				w.add("node %s announces %s only because too few others do: %s", n.GetName(), a.GetPrefix(),
					a.GetReason())
			}
		}
	}
}

// groups lists groups of enabled accelerators that have no healthy endpoint of weight above 0.
func (w *problems) groups(health []*v1.EndpointHealthStatus) {
	if w.published.State == nil {
		return
	}
	reasons := map[string]map[string]*v1.EndpointHealthStatus{}
	for _, h := range health {
		if reasons[h.GetGroupId()] == nil {
			reasons[h.GetGroupId()] = map[string]*v1.EndpointHealthStatus{}
		}
		reasons[h.GetGroupId()][h.GetEndpointId()] = h
	}
	enabled := map[model.AcceleratorID]string{}
	for _, a := range w.published.State.Accelerators {
		if a.Enabled {
			enabled[a.ID] = a.Name
		}
	}
	of := map[model.ListenerID]model.AcceleratorID{}
	for _, l := range w.published.State.Listeners {
		of[l.ID] = l.Accelerator
	}
	for _, g := range w.published.State.Groups {
		if name, ok := enabled[of[g.Listener]]; ok {
			w.group(name, g, reasons[string(g.ID)])
		}
	}
}

func (w *problems) group(
	accelerator string, g model.EndpointGroup, health map[string]*v1.EndpointHealthStatus) {
	var unhealthy, initial int
	var why string
	for _, e := range g.Endpoints {
		h := health[string(e.ID)]
		switch {
		case e.Weight == 0:
		case h.GetVerdict() == v1.HealthState_HEALTH_STATE_HEALTHY:
			return
		case h.GetVerdict() == v1.HealthState_HEALTH_STATE_UNHEALTHY:
			if unhealthy++; why == "" {
				why = fmt.Sprintf(" (%s: %s)", e.ID, h.GetReason())
			}
		default:
			initial++
		}
	}
	what := fmt.Sprintf("group %s of accelerator %s in region %s", g.ID, accelerator, g.Region)
	var counts []string
	if unhealthy > 0 {
		counts = append(counts, fmt.Sprintf("%d unhealthy%s", unhealthy, why))
	}
	if initial > 0 {
		counts = append(counts, fmt.Sprintf("%d not judged yet", initial))
	}
	if len(counts) > 0 {
		w.add("%s has no healthy endpoint: %s", what, strings.Join(counts, ", "))
	}
}

// condition lists nodes that are away or behind.
func (w *problems) condition() {
	want := w.published.Revision()
	for _, n := range w.nodes {
		switch {
		case n.GetState() == v1.NodeState_NODE_STATE_REVOKED:
		case n.GetLastSeen() == nil:
			w.add("node %s was enrolled and has never connected", n.GetName())
		case !n.GetConnected():
			if away := w.now.Sub(n.GetLastSeen().AsTime()); away > awayAfter {
				w.add("node %s is away for %s", n.GetName(), away.Round(time.Second))
			}
		case n.GetAppliedRevision() > w.newest:
			w.add("node %s has revision %d, which is newer than the cluster's %d: was the store restored "+
				"from a backup?", n.GetName(), n.GetAppliedRevision(), w.newest)
		case n.GetAppliedRevision() < want && len(n.GetRejections()) == 0 &&
			w.now.Sub(w.published.Since) > laggingAfter:
			w.add("node %s is at revision %d and has not answered to %d", n.GetName(),
				n.GetAppliedRevision(), want)
		}
	}
}

// certificates lists those whose end is near or past.
func (w *problems) certificates(roots []*x509.Certificate) {
	for _, n := range w.nodes {
		if n.GetCertificateExpires() == nil || n.GetState() == v1.NodeState_NODE_STATE_REVOKED {
			continue
		}
		switch left := n.GetCertificateExpires().AsTime().Sub(w.now); {
		case left <= 0:
			w.add("the certificate of node %s ended %s ago", n.GetName(), (-left).Round(time.Minute))
		case left < certificateAlarm:
			w.add("the certificate of node %s ends in %s and is not renewed", n.GetName(), left.Round(time.Minute))
		}
	}
	for _, r := range roots {
		if left := r.NotAfter.Sub(w.now); left < caAlarm {
			w.add("the cluster's certificate authority ends in %d days", int(left.Hours()/24))
		}
	}
}

// paths lists nodes that do not reach each other, or not over UDP.
func (w *problems) paths(all []*v1.NodePaths) {
	name, connected := map[string]string{}, map[string]bool{}
	for _, n := range w.nodes {
		name[n.GetId()] = n.GetName()
		connected[n.GetId()] = n.GetConnected() && n.GetState() != v1.NodeState_NODE_STATE_REVOKED
	}
	var down, blocked []string
	for _, p := range all {
		for _, path := range p.GetPaths() {
			if !connected[p.GetNode()] || !connected[path.GetPeer()] {
				continue // who is away is told of already
			}
			pair := name[p.GetNode()] + " and " + name[path.GetPeer()]
			switch {
			case !path.GetUp():
				down = append(down, "node "+name[p.GetNode()]+" does not reach node "+name[path.GetPeer()])
			case !path.GetUdp():
				blocked = append(blocked, "UDP does not pass between nodes "+pair+
					": datagrams ride the TCP carriers")
			}
		}
	}
	for _, list := range [][]string{down, blocked} {
		slices.Sort(list)
		for i, s := range slices.Compact(list) {
			if i == pathProblemsMax {
				w.add("%s", "and more of the same: see the list of paths")
				break
			}
			w.add("%s", s)
		}
	}
}
