package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tproxy is what people use for many ports on one socket without sk_lookup: a transparent socket, to which a rule of
// the packet filter hands the packets.
type tproxy struct {
	listener *net.TCPListener
	open     int // listeners that there are now
}

// startTPROXY opens the socket, and writes the rules for so many listeners; 0: for each port of the prefix.
func startTPROXY(ctx context.Context, listeners int) (*tproxy, error) {
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	match := fmt.Sprintf("ip daddr %v tcp dport 1-65535", doorsPrefix)
	if listeners > 0 {
		match = fmt.Sprintf("ip daddr %v tcp dport @ports", doorsAddress)
	}
	var rules strings.Builder
	fmt.Fprintln(&rules, "table ip bench { set ports { type inet_service; }")
	fmt.Fprintln(&rules, "chain in { type filter hook prerouting priority mangle;")
	fmt.Fprintln(&rules, "meta l4proto tcp socket transparent 1 accept") // packets of connections that there are
	fmt.Fprintf(&rules, "%s tproxy to 127.0.0.1:%d accept\n}\n}\n", match, port)
	for i := range listeners {
		fmt.Fprintf(&rules, "add element ip bench ports { %d }\n", doorsPort(i))
	}
	if err := nft(rules.String()); err != nil {
		l.Close()
		return nil, err
	}
	return &tproxy{l.(*net.TCPListener), listeners}, nil
}

func nft(rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// change opens or closes the last listener, so that there are n.
func (p *tproxy) change(n int) error {
	verb, port := "add", doorsPort(n-1)
	if n < p.open {
		verb, port = "delete", doorsPort(n)
	}
	p.open = n
	return nft(fmt.Sprintf("%s element ip bench ports { %d }\n", verb, port))
}

// run accepts until ctx ends.
func (p *tproxy) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.listener.Close() })
	defer stop()
	for {
		c, err := p.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		tellAccepted(c)
	}
}
