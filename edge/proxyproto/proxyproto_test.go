package proxyproto

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"

	peer "github.com/pires/go-proxyproto"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var pairs = [][2]netip.AddrPort{
	{ap("192.0.2.7:40000"), ap("198.51.100.1:443")},
	{ap("[2001:db8::7]:1"), ap("[2001:db8::1]:65535")},
	{ap("[2001:db8::7]:40000"), ap("198.51.100.1:443")},
	{ap("192.0.2.7:40000"), ap("[2001:db8::1]:443")},
	{ap("[::ffff:192.0.2.7]:5"), ap("198.51.100.1:443")},
}

// TestOthersReadOurs has another implementation read what is written here, and the reverse.
func TestOthersReadOurs(t *testing.T) {
	for _, p := range pairs {
		for version, b := range map[string][]byte{
			"v1": AppendV1(nil, p[0], p[1]), "v2": AppendV2(nil, p[0], p[1], false), "v2 udp": AppendV2(nil, p[0], p[1], true),
		} {
			h, err := peer.Read(bufio.NewReader(bytes.NewReader(append(b, "payload"...))))
			if err != nil {
				t.Fatalf("%s %v: %v", version, p, err)
			}
			unmap := func(s string) netip.AddrPort {
				a := ap(s)
				return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			}
			src, dst := unmap(h.SourceAddr.String()), unmap(h.DestinationAddr.String())
			if src != unmap(p[0].String()) || dst != unmap(p[1].String()) {
				t.Errorf("%s %v: read as %v %v", version, p, src, dst)
			}
			got, n, err := Parse(append(b, "payload"...))
			if err != nil || n != len(b) || got.Src != src || got.Dst != dst {
				t.Errorf("%s %v: own reading is %v, %d of %d bytes, %v", version, p, got, n, len(b), err)
			}
			if version != "v2 udp" {
				continue
			}
			var back bytes.Buffer
			if _, err := h.WriteTo(&back); err != nil || !bytes.Equal(back.Bytes(), b) {
				t.Errorf("%v: written as\n%x, others write\n%x (%v)", p, b, back.Bytes(), err)
			}
			if len(b) > DatagramMax {
				t.Errorf("%d bytes, DatagramMax says %d", len(b), DatagramMax)
			}
		}
	}
	if got := string(AppendV1(nil, pairs[0][0], pairs[0][1])); got != "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n" {
		t.Errorf("%q", got)
	}
}

// v2 makes a header of version 2 from its parts.
func v2(command, family byte, body []byte) []byte {
	b := append([]byte(signature), command, family)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

func tlv(kind byte, value []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...)
}

func withChecksum(right bool) []byte {
	b := v2(commandProxy, tcp4, append(make([]byte, 12), append(tlv(4, []byte("x")), tlv(typeCRC32C, make([]byte, 4))...)...))
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	if !right {
		sum++
	}
	binary.BigEndian.PutUint32(b[len(b)-4:], sum)
	return b
}

func TestParse(t *testing.T) {
	const more = "more"
	tests := []struct {
		name, in string
		want     any // an error, more, or the source address
	}{
		{"nothing yet", "", more},
		{"a letter", "P", more},
		{"v1 unfinished", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r", more},
		{"v1 unknown", "PROXY UNKNOWN\r\n", "invalid AddrPort"},
		{"v1 unknown with addresses", "PROXY UNKNOWN ffff:: 1 2 3 4 5\r\n", "invalid AddrPort"},
		{"v1 longest", "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
			"[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
		{"v1 without end", "PROXY TCP4 " + strings.Repeat("1", 107), ErrMalformed},
		{"v1 end behind its bound", "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", ErrMalformed},
		{"v1 wrong family", "PROXY TCP4 ::1 ::1 1 2\r\n", ErrMalformed},
		{"v1 mapped is TCP6", "PROXY TCP6 ::ffff:1.2.3.4 ::1 1 2\r\n", "1.2.3.4:1"},
		{"v1 zone", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", ErrMalformed},
		{"v1 port too large", "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n", ErrMalformed},
		{"v1 port with zero", "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", ErrMalformed},
		{"v1 port with sign", "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", ErrMalformed},
		{"v1 no port", "PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n", ErrMalformed},
		{"v1 two spaces", "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", ErrMalformed},
		{"v1 UDP", "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", ErrMalformed},
		{"v1 lower case", "proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", ErrMissing},
		{"something else", "GET / HTTP/1.1\r\n", ErrMissing},
		{"v2 unfinished", signature, more},
		{"v2 addresses missing yet", string(v2(commandProxy, tcp4, make([]byte, 12))[:20]), more},
		{"v2 local", string(v2(commandLocal, 0, nil)), "invalid AddrPort"},
		{"v2 local with rubbish", string(v2(commandLocal, tcp4, []byte("xy"))), "invalid AddrPort"},
		{"v2 unix", string(v2(commandProxy, 0x31, make([]byte, 216))), "invalid AddrPort"},
		{"v2 unspecified", string(v2(commandProxy, 0, nil)), "invalid AddrPort"},
		{"v2 version 1", string(v2(0x11, tcp4, make([]byte, 12))), ErrMalformed},
		{"v2 command 2", string(v2(0x22, tcp4, make([]byte, 12))), ErrMalformed},
		{"v2 bad version shows early", signature + "\x00", ErrMalformed},
		{"v2 too few addresses", string(v2(commandProxy, tcp6, make([]byte, 12))), ErrMalformed},
		{"v2 too long", string(v2(commandProxy, tcp4, make([]byte, 4097))[:16]), ErrMalformed},
		{"v2 TLVs", string(v2(commandProxy, tcp4, append([]byte{1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10}, tlv(0xea, []byte("vpc"))...))), "1.2.3.4:9"},
		{"v2 TLV cut off", string(v2(commandProxy, tcp4, make([]byte, 14))), ErrMalformed},
		{"v2 TLV too long", string(v2(commandProxy, tcp4, append(make([]byte, 12), 1, 0, 9))), ErrMalformed},
		{"v2 checksum", string(withChecksum(true)), "0.0.0.0:0"},
		{"v2 wrong checksum", string(withChecksum(false)), ErrMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, n, err := Parse([]byte(test.in))
			switch want := test.want.(type) {
			case error:
				if !errors.Is(err, want) || n != 0 {
					t.Errorf("%v, %d bytes, %v; want %v", h, n, err, want)
				}
			default:
				if err != nil || want == more && n != 0 || want != more && (n != len(test.in) || h.Src.String() != want) {
					t.Errorf("%v, %d bytes, %v; want %v", h, n, err, want)
				}
			}
		})
	}
}

// FuzzParse wants no panic, a length within the input, and the same answer when the bytes come one
// by one.
func FuzzParse(f *testing.F) {
	for _, p := range pairs {
		f.Add(AppendV1(nil, p[0], p[1]))
		f.Add(AppendV2(nil, p[0], p[1], false))
	}
	f.Add(withChecksum(true))
	f.Add([]byte("PROXY UNKNOWN\r\nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		if n < 0 || n > len(b) || n > HeaderMax || err != nil && (n != 0 || h.Valid()) {
			t.Fatalf("%v %d %v", h, n, err)
		}
		for i := range b {
			hi, ni, erri := Parse(b[:i])
			if ni != 0 && (ni != n || hi != h) {
				t.Fatalf("the first %d bytes are %v, all are %v", i, hi, h)
			}
			if erri != nil && err == nil {
				t.Fatalf("the first %d bytes are wrong (%v), all are right", i, erri)
			}
			if ni != 0 || erri != nil {
				break
			}
		}
	})
}
