package relay

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// worlds are the three ways a flow can take to its endpoint.
func worlds(t *testing.T, f func(t *testing.T, w *world)) {
	t.Run("backbone", func(t *testing.T) {
		f(t, newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)}}))
	})
	t.Run("this node is the gateway", func(t *testing.T) {
		f(t, newWorld(t, spec{selfGateway: "x", groups: []model.EndpointGroup{group("x", 1)}}))
	})
	t.Run("no gateway", func(t *testing.T) {
		f(t, newWorld(t, spec{groups: []model.EndpointGroup{group("x", 1)}}))
	})
}

// pattern returns n random bytes.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rng.Read(b)
	return b
}

func TestBytes(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		w.serve(1, echo)
		var all sync.WaitGroup
		for i, size := range []int{0, 1, 100, 5_000, 65_536, 65_537, 300_000, 3_000_000, 20_000_000} {
			all.Go(func() {
				c, want := w.dial(), pattern(size, uint64(i))
				var sent sync.WaitGroup
				sent.Go(func() {
					if _, err := c.Write(want); err != nil {
						t.Error(err)
					}
					_ = c.CloseWrite()
				})
				got, err := io.ReadAll(c)
				sent.Wait()
				if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
					t.Errorf("%d bytes: %d came back, %v", size, len(got), err)
				}
			})
		}
		all.Wait()
		w.eventually("flows end", func() bool { return w.tcp.Flows() == 0 })
	})
}

func TestHalfClose(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		counted := make(chan error, 1)
		w.serve(1, func(c *net.TCPConn) { // ends its direction first, then counts
			_, _ = io.WriteString(c, "bye")
			_ = c.CloseWrite()
			n, err := io.Copy(io.Discard, c)
			if err == nil && n != 100_000 {
				err = fmt.Errorf("endpoint has got %d bytes", n)
			}
			counted <- err
		})
		c := w.dial()
		if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
			t.Fatalf("%q, %v", got, err)
		}
		if _, err := c.Write(pattern(100_000, 1)); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		w.eventually("flow ends", func() bool { return w.tcp.Flows() == 0 })
		// The flow is over once all is in the endpoint's kernel, which may be before the endpoint reads it.
		select {
		case err := <-counted:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the endpoint does not see the end")
		}
	})
}

func TestServerFirst(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		w.serve(1, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "220 ready\r\n")
			_, _ = io.Copy(io.Discard, c)
		})
		c := w.dial()
		line := make([]byte, 11)
		if _, err := io.ReadFull(c, line); err != nil || string(line) != "220 ready\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
	})
}

func TestResetOfEndpoint(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		w.serve(1, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})
		c := w.dial()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client sees %v, want a reset", err)
		}
		w.eventually("flow ends", func() bool { return w.tcp.Flows() == 0 })
	})
}

func TestResetOfClient(t *testing.T) {
	for _, busy := range []bool{false, true} {
		worlds(t, func(t *testing.T, w *world) {
			seen := make(chan error, 1)
			w.serve(1, func(c *net.TCPConn) {
				_, err := io.WriteString(c, "hello")
				for err == nil {
					if busy { // the endpoint is sending all the time
						_, err = c.Write(make([]byte, 10_000))
					} else {
						_, err = c.Read(make([]byte, 1))
					}
				}
				seen <- err
			})
			c := w.dial()
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			_ = c.SetLinger(0)
			c.Close()
			select {
			case err := <-seen:
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("endpoint sees %v, want a reset", err)
				}
			case <-time.After(time.Minute):
				t.Error("the endpoint does not see the end")
			}
			w.eventually("flow ends", func() bool { return w.tcp.Flows() == 0 })
		})
	}
}

// TestEndpointKilled: a flow whose endpoint dies in the middle is reset, and does not end as if all had
// been said.
func TestEndpointKilled(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		stop := w.serve(1, func(c *net.TCPConn) {
			for {
				if _, err := c.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		})
		c := w.dial()
		if _, err := io.ReadFull(c, make([]byte, 1_000_000)); err != nil {
			t.Fatal(err)
		}
		stop()
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client sees %v, want a reset", err)
		}
	})
}
