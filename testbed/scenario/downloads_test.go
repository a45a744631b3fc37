package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
)

// downloads read slowly from endpoints that never stop, and check every byte.
type downloads struct {
	count int
	all   []*download
}

type download struct {
	client netip.AddrPort
	bytes  atomic.Int64
	ended  chan struct{}
	err    error // read after ended
}

// download begins downloads, every second one over IPv6.
func (d *deployment) download(t *testing.T, n int) *downloads {
	t.Helper()
	out := &downloads{count: n}
	ctx, cancel := context.WithCancel(d.ctx)
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for i := range n {
		at := d.at(load.PortSource)
		if i%2 == 1 {
			at = d.at6(load.PortSource)
		}
		dialed, stop := context.WithTimeout(ctx, 10*time.Second)
		c, err := d.Dial("london")(dialed, "tcp", at.String())
		stop()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).SetReadBuffer(16 << 10); err != nil { // so that it is not ahead for long
			t.Fatal(err)
		}
		x := &download{client: c.LocalAddr().(*net.TCPAddr).AddrPort(), ended: make(chan struct{})}
		out.all = append(out.all, x)
		context.AfterFunc(ctx, func() { c.Close() })
		running.Go(func() { x.read(ctx, c, time.Duration(n)*downloadPace) })
	}
	return out
}

// downloadPace keeps what all downloads bring together at 6 MB/s.
const downloadPace = 2500 * time.Microsecond

func (x *download) read(ctx context.Context, c net.Conn, pace time.Duration) {
	defer close(x.ended)
	defer c.Close()
	pattern := load.NewPattern(0)
	got, want := make([]byte, 16<<10), make([]byte, 16<<10)
	for ctx.Err() == nil {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, err := io.ReadFull(c, got)
		if _, e := io.ReadFull(pattern, want[:n]); e != nil {
			err = errors.Join(err, e)
		}
		if !bytes.Equal(got[:n], want[:n]) {
			err = errors.New("other bytes than the endpoint sent")
		}
		x.bytes.Add(int64(n))
		if err != nil {
			x.err = fmt.Errorf("%v, after %d bytes: %w", x.client, x.bytes.Load(), err)
			return
		}
		time.Sleep(pace)
	}
	<-ctx.Done()
}

// broken returns the downloads that have ended.
func (f *downloads) broken() (all []*download) {
	for _, x := range f.all {
		select {
		case <-x.ended:
			all = append(all, x)
		default:
		}
	}
	return all
}

// progress waits until each download that has not ended has brought a good deal more: more than was on its way.
func (f *downloads) progress(t *testing.T) {
	t.Helper()
	was := make([]int64, len(f.all))
	for i, x := range f.all {
		was[i] = x.bytes.Load()
	}
	eventually(t, 40*time.Second, "downloads go on", func() error {
		for i, x := range f.all {
			select {
			case <-x.ended:
				continue
			default:
			}
			if x.bytes.Load()-was[i] < 128<<10 {
				return fmt.Errorf("%v stands at %d bytes", x.client, x.bytes.Load())
			}
		}
		return nil
	})
}
