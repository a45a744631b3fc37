package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Arrivals are clients that come when they like, however long those before them take: the load of the
// world, which overload must be measured with. (A fixed number of clients that wait for each other's
// answers cannot ask for more than there is.) Each makes a connection, downloads, and leaves, or gives up.
type Arrivals struct {
	Enter   func(func() error) error // runs a function in the clients' network namespace, as NS.Do does
	Addr    netip.AddrPort           // IPv4
	Size    int64                    // bytes of each download
	Timeout time.Duration            // after which a client gives up
	// Rate is how many come each second. 0: as many as Waiting have come and not left, always.
	Rate    float64
	Waiting int
}

// Arrived says what came of it.
type Arrived struct {
	Came, Served, Refused, TimedOut int
	Lasted                          time.Duration
	took                            []time.Duration
}

// Goodput returns how many were served each second.
func (a *Arrived) Goodput() float64 { return float64(a.Served) / a.Lasted.Seconds() }

// Took returns a quantile of how long those took that were served.
func (a *Arrived) Took(q float64) time.Duration {
	slices.Sort(a.took)
	return Quantile(a.took, q)
}

// arrivalsMax bounds the clients that have not left: descriptors.
const arrivalsMax = 8000

// Run has clients come for so long. Those that came last are waited for, and count.
func (a *Arrivals) Run(ctx context.Context, lasts time.Duration) (out Arrived, err error) {
	var mu sync.Mutex
	var clients sync.WaitGroup
	most := arrivalsMax
	if a.Rate == 0 {
		most = a.Waiting
	}
	slots := make(chan struct{}, most)
	begin := time.Now()
	err = a.Enter(func() error {
		for ctx.Err() == nil && time.Since(begin) < lasts {
			due := out.Came + 1
			if a.Rate > 0 {
				if due = int(time.Since(begin).Seconds() * a.Rate); due <= out.Came {
					time.Sleep(time.Millisecond)
					continue
				}
			}
			for ; out.Came < due; out.Came++ {
				select {
				case slots <- struct{}{}:
				case <-time.After(lasts + 10*a.Timeout): // each of them gives up before that
					return errors.New("clients do not leave")
				case <-ctx.Done():
					return ctx.Err()
				}
				f, err := connectNow(a.Addr)
				if err != nil {
					return err
				}
				clients.Go(func() {
					came := time.Now()
					err := a.client(f)
					<-slots
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						out.Served++
						out.took = append(out.took, time.Since(came))
					case errors.Is(err, os.ErrDeadlineExceeded):
						out.TimedOut++
					default:
						out.Refused++
					}
				})
			}
		}
		return ctx.Err()
	})
	out.Lasted = time.Since(begin)
	clients.Wait()
	return out, err
}

// connectNow begins a connection from the namespace of the calling thread.
func connectNow(to netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %v: %w", to, err)
	}
	return os.NewFile(uintptr(fd), to.String()), nil
}

// client downloads on a connection that is being made.
func (a *Arrivals) client(f *os.File) error {
	defer f.Close()
	if err := f.SetDeadline(time.Now().Add(a.Timeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(f, "GET /bytes/%d HTTP/1.1\r\nHost: load\r\n\r\n", a.Size); err != nil {
		return err
	}
	r := bufio.NewReader(f)
	length, _, err := readHead(r)
	if err == nil && length != a.Size {
		err = fmt.Errorf("answer has %d bytes, asked for %d", length, a.Size)
	}
	if err == nil {
		_, err = io.CopyN(io.Discard, r, a.Size)
	}
	return err
}
