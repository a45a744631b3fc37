package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Long is connections that stay: each sends a numbered message to an echo port every Every and
// checks what comes back. It tells how many broke and how long the longest silence was.
type Long struct {
	Dial  Dial
	Addr  netip.AddrPort // an echo port
	Count int
	Every time.Duration

	Answered atomic.Int64 // connections that have had an echo
	Broken   atomic.Int64 // connections that ended or returned wrong bytes
	Messages atomic.Int64 // echoed

	mu      sync.Mutex
	errs    []error
	silence time.Duration
}

// Run opens Count connections, reports that on opened, and keeps them busy until ctx ends.
func (l *Long) Run(ctx context.Context, opened func()) error {
	conns := make([]net.Conn, 0, l.Count)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range l.Count {
		c, err := l.Dial(ctx, "tcp", l.Addr.String())
		if err != nil {
			return fmt.Errorf("open connection %d of %d: %w", len(conns)+1, l.Count, err)
		}
		conns = append(conns, c)
	}
	if opened != nil {
		opened()
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		stop := context.AfterFunc(ctx, func() { c.Close() })
		wg.Go(func() {
			defer stop()
			if err := l.converse(ctx, c, uint64(i)); err != nil && ctx.Err() == nil {
				l.Broken.Add(1)
				l.mu.Lock()
				l.errs = append(l.errs, fmt.Errorf("connection %d: %w", i, err))
				l.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
}

func (l *Long) converse(ctx context.Context, c net.Conn, id uint64) error {
	out, in := make([]byte, 64), make([]byte, 64)
	tick := time.NewTicker(l.Every)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		binary.BigEndian.PutUint64(out, id)
		binary.BigEndian.PutUint64(out[8:], n)
		begin := time.Now()
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			return errors.New("the echo differs from what was sent")
		}
		if n == 0 {
			l.Answered.Add(1)
		}
		l.Messages.Add(1)
		l.noteSilence(time.Since(begin))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (l *Long) noteSilence(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silence = max(l.silence, d)
}

// Silence returns the longest wait for an echo, and Errors why connections broke.
func (l *Long) Silence() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.silence
}

// Errors returns why connections broke.
func (l *Long) Errors() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}
