package dispatch

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/ports"
)

// Family is an IP version.
type Family uint8

// The families that sockets are looked up for.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Group is the sockets that serve one slot, protocol and family.
type Group struct {
	Slot   uint8
	Proto  Proto
	Family Family

	// Sockets are listening TCP sockets or bound, unconnected UDP sockets, at most GroupSockets of them; what
	// they are bound to does not matter. An IPv6 socket without IPV6_V6ONLY may serve IPv4 as well. Multipath
	// TCP listeners are refused by the kernel (net.ListenConfig.SetMultipathTCP(false)).
	Sockets []syscall.Conn
}

// Validate checks what can be checked without the kernel.
func (g Group) Validate() error {
	switch {
	case g.Slot >= Slots:
		return fmt.Errorf("sockets of slot %d: slot is not below %d", g.Slot, Slots)
	case g.Proto != TCP && g.Proto != UDP:
		return fmt.Errorf("sockets of slot %d: protocol is neither TCP nor UDP", g.Slot)
	case g.Family != IPv4 && g.Family != IPv6:
		return fmt.Errorf("sockets of slot %d: family is neither 4 nor 6", g.Slot)
	case len(g.Sockets) > GroupSockets:
		return fmt.Errorf("sockets of slot %d: more than %d", g.Slot, GroupSockets)
	}
	return nil
}

// index is the group's place within a generation.
func (g Group) index() uint32 {
	i := uint32(g.Slot) * 4
	if g.Proto == UDP {
		i += 2
	}
	if g.Family == IPv6 {
		i++
	}
	return i
}

// SetSockets makes these sockets, and no others, the ones that rules lead to: all of them by one byte in a map,
// so there is no moment without sockets. Sockets of an earlier call or process keep what is in their queues,
// and held flows. The caller keeps the sockets open; a closed one leaves the maps by itself.
func (d *Dispatcher) SetSockets(groups []Group) error {
	seen := map[uint32]bool{}
	for _, g := range groups {
		if err := g.Validate(); err != nil {
			return err
		}
		if seen[g.index()] {
			return fmt.Errorf("sockets of slot %d, %v, IPv%d: named twice", g.Slot, g.Proto, g.Family)
		}
		seen[g.index()] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	sw, err := d.switches()
	if err != nil {
		return err
	}
	if d.generation >= 0 && uint32(d.generation) != sw.Live {
		return ErrTakenOver
	}
	next := sw.Live%255 + 1 // 0 is before anybody's
	if err := d.fill(next, groups); err != nil {
		return err
	}
	sw.Live, sw.Steer = next, uint32(d.cfg.Steer)
	if err := d.objs.Control.Put(uint32(0), sw); err != nil {
		return fmt.Errorf("make sockets live: %w", err)
	}
	d.generation = int(next)
	// The table may have been changed by the process before us since we read it.
	d.table, err = ports.Open(d.objs.Prefixes, d.objs.Ranges)
	return err
}

// fill writes the sockets of a generation that is not live yet, over those of the eighth one before it.
func (d *Dispatcher) fill(generation uint32, groups []Group) error {
	base := generation % generations * groupsPerGeneration
	for i := range uint32(groupsPerGeneration) {
		var old dispatchGroup
		if err := d.objs.Groups.Lookup(base+i, &old); err != nil {
			return fmt.Errorf("read socket group: %w", err)
		}
		if err := d.objs.Groups.Put(base+i, dispatchGroup{Generation: generation}); err != nil {
			return fmt.Errorf("empty socket group: %w", err)
		}
		for s := range old.Count {
			err := d.objs.Sockets.Delete((base+i)*GroupSockets + s)
			if errors.Is(err, ebpf.ErrKeyNotExist) || errors.Is(err, unix.EINVAL) {
				continue // sockmaps say EINVAL for an empty place
			}
			if err != nil {
				return fmt.Errorf("remove old socket: %w", err)
			}
		}
	}
	ports.WaitForPrograms() // none still chooses among the sockets that were here
	for _, g := range groups {
		at := base + g.index()
		for s, sock := range g.Sockets {
			if err := d.putSocket(at*GroupSockets+uint32(s), sock); err != nil {
				return fmt.Errorf("put socket %d of slot %d, %v, IPv%d: %w", s, g.Slot, g.Proto, g.Family, err)
			}
		}
		value := dispatchGroup{Generation: generation, Count: uint32(len(g.Sockets))}
		if err := d.objs.Groups.Put(at, value); err != nil {
			return fmt.Errorf("write socket group: %w", err)
		}
	}
	return nil
}

func (d *Dispatcher) putSocket(index uint32, sock syscall.Conn) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var putErr error
	err = raw.Control(func(fd uintptr) { putErr = d.objs.Sockets.Put(index, uint64(fd)) })
	if errors.Is(putErr, unix.EOPNOTSUPP) {
		return fmt.Errorf("not a listening TCP or bound UDP socket, or a Multipath TCP one: %w", putErr)
	}
	return errors.Join(err, putErr)
}

// switches reads the control map's one element.
func (d *Dispatcher) switches() (sw dispatchSwitches, err error) {
	if err := d.objs.Control.Lookup(uint32(0), &sw); err != nil {
		return sw, fmt.Errorf("read control map: %w", err)
	}
	return sw, nil
}

// mustBeLive keeps a process that was taken over from changing the rules of its successor. One that has not
// set sockets yet must not either, while another one's are live.
func (d *Dispatcher) mustBeLive() error {
	sw, err := d.switches()
	if err != nil {
		return err
	}
	if d.generation < 0 && sw.Live == 0 {
		return nil // nobody has ever set sockets: rules may come first
	}
	if d.generation < 0 || uint32(d.generation) != sw.Live {
		return ErrTakenOver
	}
	return nil
}

// HandshakeGrace is how long a process that was taken over should go on accepting: the handshakes that its
// listening sockets have begun end there, and a lost SYN-ACK is sent again after 1, 3 and 7 seconds.
const HandshakeGrace = 8 * time.Second

// Live says whether this process's sockets are the ones that new connections go to.
func (d *Dispatcher) Live() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sw, err := d.switches()
	return d.generation >= 0 && uint32(d.generation) == sw.Live, err
}

// Flow is a UDP flow as its client made it.
type Flow struct {
	Remote netip.AddrPort
	Local  netip.AddrPort // the accelerated address and port
}

func (f Flow) key() dispatchFlow {
	return dispatchFlow{
		Family:     ports.Family(f.Local.Addr()),
		RemotePort: f.Remote.Port()<<8 | f.Remote.Port()>>8,
		LocalPort:  f.Local.Port(),
		Remote:     ports.Words(f.Remote.Addr()),
		Local:      ports.Words(f.Local.Addr()),
	}
}

// Hold keeps the datagrams of UDP flows coming to this process's sockets after another process has taken over.
// A process that is about to hand over calls it with the flows it has, and once more, after the hand-over,
// with those that came in between. IPv4 addresses must not be mapped into IPv6. Before its sockets are set
// a process can't hold anything.
func (d *Dispatcher) Hold(flows []Flow) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.generation < 0 {
		return errors.New("hold flows: no sockets are set")
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, f := range flows {
		if f.Local.Addr().Is4In6() || f.Remote.Addr().Is4() != f.Local.Addr().Is4() {
			return fmt.Errorf("hold flow %v-%v: not two plain addresses of one family", f.Remote, f.Local)
		}
		if err := d.objs.Held.Put(f.key(), uint32(d.generation)); err != nil {
			return fmt.Errorf("hold flow %v-%v: %w", f.Remote, f.Local, err)
		}
		d.held[f] = struct{}{}
	}
	return d.setHolding(len(flows) > 0)
}

// Release ends the hold of flows that are over; flows that are not held do no harm.
func (d *Dispatcher) Release(flows []Flow) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range flows {
		if _, ok := d.held[f]; !ok {
			continue
		}
		delete(d.held, f)
		if err := d.objs.Held.Delete(f.key()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("release flow: %w", err)
		}
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return d.setHolding(false)
}

// setHolding turns the program's look into held on, or off if nobody holds anything. Its caller has the lock.
func (d *Dispatcher) setHolding(on bool) error {
	if !on {
		var k dispatchFlow
		on = d.objs.Held.NextKey(nil, &k) == nil
	}
	sw, err := d.switches()
	if err != nil {
		return err
	}
	sw.Holding = 0
	if on {
		sw.Holding = 1
	}
	if err := d.objs.Control.Put(uint32(0), sw); err != nil {
		return fmt.Errorf("write control map: %w", err)
	}
	return nil
}
