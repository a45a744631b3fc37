package awsapi

import (
	"encoding/json"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// Smithy's RPC v2 speaks CBOR (RFC 8949), with the tag of epoch times for times.

const (
	cborDepthMax = 32
	cborItemsMax = 1 << 17 // of one list or map; a request has at most 256 KiB
)

// cborReader makes times into text that instant reads, and maps into what JSON can write.
var cborReader = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxNestedLevels: cborDepthMax, MaxArrayElements: cborItemsMax, MaxMapPairs: cborItemsMax,
		DefaultMapType: reflect.TypeFor[map[string]any](), TimeTagToAny: cbor.TimeTagToRFC3339Nano,
		IntDec: cbor.IntDecConvertSignedOrBigInt, DupMapKey: cbor.DupMapKeyEnforcedAPF}.DecMode()
	if err != nil {
		panic(err) // options that contradict each other: no input makes them so
	}
	return m
}()

// cborWriter writes the same tree always in the same way.
var cborWriter = func() cbor.EncMode {
	m, err := cbor.EncOptions{Sort: cbor.SortBytewiseLexical, Time: cbor.TimeUnixDynamic, TimeTag: cbor.EncTagRequired}.EncMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// cborToJSON makes the JSON of a request. Its errors are faults.
func cborToJSON(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return []byte("{}"), nil
	}
	var v any
	if err := cborReader.Unmarshal(b, &v); err != nil {
		return nil, faultf("SerializationException", "the request is not CBOR that can be read")
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil, faultf("SerializationException", "the request has something that JSON cannot say")
	}
	return out, nil
}

// cborTree writes a tree.
func cborTree(t tree) []byte {
	b, err := cborWriter.Marshal(t)
	if err != nil {
		return []byte{0xa0} // an empty map; trees hold nothing that cannot be written
	}
	return b
}
