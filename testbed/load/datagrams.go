package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Datagrams sends random datagrams from many client sockets to an echo port and checks that each
// reply is byte for byte one that this very client sent.
type Datagrams struct {
	Dial    Dial
	Addr    netip.AddrPort
	Clients int
	Total   int // over all clients
	Window  int // most that a client has unanswered at a time
	SizeMax int // bytes, ≥ 16; sizes are uniform from 16 to this
	Seed    uint64

	Sent, Echoed, Foreign, Damaged atomic.Int64
}

// Run sends all and returns when each was answered or given up (no reply for a second).
func (d *Datagrams) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, d.Clients)
	for i := range d.Clients {
		share := d.Total / d.Clients
		if i < d.Total%d.Clients {
			share++
		}
		wg.Go(func() { errs[i] = d.client(ctx, uint64(i), share) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// client keeps Window datagrams in flight. Each carries its client's number and its own, and the
// rest is a function of both, so that a reply can be checked without keeping what was sent.
func (d *Datagrams) client(ctx context.Context, id uint64, share int) error {
	c, err := d.Dial(ctx, "udp", d.Addr.String())
	if err != nil {
		return fmt.Errorf("client %d: %w", id, err)
	}
	defer c.Close()
	if u, ok := c.(*net.UDPConn); ok {
		_ = u.SetReadBuffer(socketBuffer)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	out, in := make([]byte, d.SizeMax), make([]byte, 65535)
	for sent := 0; sent < share; {
		burst := min(d.Window, share-sent)
		for i := range burst {
			p := d.fill(out, id, uint64(sent+i))
			if _, err := c.Write(p); err != nil {
				return fmt.Errorf("client %d: send: %w", id, err)
			}
		}
		d.Sent.Add(int64(burst))
		if err := d.collect(c, in, out, id, uint64(sent), burst); err != nil {
			return fmt.Errorf("client %d: %w", id, err)
		}
		sent += burst
	}
	return nil
}

// collect reads the echoes of the burst that began at number first.
func (d *Datagrams) collect(c net.Conn, in, out []byte, id, first uint64, burst int) error {
	seen := make([]bool, burst)
	for left := burst; left > 0; {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(in)
		if isTimeout(err) {
			return nil // lost; Sent minus Echoed tells how many
		}
		if err != nil {
			return err
		}
		if n < 16 || binary.BigEndian.Uint64(in) != id^d.Seed {
			d.Foreign.Add(1)
			continue
		}
		number := binary.BigEndian.Uint64(in[8:])
		if number < first || number >= first+uint64(burst) || seen[number-first] {
			continue // late or double, both of which UDP allows
		}
		if !bytes.Equal(in[:n], d.fill(out, id, number)) {
			d.Damaged.Add(1)
			continue
		}
		seen[number-first] = true
		d.Echoed.Add(1)
		left--
	}
	return nil
}

func (d *Datagrams) fill(buf []byte, id, number uint64) []byte {
	r := rand.New(rand.NewPCG(id^d.Seed, number))
	p := buf[:16+r.IntN(d.SizeMax-15)]
	binary.BigEndian.PutUint64(p, id^d.Seed)
	binary.BigEndian.PutUint64(p[8:], number)
	for i := 16; i < len(p); i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], r.Uint64())
		copy(p[i:], word[:])
	}
	return p
}
