package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/proxyproto"
	"github.com/nearcast/nearcast/edge/pump"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// OpenError is why no endpoint took a flow.
type OpenError struct {
	Code     wire.OpenCode
	Endpoint model.EndpointID // the last one tried, if any
	Err      error            // nil when Code says it all
}

func (e *OpenError) Error() string {
	if e.Err == nil {
		return e.Code.String()
	}
	return e.Err.Error()
}

func (e *OpenError) Unwrap() error { return e.Err }

var (
	errForbidden = errors.New("endpoint must not be dialled")
	errFamily    = errors.New("the endpoint's address family is not the client's, whose address it wants")
)

// DialLocal connects a flow of this node's own relay to an endpoint. The connection is ready for the
// client's bytes. The error is an *OpenError.
func (g *Gateway) DialLocal(ctx context.Context, open *wire.Open) (*net.TCPConn, model.EndpointID, error) {
	if g.flows.Add(1) > int64(g.cfg.MaxFlows) {
		g.flows.Add(-1)
		return nil, "", &OpenError{Code: wire.OpenOverloaded}
	}
	conn, endpoint, _, err := g.dial(ctx, open, true)
	if err != nil {
		g.flows.Add(-1)
	}
	return conn, endpoint, err
}

// ReleaseLocal says that a flow that DialLocal connected has ended.
func (g *Gateway) ReleaseLocal() { g.flows.Add(-1) }

// find returns the group of an Open, or why it is refused.
func (g *Gateway) find(open *wire.Open, local bool) (*plan, *groupPlan, *OpenError) {
	p := g.plan.Load()
	switch {
	case open.HopsLeft == 0:
		return nil, nil, &OpenError{Code: wire.OpenHops}
	case g.draining.Load() && !local && open.Flags&wire.OpenFailOpen == 0:
		// A flow that fails open has tried everything else: drained is better than nothing.
		return nil, nil, &OpenError{Code: wire.OpenDraining}
	}
	group := p.groups[model.GroupID(open.Group)]
	// The addresses of another region's endpoints may be private, and lead elsewhere from here.
	if group == nil || group.listener == nil || string(group.Listener) != open.Listener ||
		!group.ours && !(local && group.direct) {
		return nil, nil, &OpenError{Code: wire.OpenUnknown}
	}
	if group.ports != nil {
		// An edge that knows more by now may find another gateway that does.
		if _, _, ok := group.mapped(open); !ok {
			return nil, nil, &OpenError{Code: wire.OpenUnknown}
		}
	}
	return p, group, nil
}

// A pick goes through the endpoints of a group for one flow, best first. Of custom routing there is one.
type pick struct {
	g     *Gateway
	p     *plan
	group *groupPlan
	hash  uint64
	port  uint16 // of the endpoints
	open  bool
	only  *model.Endpoint // of custom routing, until it was taken
	tried []int
	buf   [triesMax]int
}

func (g *Gateway) newPick(p *plan, group *groupPlan, open *wire.Open) *pick {
	tuple := flow.Tuple{Src: open.Src, Dst: open.Dst, Proto: flow.Proto(open.Proto)}
	k := &pick{
		g: g, p: p, group: group, open: open.Flags&wire.OpenFailOpen != 0,
		hash: steer.Hash(group.listener.Affinity, p.seed, tuple),
	}
	k.tried = k.buf[:0]
	if group.ports != nil {
		k.only, k.port, _ = group.mapped(open)
	} else {
		k.port = group.EndpointPort(open.Dst.Port())
	}
	return k
}

// next returns the next endpoint to try: those in trouble come last. more says whether there is
// another one after it.
func (k *pick) next() (e *model.Endpoint, more bool) {
	if k.group.ports != nil {
		e, k.only = k.only, nil
		return e, false
	}
	if len(k.tried) == triesMax {
		return nil, false
	}
	skip := func(i int) bool { return slices.Contains(k.tried, i) }
	i := -1
	if k.g.trouble.any() {
		i = k.choose(func(i int) bool {
			return skip(i) || k.g.trouble.has(k.group.ID, k.group.Endpoints[i].ID)
		})
	}
	if i < 0 {
		i = k.choose(skip)
	}
	if i < 0 {
		return nil, false
	}
	k.tried = append(k.tried, i)
	more = len(k.tried) < triesMax && k.choose(skip) >= 0
	return &k.group.Endpoints[i], more
}

// choose picks a healthy endpoint, and for a flow that fails open any if there is none: the edge may
// have found nothing for another reason than health.
func (k *pick) choose(skip func(int) bool) int {
	picker := k.group.picker.Load()
	if i := picker.Pick(k.hash, false, skip); i >= 0 || !k.open {
		return i
	}
	return picker.Pick(k.hash, true, skip)
}

// dial connects a TCP flow to the first endpoint that takes it. own is how long this node kept it waiting
// after the endpoint had answered.
func (g *Gateway) dial(ctx context.Context, open *wire.Open, local bool) (
	conn *net.TCPConn, endpoint model.EndpointID, own time.Duration, err error) {
	p, group, refusal := g.find(open, local)
	if refusal != nil {
		return nil, "", 0, refusal
	}
	ctx, cancel := context.WithTimeout(ctx, g.cfg.OpenBudget)
	defer cancel()
	last := &OpenError{Code: wire.OpenNoEndpoint}
	for k := g.newPick(p, group, open); ; {
		e, more := k.next()
		if e == nil {
			return nil, "", 0, last
		}
		timeout := g.cfg.DialTimeout
		if more {
			timeout /= 2
		}
		conn, own, err := g.dialEndpoint(ctx, k, e, open, timeout)
		if err == nil {
			return conn, e.ID, own, nil
		}
		last = &OpenError{Code: codeOf(err), Endpoint: e.ID, Err: fmt.Errorf("dial endpoint %s: %w", e.ID, err)}
		if ctx.Err() == nil && group.ports == nil {
			g.trouble.add(group.ID, e.ID)
		}
		g.metrics.dialsFailed.WithLabelValues(last.Code.String()).Inc()
		if ctx.Err() != nil {
			return nil, "", 0, last
		}
	}
}

// dialEndpoint connects to one endpoint; a name's addresses are tried one after the other.
func (g *Gateway) dialEndpoint(ctx context.Context, k *pick, e *model.Endpoint, open *wire.Open,
	timeout time.Duration) (conn *net.TCPConn, own time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addrs, err := g.addresses(ctx, e)
	if err != nil {
		return nil, 0, err
	}
	for i := range addrs {
		// The same flow begins with the same address, so that a name's addresses share the load.
		to := netip.AddrPortFrom(addrs[(uint64(i)+k.hash)%uint64(len(addrs))], k.port)
		if why := k.p.rules.Check(to); why != nil {
			err = fmt.Errorf("%w: %w", errForbidden, why)
			continue
		}
		begin := time.Now()
		if conn, err = connect(ctx, e.ClientAddress, open, to); err == nil {
			return conn, overdue(conn, time.Since(begin)), nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, 0, err
}

// overdue returns how much longer a connect took than the endpoint, as the kernel saw it: that is how long
// this process had no time to look. Who connected promptly is not worth the question.
func overdue(conn *net.TCPConn, took time.Duration) time.Duration {
	if took < promptDial {
		return took
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var own time.Duration
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Total_retrans == 0 { // the SYN was not lost
			own = max(0, took-time.Duration(info.Rtt)*time.Microsecond)
		}
	})
	return own
}

// addresses returns where an endpoint is.
func (g *Gateway) addresses(ctx context.Context, e *model.Endpoint) ([]netip.Addr, error) {
	if addr := e.Addr(); addr.IsValid() {
		return []netip.Addr{addr}, nil
	}
	return g.names.resolve(ctx, e.Host)
}

// connect connects to an address and says there who the client is, in the way that is wanted.
func connect(ctx context.Context, mode model.ClientAddressMode, open *wire.Open, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}
	d.SetMultipathTCP(false)
	var from netip.AddrPort
	if mode == model.ClientAddressTransparent {
		if open.Src.Addr().Is4() != to.Addr().Is4() {
			return nil, errFamily
		}
		from, d.Control = open.Src, transparent
	} else {
		d.Control = boundBuffer
	}
	conn, err := d.DialTCP(ctx, "tcp", from, to)
	if err != nil {
		return nil, err
	}
	var header []byte
	switch mode {
	case model.ClientAddressProxyV1:
		header = proxyproto.AppendV1(nil, open.Src, open.Dst)
	case model.ClientAddressProxyV2:
		header = proxyproto.AppendV2(nil, open.Src, open.Dst, false)
	default:
		return conn, nil
	}
	// It always fits: nothing was written before.
	if _, err := conn.Write(header); err != nil {
		pump.Abort(conn)
		return nil, err
	}
	return conn, nil
}

// boundBuffer bounds what the kernel holds of a connection that the endpoint does not read.
func boundBuffer(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// Without it everything works, and stalled flows cost more kernel memory.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, notsentLowat)
	})
}

// transparent lets a socket have an address that is not this machine's, and one that another socket
// has towards another endpoint.
func transparent(network, address string, c syscall.RawConn) error {
	if err := boundBuffer(network, address, c); err != nil {
		return err
	}
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	var err error
	cerr := c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), level, option, 1); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
	})
	if err != nil {
		return fmt.Errorf("use the client's address: %w", err)
	}
	return cerr
}

// codeOf says what an error of dialling is called on the wire.
func codeOf(err error) wire.OpenCode {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, errForbidden):
		return wire.OpenForbidden
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return wire.OpenRefused
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS),
		errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EADDRINUSE):
		return wire.OpenOverloaded
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return wire.OpenTimeout
	}
	return wire.OpenUnreachable
}

// troubles remembers for a moment which endpoints did not take a connection. It is bounded: when it
// is full, nothing is added.
type troubles struct {
	count atomic.Int32 // len(until), to be read without mu

	mu    sync.Mutex
	until map[troubleKey]time.Time
}

type troubleKey struct {
	group    model.GroupID
	endpoint model.EndpointID
}

func (t *troubles) any() bool { return t.count.Load() > 0 }

func (t *troubles) add(group model.GroupID, endpoint model.EndpointID) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.until == nil {
		t.until = map[troubleKey]time.Time{}
	}
	for k, until := range t.until {
		if now.After(until) {
			delete(t.until, k)
		}
	}
	if len(t.until) < troublesMax {
		t.until[troubleKey{group, endpoint}] = now.Add(troubleTime)
	}
	t.count.Store(int32(len(t.until)))
}

func (t *troubles) has(group model.GroupID, endpoint model.EndpointID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.until[troubleKey{group, endpoint}]
	if ok && time.Now().After(until) {
		delete(t.until, troubleKey{group, endpoint})
		t.count.Store(int32(len(t.until)))
		return false
	}
	return ok
}
