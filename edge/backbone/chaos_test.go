package backbone

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// noise is an endless, repeatable stream of bytes.
func noise(seed uint64) io.Reader {
	return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 7})
}

// sum reads n bytes in pieces of random size and returns their SHA-256.
func sum(r io.Reader, rng *rand.Rand) (h hash.Hash, n int64, err error) {
	h = sha256.New()
	buf := make([]byte, 64<<10)
	for {
		k, err := r.Read(buf[:1+rng.IntN(len(buf))])
		h.Write(buf[:k])
		n += int64(k)
		if err == io.EOF {
			return h, n, nil
		}
		if err != nil {
			return h, n, err
		}
	}
}

// send writes n bytes of noise in pieces of random size, ends, and returns their SHA-256.
func send(c *conn, seed uint64, n int64, rng *rand.Rand) (hash.Hash, error) {
	h := sha256.New()
	src := io.LimitReader(noise(seed), n)
	buf := make([]byte, 100<<10)
	for {
		k, err := src.Read(buf[:1+rng.IntN(len(buf))])
		h.Write(buf[:k])
		if k > 0 {
			if _, err := c.Write(buf[:k]); err != nil {
				return h, err
			}
		}
		if err != nil {
			c.s.CloseWrite()
			return h, nil
		}
	}
}

// both sends and receives at once and checks that what came is what the other side says it sent:
// each side's direction is its length, its seed, and then noise.
func both(c *conn, seed uint64, n int64) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	sent := make(chan error, 1)
	go func() {
		var head [16]byte
		binary.BigEndian.PutUint64(head[:], seed)
		binary.BigEndian.PutUint64(head[8:], uint64(n))
		if _, err := c.Write(head[:]); err != nil {
			sent <- err
			return
		}
		_, err := send(c, seed, n, rand.New(rand.NewPCG(seed, 2)))
		sent <- err
	}()
	var head [16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return fmt.Errorf("read the head: %w", err)
	}
	theirs, length := binary.BigEndian.Uint64(head[:]), int64(binary.BigEndian.Uint64(head[8:]))
	got, k, err := sum(c, rng)
	if err != nil {
		return fmt.Errorf("read byte %d of %d: %w", k, length, err)
	}
	want := sha256.New()
	if _, err := io.CopyN(want, noise(theirs), length); err != nil {
		return err
	}
	if k != length || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%d bytes of %d came, or others", k, length)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// size is mostly small and sometimes large.
func size(rng *rand.Rand) int64 {
	switch rng.IntN(10) {
	case 0:
		return 0
	case 1, 2:
		return 1 << 20
	case 3:
		return 5<<20 + 123
	}
	return rng.Int64N(60_000)
}

// TestStreamsSurviveCarriers sends noise both ways over many streams while their carriers are
// killed and stalled, and compares every byte.
func TestStreamsSurviveCarriers(t *testing.T) {
	const workers, each = 20, 12
	var answered sync.WaitGroup
	w := newWorld(t, func(s *Stream, o *wire.Open) Sink {
		c := newConn()
		c.set(s)
		answered.Go(func() {
			s.OpenResult(wire.OpenResult{Endpoint: "noise"})
			rng := rand.New(rand.NewPCG(s.ID(), 9))
			if err := both(c, 1000+s.ID(), size(rng)); err != nil {
				t.Errorf("gateway, stream %d: %v", s.ID(), err)
				s.Reset(wire.ResetByPeer) // or the other end would wait
			}
		})
		return c
	}, func(p *PoolConfig, _ *ServerConfig) { p.CarriersMin = 4; p.CarriersMax = 8 })
	w.waitUp(4)

	stop := make(chan struct{})
	var breaking sync.WaitGroup
	breaking.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(10+rand.IntN(60)) * time.Millisecond):
			}
			if s, _ := w.pool.Peer("gw-1"); !s.Up {
				continue // a busy machine sets carriers up more slowly than they are broken here
			}
			if i%3 > 0 {
				w.net.killOne()
			} else if alive := w.net.alive(); len(alive) > 1 {
				c := alive[rand.IntN(len(alive))]
				c.stall(true)
				if i%2 == 0 {
					breaking.Go(func() {
						select {
						case <-stop:
						case <-time.After(time.Duration(rand.IntN(1500)) * time.Millisecond):
						}
						c.stall(false)
					})
				}
			}
		}
	})
	var working sync.WaitGroup
	for i := range workers {
		working.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			for range each {
				var c *conn
				waitFor(t, "a path", func() bool {
					w.open0(&c)
					return c != nil
				})
				if err := both(c, rng.Uint64()>>40, size(rng)); err != nil {
					t.Errorf("edge, stream %d: %v (%+v)", c.s.ID(), err, c.s.Stats())
					c.s.Reset(wire.ResetByPeer)
				}
			}
		})
	}
	working.Wait()
	answered.Wait()
	close(stop)
	breaking.Wait()
	w.net.heal()
	w.checkClean()
	t.Logf("carriers set up %v, stream moves %v", count(w.pool.env.metrics.carriersBegun),
		count(w.pool.env.metrics.moves)+count(w.server.env.metrics.moves))
}
