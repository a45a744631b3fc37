package listen

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// Against an oracle that asks of every port by itself.
func TestSpare(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	mine, alien := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.1")
	own := map[netip.Addr]bool{mine: true}
	parted := 0
	for range 200 {
		taken := map[Service]bool{}
		for range rng.IntN(6) {
			at := []netip.Addr{mine, alien, netip.IPv4Unspecified(), netip.IPv6Unspecified(), lo4}[rng.IntN(5)]
			taken[Service{[]flow.Proto{flow.TCP, flow.UDP}[rng.IntN(2)], netip.AddrPortFrom(at, uint16(1+rng.IntN(40)))}] = true
		}
		var bindings []Binding
		for _, addr := range []netip.Addr{mine, alien} {
			from := uint16(1 + rng.IntN(20))
			bindings = append(bindings, Binding{Proto: flow.TCP, Addr: addr,
				Ports: model.PortRange{From: from, To: from + uint16(rng.IntN(20))}})
		}
		kept, l := spare(bindings, own, taken)
		if len(kept) > len(bindings) {
			parted++
		}
		for _, addr := range []netip.Addr{mine, alien} {
			for port := uint16(1); port < 50; port++ {
				at := netip.AddrPortFrom(addr, port)
				wanted := slices.ContainsFunc(bindings, func(b Binding) bool { return b.Addr == addr && b.Ports.Contains(port) })
				has := 0
				for _, b := range kept {
					if b.Addr == addr && b.Ports.Contains(port) {
						has++
					}
				}
				service := addr == mine && (taken[Service{flow.TCP, at}] ||
					taken[Service{flow.TCP, netip.AddrPortFrom(netip.IPv4Unspecified(), port)}] ||
					taken[Service{flow.TCP, netip.AddrPortFrom(netip.IPv6Unspecified(), port)}])
				if has > 1 || (has == 1) != (wanted && !service) {
					t.Fatalf("%v: wanted %v, a service %v, kept %d times", at, wanted, service, has)
				}
				if slices.Contains(l.narrow, Service{flow.TCP, at}) != (wanted && service) || len(l.wide) > 0 {
					t.Fatalf("%v: told %v", at, l)
				}
			}
		}
	}
	if parted == 0 {
		t.Error("no binding was parted")
	}
	_, l := spare([]Binding{{Proto: flow.TCP, Addr: mine, Ports: model.PortRange{From: 1, To: 65535}}}, own,
		map[Service]bool{{flow.TCP, netip.MustParseAddrPort("0.0.0.0:22")}: true})
	if fmt.Sprint(l.wide) != "[203.0.113.7:22/tcp]" || l.narrow != nil {
		t.Errorf("of all ports, %v is left", l)
	}
}

// The kernel tells of sockets that listen, and of no others.
func TestListening(t *testing.T) {
	any4, err := net.Listen("tcp4", "0.0.0.0:0")
	must(t, err)
	defer any4.Close()
	one, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer one.Close()
	client, err := net.Dial("tcp", one.Addr().String())
	must(t, err)
	defer client.Close()
	found, err := listening()
	must(t, err)
	for _, l := range []net.Listener{any4, one} {
		if !found[Service{flow.TCP, l.Addr().(*net.TCPAddr).AddrPort()}] {
			t.Errorf("%v is not among %d", l.Addr(), len(found))
		}
	}
	if found[Service{flow.TCP, client.LocalAddr().(*net.TCPAddr).AddrPort()}] {
		t.Error("a connection is taken for a service")
	}
	own, err := interfaceAddresses()
	if err != nil || own[lo4] {
		t.Errorf("interfaces' addresses %v, %v", own, err)
	}
}

// A listener of all ports of an address that the machine itself uses leaves it what it has.
func TestServicesAreSpared(t *testing.T) {
	d := dispatcher(t)
	f := start(t, Config{Dispatch: d})
	a := ownLoopback(9)
	ssh, err := net.Listen("tcp4", netip.AddrPortFrom(a, freePorts(t, 1).From).String())
	must(t, err)
	defer ssh.Close()
	at := ssh.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		for {
			c, err := ssh.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "SSH")
			c.Close()
		}
	}()
	knows := func(own map[netip.Addr]bool, err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.machine.addresses = func() (map[netip.Addr]bool, error) { return own, err }
	}
	knows(map[netip.Addr]bool{a: true}, nil)
	must(t, f.Apply([]Binding{everyPort(a, flow.TCP)}))
	if got, err := greet(at); err != nil || got != "SSH" {
		t.Errorf("SSH is answered by %q, %v", got, err)
	}
	all, wanted := f.Left() // the machine may have other services
	if !slices.Contains(all, Service{flow.TCP, at}) || len(wanted) != 0 {
		t.Errorf("left are %v, wanted of them %v", all, wanted)
	}
	other := netip.AddrPortFrom(a, at.Port()-1)
	for slices.Contains(all, Service{flow.TCP, other}) {
		other = netip.AddrPortFrom(a, other.Port()-1)
	}
	if got, err := greet(other); err != nil || got != other.String() {
		t.Errorf("another port says %q, %v", got, err)
	}
	must(t, f.Apply([]Binding{{Listener: "l", Proto: flow.TCP, Addr: a, Ports: model.PortRange{From: at.Port(), To: at.Port()}}}))
	if _, wanted := f.Left(); len(wanted) != 1 || wanted[0].At != at {
		t.Errorf("wanted of what is left is %v", wanted)
	}
	ssh.Close()
	f.retryShared() // as it does every few seconds
	if got, err := greet(at); err != nil || got != at.String() {
		t.Errorf("the port of a service that is gone says %q, %v", got, err)
	}
	knows(nil, errors.New("not to be known"))
	f.retryShared()
	if got, err := greet(at); err != nil || got != at.String() {
		t.Errorf("without knowledge the port says %q, %v", got, err)
	}
	f.stop()
	if _, err := greet(at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a stopped Set answers: %v", err)
	}
}

func FuzzDiagnosed(f *testing.F) {
	f.Add(make([]byte, 72))
	f.Add([]byte{2, 10})
	f.Fuzz(func(t *testing.T, b []byte) {
		if at, ok := diagnosed(b); ok && !at.IsValid() {
			t.Errorf("%v", at)
		}
	})
}
