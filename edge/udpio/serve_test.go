package udpio

import (
	"bytes"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// Serve loses nothing that comes while it handles or before it waits, and ends as it should.
func TestServe(t *testing.T) {
	server := mustListen(t, loopback4, Options{})
	const total = 5000
	all, ended := make(chan struct{}), make(chan error, 1)
	var have atomic.Int64
	go func() {
		ended <- server.Serve(func(pkts []Packet, err error) error {
			for _, p := range pkts {
				if n := int(have.Load()); !bytes.Equal(p.Data, pattern(n, 100)) {
					t.Errorf("packet %d is another", n)
				}
				if have.Add(1) == total {
					close(all)
				}
			}
			return err
		})
	}()
	client := mustDial(t, server.LocalAddr(), Options{})
	for i := range total { // one by one: the reader is found waiting, reading and in between
		// Never more on the way than a socket's smallest buffer holds.
		until(t, "packets are read", func() bool { return have.Load() >= int64(i)-300 })
		writeAll(t, client, []Packet{{Data: pattern(i, 100)}})
	}
	select {
	case <-all:
	case err := <-ended:
		t.Fatalf("ended early: %v", err)
	case <-time.After(patience):
		t.Fatal("packets are missing")
	}
	server.Close()
	if err := next(t, ended); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	other := mustListen(t, loopback4, Options{})
	enough := errors.New("enough")
	go func() { ended <- other.Serve(func([]Packet, error) error { return enough }) }()
	writeAll(t, mustDial(t, other.LocalAddr(), Options{}), []Packet{{Data: []byte("x")}})
	if err := next(t, ended); !errors.Is(err, enough) {
		t.Errorf("handle's error: %v", err)
	}
}

// A reader that does not keep up is told from one that has a burst to read, and one that has caught up.
func TestBehind(t *testing.T) {
	server := mustListen(t, loopback4, Options{})
	client := mustDial(t, server.LocalAddr(), Options{NoGSO: true})
	const total = 10 * readMessages
	for i := range total {
		writeAll(t, client, []Packet{{Data: pattern(i, 10)}})
	}
	ended, done := make(chan error, 1), make(chan struct{})
	seen, got, longest := 0, 0, time.Duration(0)
	go func() {
		ended <- server.Serve(func(pkts []Packet, err error) error {
			if b := server.Behind(); b > 0 {
				seen++
				longest = max(longest, b)
			}
			if got += len(pkts); got == total {
				close(done)
			}
			return err
		})
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("packets are missing")
	}
	writeAll(t, client, []Packet{{Data: []byte("one more")}})
	until(t, "it is not behind with an empty socket", func() bool { return server.Behind() == 0 })
	server.Close()
	next(t, ended)
	if seen < total/readMessages-1 || longest == 0 {
		t.Errorf("behind at %d of %d full batches, for %v at most", seen, total/readMessages, longest)
	}
}
