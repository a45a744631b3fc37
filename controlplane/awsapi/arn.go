package awsapi

import (
	"strings"

	"github.com/nearcast/nearcast/proto/model"
)

// resource is what an ARN names: an accelerator, or a listener or group below one.
//
//	arn:aws:globalaccelerator::123456789012:accelerator/<uuid>/listener/<8 hex>/endpoint-group/<12 hex>
//
// Clients take such ARNs apart and put them together themselves, so their form is fixed.
type resource struct {
	account     string
	accelerator model.AcceleratorID
	listener    model.ListenerID // "" for an accelerator
	group       model.GroupID    // "" for an accelerator or listener
	attachment  string           // set for an attachment, and then nothing else is
}

const arnPrefix = "arn:aws:globalaccelerator::"

func acceleratorARN(account string, a model.AcceleratorID) string {
	return arnPrefix + account + ":accelerator/" + string(a)
}

func listenerARN(account string, a model.AcceleratorID, l model.ListenerID) string {
	return acceleratorARN(account, a) + "/listener/" + string(l)
}

func groupARN(account string, a model.AcceleratorID, l model.ListenerID, g model.GroupID) string {
	return listenerARN(account, a, l) + "/endpoint-group/" + string(g)
}

// parseARN reads one of ours. Ids may have any form: those that do not exist are not found.
func parseARN(s string) (r resource, ok bool) {
	rest, ok := strings.CutPrefix(s, arnPrefix)
	if !ok {
		return r, false
	}
	var path string
	if r.account, path, ok = strings.Cut(rest, ":"); !ok || len(r.account) != 12 {
		return r, false
	}
	parts := strings.Split(path, "/")
	for _, p := range parts {
		if p == "" {
			return r, false
		}
	}
	words := []string{"accelerator", "listener", "endpoint-group"}
	if len(parts) == 2 && parts[0] == "attachment" {
		r.attachment = parts[1]
		return r, true
	}
	if len(parts)%2 != 0 || len(parts) > 6 {
		return r, false
	}
	for i := 0; i < len(parts); i += 2 {
		if parts[i] != words[i/2] {
			return r, false
		}
	}
	r.accelerator = model.AcceleratorID(parts[1])
	if len(parts) > 2 {
		r.listener = model.ListenerID(parts[3])
	}
	if len(parts) > 4 {
		r.group = model.GroupID(parts[5])
	}
	return r, true
}
