package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// controllers is the list of where to ask, in the order to try: those that the operator gave and
// those that controllers told about.
type controllers struct {
	given []string
	path  string // where the learnt ones are kept

	mu     sync.Mutex // guards below
	learnt []string
	order  []string // shuffled; the rest of the present round
}

func newControllers(given []string, path string) *controllers {
	c := &controllers{given: given, path: path}
	if data, err := os.ReadFile(path); err == nil {
		c.learnt = cleanAddresses(strings.Fields(string(data)))
	}
	return c
}

// learn replaces what controllers told. It is kept over restarts if the disk takes it.
func (c *controllers) learn(addrs []string) {
	addrs = cleanAddresses(addrs)
	if len(addrs) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(addrs, c.learnt) {
		return
	}
	c.learnt = addrs
	if os.MkdirAll(filepath.Dir(c.path), 0o700) == nil {
		// Losing this costs nothing but the operator's own list being tried alone.
		_ = os.WriteFile(c.path, []byte(strings.Join(addrs, "\n")+"\n"), 0o600)
	}
}

// next returns the controller to try now. Each round tries all of them once, in random order, so
// that nodes spread over the controllers.
func (c *controllers) next() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.order) == 0 {
		c.order = slices.Clone(c.given)
		for _, a := range c.learnt {
			if !slices.Contains(c.order, a) {
				c.order = append(c.order, a)
			}
		}
		rand.Shuffle(len(c.order), func(i, j int) { c.order[i], c.order[j] = c.order[j], c.order[i] })
	}
	addr := c.order[0]
	c.order = c.order[1:]
	return addr
}

// cleanAddresses keeps what can be dialled, sorted, once each.
func cleanAddresses(addrs []string) []string {
	var clean []string
	for _, a := range addrs {
		if _, port, err := net.SplitHostPort(a); err == nil && port != "" && len(a) < 300 {
			clean = append(clean, a)
		}
	}
	slices.Sort(clean)
	clean = slices.Compact(clean)
	return clean[:min(len(clean), controllersMax)]
}

// dial returns a connection to a controller, which is opened by its first use.
func dial(addr string, secure *tls.Config) (*grpc.ClientConn, error) {
	dialer := &net.Dialer{Timeout: connectTimeout}
	dialer.SetMultipathTCP(false)
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(secure)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithNoProxy(), // a proxy in the environment is meant for the web
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveIdle, Timeout: keepaliveTimeout, PermitWithoutStream: false,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("controller %s: %w", addr, err)
	}
	return conn, nil
}

// backoff is waiting with full jitter: a random time up to a bound that doubles.
type backoff struct{ min, max, bound time.Duration }

// wait waits, and returns false if ctx ended.
func (b *backoff) wait(ctx context.Context) bool {
	b.bound = min(max(b.bound*2, b.min), b.max)
	timer := time.NewTimer(time.Duration(rand.Float64() * float64(b.bound)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (b *backoff) reset() { b.bound = 0 }
