package flowlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tails are live readers: whoever may open the socket (a file of mode 0600, so the user that the node
// runs as, and root) gets every record from now on as lines of JSON, also those of accelerators without
// flow logs.
type tails struct {
	count atomic.Int32

	mu      sync.Mutex
	readers map[chan []byte]*atomic.Uint64 // what each has missed
}

// send gives lines to all readers. One that is too slow misses them.
func (t *tails) send(lines []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ch, missed := range t.readers {
		select {
		case ch <- lines:
		default:
			missed.Add(1)
		}
	}
}

func (t *tails) serve(ctx context.Context, path string, log *slog.Logger) error {
	_ = os.Remove(path) // of a process that was killed; who runs two on one directory is told elsewhere
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		// The file gets the socket's mode when it is made, so that there is no moment at which it has another one.
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	ln, err := private.Listen(ctx, "unix", path)
	if err != nil {
		log.Warn("live flows cannot be read", "socket", path, "error", err)
		<-ctx.Done()
		return nil
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil:
			return fmt.Errorf("accept readers of live flows: %w", err)
		}
		if t.count.Add(1) > tailsMax {
			t.count.Add(-1)
			conn.Close()
			continue
		}
		running.Go(func() { t.feed(ctx, conn) })
	}
}

// feed writes to one reader until it goes away.
func (t *tails) feed(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ch, missed := make(chan []byte, tailQueue), new(atomic.Uint64)
	t.mu.Lock()
	if t.readers == nil {
		t.readers = map[chan []byte]*atomic.Uint64{}
	}
	t.readers[ch] = missed
	t.mu.Unlock()
	defer func() {
		t.count.Add(-1)
		t.mu.Lock()
		delete(t.readers, ch)
		t.mu.Unlock()
		conn.Close()
	}()
	gone := make(chan struct{})
	go func() { // the reader says nothing: it ends
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	defer func() { conn.Close(); <-gone }()
	for {
		select {
		case <-ctx.Done():
			return
		case lines := <-ch:
			if n := missed.Swap(0); n > 0 {
				lines = append(fmt.Appendf(nil, "{\"missed\":%d}\n", n), lines...)
			}
			_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Write(lines); err != nil && !errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}
}
