package awsapi

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"time"
	"unicode/utf8"
)

// This file is the part of CBOR (RFC 8949) that Smithy's RPC v2 uses: maps with text keys, arrays, text,
// bytes, numbers, booleans, null and the tag for times.

const cborDepthMax = 32

// cborToJSON makes the JSON of a request. Its errors are faults.
func cborToJSON(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return []byte("{}"), nil
	}
	v, rest, ok := readCBOR(b, 0)
	if !ok || len(rest) > 0 {
		return nil, faultf("SerializationException", "the request is not CBOR that can be read")
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil, faultf("SerializationException", "the request has a number that is none")
	}
	return out, nil
}

// cborBreak ends maps and arrays of no stated length.
type cborBreak struct{}

// readCBOR reads one value and returns what is behind it.
func readCBOR(b []byte, depth int) (v any, rest []byte, ok bool) {
	if len(b) == 0 || depth > cborDepthMax {
		return nil, nil, false
	}
	major, info := b[0]>>5, b[0]&31
	if b[0] == 0xff {
		return cborBreak{}, b[1:], true
	}
	n, rest, ok := cborArgument(b[1:], info)
	endless := info == 31 && (major == 2 || major == 3 || major == 4 || major == 5)
	if !ok && !endless {
		return nil, nil, false
	}
	if endless {
		n, rest = math.MaxUint64, b[1:]
	}
	switch major {
	case 0:
		return float64(n), rest, true
	case 1:
		return -1 - float64(n), rest, true
	case 2, 3:
		if endless {
			return readCBORChunks(rest, depth)
		}
		if n > uint64(len(rest)) || major == 3 && !utf8.Valid(rest[:n]) {
			return nil, nil, false
		}
		return string(rest[:n]), rest[n:], true
	case 4:
		return readCBORList(rest, n, depth)
	case 5:
		return readCBORMap(rest, n, depth)
	case 6: // a tag: the value says it all
		return readCBOR(rest, depth+1)
	}
	return cborSimple(info, n, rest)
}

func cborArgument(b []byte, info byte) (n uint64, rest []byte, ok bool) {
	size := 0
	switch {
	case info < 24:
		return uint64(info), b, true
	case info <= 27:
		size = 1 << (info - 24)
	default:
		return 0, nil, false
	}
	if len(b) < size {
		return 0, nil, false
	}
	for _, c := range b[:size] {
		n = n<<8 | uint64(c)
	}
	return n, b[size:], true
}

func readCBORChunks(b []byte, depth int) (any, []byte, bool) {
	text := ""
	for {
		v, rest, ok := readCBOR(b, depth+1)
		if !ok {
			return nil, nil, false
		}
		b = rest
		switch v := v.(type) {
		case cborBreak:
			return text, b, true
		case string:
			text += v
		default:
			return nil, nil, false
		}
	}
}

func readCBORList(b []byte, n uint64, depth int) (any, []byte, bool) {
	list := []any{}
	for ; n > 0; n-- {
		v, rest, ok := readCBOR(b, depth+1)
		if !ok {
			return nil, nil, false
		}
		b = rest
		if _, end := v.(cborBreak); end {
			break
		}
		list = append(list, v)
	}
	return list, b, true
}

func readCBORMap(b []byte, n uint64, depth int) (any, []byte, bool) {
	m := map[string]any{}
	for ; n > 0; n-- {
		k, rest, ok := readCBOR(b, depth+1)
		if !ok {
			return nil, nil, false
		}
		if _, end := k.(cborBreak); end {
			return m, rest, true
		}
		name, text := k.(string)
		v, rest, ok := readCBOR(rest, depth+1)
		if _, end := v.(cborBreak); !ok || !text || end {
			return nil, nil, false
		}
		m[name], b = v, rest
	}
	return m, b, true
}

func cborSimple(info byte, n uint64, rest []byte) (any, []byte, bool) {
	switch info {
	case 20, 21:
		return info == 21, rest, true
	case 22, 23:
		return nil, rest, true
	case 26:
		return float64(math.Float32frombits(uint32(n))), rest, true
	case 27:
		return math.Float64frombits(n), rest, true
	}
	return nil, nil, false
}

// appendCBOR writes a tree.
func appendCBOR(b []byte, v any) []byte {
	head := func(major byte, n int) {
		switch {
		case n < 24:
			b = append(b, major<<5|byte(n))
		case n < 1<<16:
			b = binary.BigEndian.AppendUint16(append(b, major<<5|25), uint16(n))
		default:
			b = binary.BigEndian.AppendUint32(append(b, major<<5|26), uint32(n))
		}
	}
	switch v := v.(type) {
	case tree:
		head(5, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			b = appendCBOR(appendCBOR(b, k), v[k])
		}
	case []any:
		head(4, len(v))
		for _, e := range v {
			b = appendCBOR(b, e)
		}
	case string:
		head(3, len(v))
		b = append(b, v...)
	case time.Time: // tag 1: seconds since 1970
		b = appendCBOR(append(b, 0xc1), float64(v.UnixMilli())/1000)
	case float64:
		b = binary.BigEndian.AppendUint64(append(b, 0xfb), math.Float64bits(v))
	}
	return b
}
