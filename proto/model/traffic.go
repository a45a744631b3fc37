package model

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TrafficReport is what a node carried in one minute, or a part of it. Node, Boot and Sequence name it;
// all reports of a minute add up.
type TrafficReport struct {
	Boot     string // of the node's process
	Sequence uint64
	Minute   time.Time // where it begins, UTC
	Rows     []TrafficRow
}

// TrafficKey says whose traffic a row counts.
type TrafficKey struct {
	Accelerator AcceleratorID
	Listener    ListenerID
	Group       GroupID    // "": flows that no group took
	Region      RegionName // the group's
	Protocol    Protocol   // TCP or UDP
	Address     netip.Addr // the accelerated one
}

// TrafficCounts are the counts of one row. Bytes and packets are those between client and edge, with IP
// and TCP or UDP headers, as AWS Global Accelerator's ProcessedBytesIn counts them.
type TrafficCounts struct {
	NewFlows       uint64 // that an endpoint took
	ActiveFlows    uint64 // open at the end of the minute
	BytesIn        uint64 // from clients
	BytesOut       uint64
	PacketsIn      uint64
	PacketsOut     uint64
	ResetsClient   uint64 // TCP flows that the client reset
	ResetsEndpoint uint64
	ResetsNearcast uint64
	Unserved       uint64 // flows for which there was no endpoint
}

// TrafficRow is the traffic of one listener to one group by way of one accelerated address.
type TrafficRow struct {
	TrafficKey
	TrafficCounts
}

// TrafficReportFromProto converts a report.
func TrafficReportFromProto(p *pb.TrafficReport) (TrafficReport, error) {
	c := newCheck("traffic")
	r := TrafficReport{Boot: p.GetBoot(), Sequence: p.GetSequence()}
	if r.Boot == "" || len(r.Boot) > IDMax || !isToken(r.Boot) {
		c.wrong("boot", "must be 1 to %d printable characters", IDMax)
	}
	if r.Sequence == 0 {
		c.wrong("sequence", "must be at least 1")
	}
	if err := p.GetMinute().CheckValid(); err != nil {
		c.wrong("minute", "is not a time: %v", err)
	} else if r.Minute = p.GetMinute().AsTime(); !r.Minute.Equal(r.Minute.Truncate(time.Minute)) {
		c.wrong("minute", "%v is not the beginning of a minute", r.Minute)
	}
	r.Rows = listFrom(c, "rows", p.GetRows(), TrafficRowsMax, trafficRowFrom)
	return r, c.err()
}

func trafficRowFrom(c check, field string, p *pb.TrafficCount) TrafficRow {
	c = c.at(field)
	id := func(name, value string, optional bool) string {
		if value == "" && !optional || len(value) > IDMax || value != "" && !isToken(value) {
			c.wrong(name, "%s is not an id", show(value))
		}
		return value
	}
	r := TrafficRow{
		TrafficKey: TrafficKey{
			Accelerator: AcceleratorID(id("accelerator_id", p.GetAcceleratorId(), false)),
			Listener:    ListenerID(id("listener_id", p.GetListenerId(), false)),
			Group:       GroupID(id("group_id", p.GetGroupId(), true)),
			Region:      RegionName(id("region", p.GetRegion(), true)),
			Protocol:    protocols.from(c, "protocol", p.GetProtocol()),
			Address:     addrFrom(c, "accelerated_address", p.GetAcceleratedAddress()),
		},
		TrafficCounts: TrafficCounts{
			NewFlows: p.GetNewFlows(), ActiveFlows: p.GetActiveFlows(),
			BytesIn: p.GetBytesIn(), BytesOut: p.GetBytesOut(),
			PacketsIn: p.GetPacketsIn(), PacketsOut: p.GetPacketsOut(),
			ResetsClient: p.GetResetsClient(), ResetsEndpoint: p.GetResetsEndpoint(),
			ResetsNearcast: p.GetResetsNearcast(), Unserved: p.GetFlowsUnserved(),
		},
	}
	if r.Protocol != TCP && r.Protocol != UDP {
		c.wrong("protocol", "must be TCP or UDP")
	}
	return r
}

// TrafficReportToProto converts a report.
func TrafficReportToProto(r TrafficReport) *pb.TrafficReport {
	p := &pb.TrafficReport{Boot: r.Boot, Sequence: r.Sequence, Minute: timestamppb.New(r.Minute)}
	for i := range r.Rows {
		row := &r.Rows[i]
		p.Rows = append(p.Rows, &pb.TrafficCount{
			AcceleratorId: string(row.Accelerator), ListenerId: string(row.Listener),
			GroupId: string(row.Group), Region: string(row.Region),
			Protocol: protocols.to(row.Protocol), AcceleratedAddress: row.Address.String(),
			NewFlows: row.NewFlows, ActiveFlows: row.ActiveFlows,
			BytesIn: row.BytesIn, BytesOut: row.BytesOut,
			PacketsIn: row.PacketsIn, PacketsOut: row.PacketsOut,
			ResetsClient: row.ResetsClient, ResetsEndpoint: row.ResetsEndpoint,
			ResetsNearcast: row.ResetsNearcast, FlowsUnserved: row.Unserved,
		})
	}
	return p
}

// Plus returns the sum of counts.
func (c TrafficCounts) Plus(o TrafficCounts) TrafficCounts {
	return TrafficCounts{
		NewFlows: c.NewFlows + o.NewFlows, ActiveFlows: c.ActiveFlows + o.ActiveFlows,
		BytesIn: c.BytesIn + o.BytesIn, BytesOut: c.BytesOut + o.BytesOut,
		PacketsIn: c.PacketsIn + o.PacketsIn, PacketsOut: c.PacketsOut + o.PacketsOut,
		ResetsClient: c.ResetsClient + o.ResetsClient, ResetsEndpoint: c.ResetsEndpoint + o.ResetsEndpoint,
		ResetsNearcast: c.ResetsNearcast + o.ResetsNearcast, Unserved: c.Unserved + o.Unserved,
	}
}

// Since returns what totals have grown by since old. ActiveFlows is no total and stays what it is.
func (c TrafficCounts) Since(old TrafficCounts) TrafficCounts {
	return TrafficCounts{
		NewFlows: c.NewFlows - old.NewFlows, ActiveFlows: c.ActiveFlows,
		BytesIn: c.BytesIn - old.BytesIn, BytesOut: c.BytesOut - old.BytesOut,
		PacketsIn: c.PacketsIn - old.PacketsIn, PacketsOut: c.PacketsOut - old.PacketsOut,
		ResetsClient: c.ResetsClient - old.ResetsClient, ResetsEndpoint: c.ResetsEndpoint - old.ResetsEndpoint,
		ResetsNearcast: c.ResetsNearcast - old.ResetsNearcast, Unserved: c.Unserved - old.Unserved,
	}
}
