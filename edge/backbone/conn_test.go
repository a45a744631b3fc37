package backbone

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/wire"
)

// TestJoinData: however frames follow one another, joining changes neither the bytes nor the order of
// any stream, nor any other frame.
func TestJoinData(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var in []byte
		offsets := map[uint64]uint64{}
		for range rng.IntN(40) {
			id := uint64(rng.IntN(2))
			p := someBytes(rng.IntN(600), byte(rng.Uint32()))
			switch rng.IntN(12) {
			case 0:
				in = (&wire.Ack{Stream: id, Consumed: 7, Limit: 9}).Append(in)
				continue
			case 1:
				offsets[id] += 5 // a hole
			}
			in = appendData(in, rng.IntN(9) == 0, id, offsets[id], p)
			offsets[id] += uint64(len(p))
		}
		in = in[:len(in)-rng.IntN(1+min(len(in), 30))] // the last one may not be whole
		want := heard(bytes.Clone(in), false)
		if got := heard(bytes.Clone(in), true); got != want {
			t.Fatalf("seed %d: joined frames say\n%s\nand not\n%s", seed, got, want)
		}
	}
}

func someBytes(n int, seed byte) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{seed})
	_, _ = rng.Read(p)
	return p
}

func appendData(b []byte, fin bool, id, offset uint64, p []byte) []byte {
	var header [wire.DataHeaderBytes]byte
	wire.PutDataHeader(header[:], fin, id, offset, len(p))
	return append(append(b, header[:]...), p...)
}

// heard writes down what the frames in b say, byte by byte for those with data.
func heard(b []byte, join bool) string {
	var out bytes.Buffer
	for {
		typ, length, ok, err := wire.ParseHeader(b)
		size := wire.HeaderBytes + length
		if err != nil || !ok || size > len(b) {
			return out.String()
		}
		next := size
		if join && typ == wire.TypeData {
			typ, size, next = joinData(b, size)
		}
		p := b[wire.HeaderBytes:size]
		if typ == wire.TypeData || typ == wire.TypeDataFin {
			id, offset, data, _ := wire.DecodeData(p)
			for i, c := range data {
				out.Write([]byte{byte(id), byte(offset + uint64(i)), byte((offset + uint64(i)) >> 8), c})
			}
			if typ == wire.TypeDataFin {
				out.WriteString("fin")
			}
		} else {
			out.Write(p)
		}
		b = b[next:]
	}
}

// FuzzJoinData: whatever a peer sends, joining says what the frames say one by one.
func FuzzJoinData(f *testing.F) {
	b := appendData(nil, false, 1, 0, []byte("one"))
	b = appendData(b, false, 1, 3, []byte("two"))
	f.Add(appendData(b, true, 1, 6, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if heard(bytes.Clone(b), true) != heard(bytes.Clone(b), false) {
			t.Fatal("joined frames say something else")
		}
	})
}

// bulkPair returns TLS over two bulkConns.
func bulkPair(t *testing.T) (client, server *tls.Conn) {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: ca}
	x, y := tcpPair(t)
	t.Cleanup(func() { x.Close(); y.Close() })
	_, _ = x.SetDeadline(time.Now().Add(patience)), y.SetDeadline(time.Now().Add(patience))
	server = tls.Server(below(x), carrierTLS(w.credentials("gw").ServerTLS("node")))
	client = tls.Client(below(y), carrierTLS(w.credentials("edge").ClientTLS(subjectOf("gw"))))
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := next(t, "the handshake", done); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// TestBulkConnReadsWhatIsThere: a reader that is not patient takes all that has come, is told that
// there is nothing, and goes on afterwards, also in the middle of a record.
func TestBulkConnReadsWhatIsThere(t *testing.T) {
	client, server := bulkPair(t)
	bulk := client.NetConn().(*bulkConn)
	want := someBytes(3<<20, 3)
	go func() {
		out := server.NetConn().(*bulkConn)
		rng := rand.New(rand.NewPCG(1, 2))
		var buf []byte
		for p := want; len(p) > 0; {
			out.hold(buf)
			for range 1 + rng.IntN(6) {
				n := min(len(p), 1+rng.IntN(20<<10))
				if _, err := server.Write(p[:n]); err != nil {
					t.Error(err)
				}
				p = p[n:]
			}
			var err error
			if buf, err = out.release(); err != nil {
				t.Error(err)
			}
		}
		server.Close()
	}()
	var got []byte
	buf := make([]byte, 100<<10)
	for {
		n, err := client.Read(buf)
		for bulk.patient = false; err == nil && len(buf)-n >= quantum; {
			var m int
			m, err = client.Read(buf[n:])
			n += m
		}
		bulk.patient = true
		got = append(got, buf[:n]...)
		if err != nil && err != error(errNothing) {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came, and not the %d that were sent", len(got), len(want))
	}
}

// TestBulkConnDeadlines: deadlines end reads and writes that wait, and Close does.
func TestBulkConnDeadlines(t *testing.T) {
	x, y := tcpPair(t)
	defer y.Close()
	conn := below(x)
	_ = conn.SetDeadline(time.Now().Add(-time.Second))
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read: %v", err)
	}
	if _, err := conn.Write(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("write: %v", err)
	}
	_ = conn.SetDeadline(time.Time{})
	done := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		done <- err
	}()
	_ = conn.Close()
	if err := next(t, "the end of a read", done); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("read of a closed connection: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("write to a closed connection: %v", err)
	}
}
