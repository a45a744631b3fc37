package model

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestDecodeSnapshotRefusesTooMuch(t *testing.T) {
	element := func(field byte, inner ...byte) []byte {
		return append([]byte{field<<3 | 2, byte(len(inner))}, inner...)
	}
	for _, c := range []struct {
		b     []byte
		field string
	}{
		{make([]byte, SnapshotBytesMax+1), "snapshot"},
		{slices.Repeat(element(9), SnapshotNodesMax+1), "nodes"},
		{slices.Repeat(element(10), SnapshotGossipKeysMax+1), "gossip_keys"},
		{slices.Repeat(element(5, slices.Repeat(element(7), 50)...), SnapshotEndpointsMax/50+1), "groups.endpoints"},
		{slices.Repeat(element(3, slices.Repeat(element(5), 60)...), snapshotFieldsMax/60+1), "snapshot"},
	} {
		_, err := DecodeSnapshot(c.b)
		if fields := fieldsOf(t, err); !slices.Contains(fields, c.field) {
			t.Errorf("want %s, got %v", c.field, err)
		}
	}
	for _, b := range []string{"\xff", "\x0a", "\x1a\x05abc", "hello, world"} {
		if _, err := DecodeSnapshot([]byte(b)); err == nil {
			t.Errorf("%q was accepted", b)
		}
	}
}

// FuzzDecodeSnapshot: whatever arrives, nothing panics, and what is accepted round-trips.
func FuzzDecodeSnapshot(f *testing.F) {
	b, _, err := EncodeSnapshot(goodSnapshot())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Add([]byte("\x60\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Consistent is also asked without the checks before it.
		var p pb.Snapshot
		if proto.Unmarshal(b, &p) == nil {
			p.Format = SnapshotFormat
			if s, err := SnapshotFromProto(&p); err == nil {
				_ = s.Consistent()
			}
		}
		s, err := DecodeSnapshot(b)
		if err != nil {
			return
		}
		again, _, err := EncodeSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeSnapshot(again)
		if err != nil {
			t.Fatalf("its own bytes are refused: %v", err)
		}
		if diff := cmp.Diff(s, back, native); diff != "" {
			t.Fatalf("changed on the way:\n%s", diff)
		}
	})
}

// FuzzObjects: the same for each kind of object by itself.
func FuzzObjects(f *testing.F) {
	s := SnapshotToProto(goodSnapshot())
	for _, m := range []proto.Message{s.Accelerators[0], s.Listeners[0], s.Groups[0], s.Pools[0], s.Nodes[0]} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		roundObject(t, b, &pb.Accelerator{}, AcceleratorFromProto, AcceleratorToProto)
		roundObject(t, b, &pb.Listener{}, ListenerFromProto, ListenerToProto)
		roundObject(t, b, &pb.EndpointGroup{}, EndpointGroupFromProto, EndpointGroupToProto)
		roundObject(t, b, &pb.Endpoint{}, EndpointFromProto, EndpointToProto)
		roundObject(t, b, &pb.HealthCheck{}, HealthCheckFromProto, HealthCheckToProto)
		roundObject(t, b, &pb.Target{}, TargetFromProto, TargetToProto)
		roundObject(t, b, &pb.Pool{}, PoolFromProto, PoolToProto)
		roundObject(t, b, &pb.Region{}, RegionFromProto, RegionToProto)
		roundObject(t, b, &pb.Site{}, SiteFromProto, SiteToProto)
		roundObject(t, b, &pb.Node{}, NodeFromProto, NodeToProto)
		roundObject(t, b, &pb.Settings{}, SettingsFromProto, SettingsToProto)
	})
}

func roundObject[P proto.Message, M interface{ Validate() error }](
	t *testing.T, b []byte, p P, from func(P) (M, error), to func(M) P,
) {
	if proto.Unmarshal(b, p) != nil {
		return
	}
	v, err := from(p)
	fieldsOf(t, err)
	if err != nil {
		return
	}
	verr := v.Validate()
	fieldsOf(t, verr)
	if verr != nil {
		return
	}
	back, err := from(to(v))
	if err != nil {
		t.Fatalf("%T: its own message is refused: %v", v, err)
	}
	if diff := cmp.Diff(v, back, native); diff != "" {
		t.Fatalf("changed on the way:\n%s", diff)
	}
}
