// Package flowlog answers: which flows were there, and where is that written down for good?
//
//	meter ─ Record(window) ─▶ queue ─▶ writer ─▶ segments on disk, one an accelerator and 5 minutes
//	                                     │             └─▶ deliver: gzip ─▶ a directory, or S3
//	                                     └─▶ live readers (a socket)
//
// Records have the fields, the path and the file names of AWS Global Accelerator's flow logs. The packet
// path never waits: what does not fit into the queue or onto the disk is dropped and counted, and a
// SKIPDATA record says so in the log. What is on disk is delivered at least once, also after the process
// was killed; a file that is delivered again has the same name and bytes.
package flowlog

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"time"

	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/proto/model"
)

// Format is how records are written.
type Format string

// The formats.
const (
	AWS  Format = "aws"  // versions 1.0 and 2.0, separated by spaces
	JSON Format = "json" // one object a line
)

// origin is what all records of an accelerator on this node share.
type origin struct {
	Account     string
	Accelerator model.AcceleratorID
	Site        model.SiteName
}

// Directions of a record.
const (
	ingress = "INGRESS" // client to endpoint
	egress  = "EGRESS"
)

// appendWindow appends the two records of a window: one for each direction.
func appendWindow(b []byte, f Format, o origin, w *meter.Window) []byte {
	b = appendRecord(b, f, o, w, ingress, w.PacketsIn, w.BytesIn)
	return appendRecord(b, f, o, w, egress, w.PacketsOut, w.BytesOut)
}

func appendRecord(b []byte, f Format, o origin, w *meter.Window, direction string, packets, bytes uint64) []byte {
	if f == JSON {
		return appendJSON(b, o, w, direction, packets, bytes)
	}
	return appendAWS(b, o, w, direction, packets, bytes)
}

// appendAWS appends one record of 22 fields (version 1.0), or of 23 (2.0: the endpoint sees the client's
// own address, and the field vpc_id is there, which is always "-" here). reject_reason, empty with AWS
// nearly always, is one more where there is one. action is REJECT then, which AWS never writes.
func appendAWS(b []byte, o origin, w *meter.Window, direction string, packets, bytes uint64) []byte {
	kept := w.Source.IsValid() && w.Source == w.Client
	version, action := "1.0", "ACCEPT"
	if kept {
		version = "2.0"
	}
	if w.Rejected != "" {
		action = "REJECT"
	}
	field := func(s string) {
		if s == "" {
			s = "-"
		}
		b = append(append(b, ' '), s...)
	}
	number := func(n uint64) { b = strconv.AppendUint(append(b, ' '), n, 10) }
	at := func(a netip.AddrPort) {
		if !a.IsValid() {
			b = append(b, " - 0"...)
			return
		}
		b = append(b, ' ')
		b = a.Addr().AppendTo(b)
		number(uint64(a.Port()))
	}
	b = append(b, version...)
	field(o.Account)
	field(string(o.Accelerator))
	at(w.Client)
	at(w.Accelerated)
	at(w.Endpoint)
	field(w.Protocol.String())
	field(family(w.Accelerated))
	number(packets)
	number(bytes)
	number(uint64(max(0, w.Start.Unix())))
	number(uint64(max(0, w.End.Unix())))
	field(action)
	field("OK")
	if kept {
		at(netip.AddrPort{})
	} else {
		at(w.Source)
	}
	field(string(w.Region))
	field(string(o.Site))
	field(direction)
	if kept {
		field("-")
	}
	if w.Rejected != "" {
		field(w.Rejected)
	}
	return append(b, '\n')
}

func family(a netip.AddrPort) string {
	if a.Addr().Is6() {
		return "IPV6"
	}
	return "IPV4"
}

// object is a record as JSON has it.
type object struct {
	Account     string              `json:"account"`
	Accelerator model.AcceleratorID `json:"accelerator_id"`
	Listener    model.ListenerID    `json:"listener_id"`
	Group       model.GroupID       `json:"group_id,omitempty"`
	Client      string              `json:"client"`
	Accelerated string              `json:"accelerated"`
	Endpoint    string              `json:"endpoint,omitempty"`
	Source      string              `json:"source,omitempty"` // as the endpoint sees it
	Protocol    string              `json:"protocol"`
	Packets     uint64              `json:"packets"`
	Bytes       uint64              `json:"bytes"`
	Start       time.Time           `json:"start"`
	End         time.Time           `json:"end"`
	Action      string              `json:"action"`
	Region      model.RegionName    `json:"endpoint_region,omitempty"`
	Site        model.SiteName      `json:"site"`
	Direction   string              `json:"direction"`
	Reason      string              `json:"reject_reason,omitempty"`
}

func appendJSON(b []byte, o origin, w *meter.Window, direction string, packets, bytes uint64) []byte {
	text := func(a netip.AddrPort) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	r := object{
		Account: o.Account, Accelerator: o.Accelerator, Listener: w.Listener, Group: w.Group,
		Client: text(w.Client), Accelerated: text(w.Accelerated), Endpoint: text(w.Endpoint), Source: text(w.Source),
		Protocol: w.Protocol.String(), Packets: packets, Bytes: bytes, Start: w.Start.UTC(), End: w.End.UTC(),
		Action: "ACCEPT", Region: w.Region, Site: o.Site, Direction: direction, Reason: w.Rejected,
	}
	if w.Rejected != "" {
		r.Action = "REJECT"
	}
	text2, err := json.Marshal(r)
	if err != nil {
		return b // strings, numbers and times always can be written
	}
	return append(append(b, text2...), '\n')
}

// appendSkipped appends what says that records are missing between two moments.
func appendSkipped(b []byte, f Format, o origin, from, to time.Time) []byte {
	if f == JSON {
		text, err := json.Marshal(map[string]any{"account": o.Account, "accelerator_id": o.Accelerator,
			"site": o.Site, "start": from.UTC(), "end": to.UTC(), "log_status": "SKIPDATA"})
		if err != nil {
			return b
		}
		return append(append(b, text...), '\n')
	}
	b = append(b, "1.0 "+o.Account+" "+string(o.Accelerator)+" - - - - - - - - - - "...)
	b = strconv.AppendInt(b, from.Unix(), 10)
	b = strconv.AppendInt(append(b, ' '), to.Unix(), 10)
	return append(b, " - SKIPDATA - - - "+string(o.Site)+" -\n"...)
}
