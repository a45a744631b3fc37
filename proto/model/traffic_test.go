package model

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TestTrafficReportIsConverted fills every field with a number of its own and demands it back.
func TestTrafficReportIsConverted(t *testing.T) {
	want := TrafficReport{Boot: "b", Sequence: 7, Minute: time.Unix(120, 0).UTC(), Rows: []TrafficRow{{
		TrafficKey: TrafficKey{Accelerator: "a", Listener: "l", Group: "g", Region: "r", Protocol: UDP,
			Address: netip.MustParseAddr("192.0.2.1")}}}}
	counts := reflect.ValueOf(&want.Rows[0].TrafficCounts).Elem()
	for i := range counts.NumField() {
		counts.Field(i).SetUint(uint64(i + 1))
	}
	got, err := TrafficReportFromProto(TrafficReportToProto(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	sum := got.Rows[0].Plus(want.Rows[0].TrafficCounts).Since(want.Rows[0].TrafficCounts)
	sum.ActiveFlows /= 2 // no total
	if sum != want.Rows[0].TrafficCounts {
		t.Errorf("a sum minus its part: %+v", sum)
	}
}

func TestBadTrafficReports(t *testing.T) {
	good := func() *pb.TrafficReport {
		return &pb.TrafficReport{Boot: "b", Sequence: 1, Minute: timestamppb.New(time.Unix(60, 0)),
			Rows: []*pb.TrafficCount{{AcceleratorId: "a", ListenerId: "l", Protocol: pb.Protocol_PROTOCOL_TCP,
				AcceleratedAddress: "192.0.2.1"}}}
	}
	if _, err := TrafficReportFromProto(good()); err != nil {
		t.Fatal(err)
	}
	for field, spoil := range map[string]func(*pb.TrafficReport){
		"traffic.boot":                        func(r *pb.TrafficReport) { r.Boot = "" },
		"traffic.sequence":                    func(r *pb.TrafficReport) { r.Sequence = 0 },
		"traffic.minute":                      func(r *pb.TrafficReport) { r.Minute.Seconds++ },
		"traffic.rows":                        func(r *pb.TrafficReport) { r.Rows = make([]*pb.TrafficCount, TrafficRowsMax+1) },
		"traffic.rows[0].accelerator_id":      func(r *pb.TrafficReport) { r.Rows[0].AcceleratorId = "" },
		"traffic.rows[0].listener_id":         func(r *pb.TrafficReport) { r.Rows[0].ListenerId = "a b" },
		"traffic.rows[0].group_id":            func(r *pb.TrafficReport) { r.Rows[0].GroupId = string(make([]byte, 65)) },
		"traffic.rows[0].protocol":            func(r *pb.TrafficReport) { r.Rows[0].Protocol = pb.Protocol_PROTOCOL_TCP_UDP },
		"traffic.rows[0].accelerated_address": func(r *pb.TrafficReport) { r.Rows[0].AcceleratedAddress = "x" },
	} {
		r := good()
		spoil(r)
		_, err := TrafficReportFromProto(r)
		if fields := fieldsOf(t, err); len(fields) != 1 || fields[0] != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if _, err := TrafficReportFromProto(nil); err == nil {
		t.Error("nothing is a report")
	}
}

func FuzzTrafficReport(f *testing.F) {
	seed, err := proto.Marshal(TrafficReportToProto(TrafficReport{Boot: "b", Sequence: 1, Minute: time.Unix(60, 0),
		Rows: []TrafficRow{{TrafficKey: TrafficKey{Accelerator: "a", Listener: "l", Protocol: TCP,
			Address: netip.MustParseAddr("::1")}}}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(pb.TrafficReport)
		if proto.Unmarshal(b, p) != nil {
			return
		}
		r, err := TrafficReportFromProto(p)
		if err != nil {
			return
		}
		again, err := TrafficReportFromProto(TrafficReportToProto(r))
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%+v becomes %+v, %v", r, again, err)
		}
	})
}
