package udpio

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"
)

// Serve loses nothing that comes while it handles or before it waits, and ends as it should.
func TestServe(t *testing.T) {
	server := mustListen(t, loopback4, Options{})
	const total = 5000
	all, ended := make(chan struct{}), make(chan error)
	next := 0
	go func() {
		ended <- server.Serve(func(pkts []Packet, err error) error {
			for _, p := range pkts {
				if !bytes.Equal(p.Data, pattern(next, 100)) {
					t.Errorf("packet %d is another", next)
				}
				if next++; next == total {
					close(all)
				}
			}
			return err
		})
	}()
	client := mustDial(t, server.LocalAddr(), Options{})
	for i := range total { // one by one: the reader is found waiting, reading and in between
		writeAll(t, client, []Packet{{Data: pattern(i, 100)}})
	}
	select {
	case <-all:
	case err := <-ended:
		t.Fatalf("ended early: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("packets are missing")
	}
	server.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	other := mustListen(t, loopback4, Options{})
	enough := errors.New("enough")
	go func() { ended <- other.Serve(func([]Packet, error) error { return enough }) }()
	writeAll(t, mustDial(t, other.LocalAddr(), Options{}), []Packet{{Data: []byte("x")}})
	if err := <-ended; !errors.Is(err, enough) {
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
	ended, done := make(chan error), make(chan struct{})
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
	case <-time.After(20 * time.Second):
		t.Fatal("packets are missing")
	}
	writeAll(t, client, []Packet{{Data: []byte("one more")}})
	for begin := time.Now(); server.Behind() != 0; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("still behind with an empty socket")
		}
	}
	server.Close()
	<-ended
	if seen < total/readMessages-1 || longest == 0 {
		t.Errorf("behind at %d of %d full batches, for %v at most", seen, total/readMessages, longest)
	}
}
