package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/proto/model"
)

var errNotBalanced = errors.New("no interfaces to balance on are named (--balance-interfaces)")

// loadBalance loads the balancer and attaches it. As long as it knows nothing of the site, or goes on with what an
// earlier process left, so does the traffic.
func (p *Programs) loadBalance() error {
	if len(p.cfg.BalanceInterfaces) == 0 {
		if p.cfg.PinDir != "" {
			return errors.Join(errNotBalanced, balance.Remove(p.cfg.PinDir)) // of an earlier process
		}
		return errNotBalanced
	}
	b, err := balance.Load(balance.Config{PinDir: p.cfg.PinDir, FlowsMax: p.cfg.BalanceFlows, TakesOver: p.cfg.TakesOver, Log: p.log})
	if err != nil {
		return err
	}
	// The guard of an earlier process, until this one's comes.
	if !slices.Contains(p.cfg.GuardInterfaces, p.cfg.BalanceInterfaces[0]) || p.cfg.mode(Guard) == Off {
		err = b.Chain(nil)
	}
	for _, name := range p.cfg.BalanceInterfaces {
		if err != nil {
			break
		}
		err = p.attachBalance(b, name)
	}
	if err != nil {
		return errors.Join(err, b.Close())
	}
	p.balance = b
	return nil
}

func (p *Programs) attachBalance(b *balance.Balancer, name string) error {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if p.cfg.PinDir != "" { // an interface has room for one program; the guard comes behind this one
		if err := guard.Detach(p.cfg.PinDir, dev.Index); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	mode, err := b.Attach(dev.Index, p.cfg.XDPMode)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	p.log.Info("balancing on an interface", "interface", name, "xdp", mode.String())
	return nil
}

// chainGuard has the guard look at what balance takes, if they share their interfaces.
func (p *Programs) chainGuard(g *guard.Guard) error {
	if p.balance == nil || !slices.Contains(p.cfg.GuardInterfaces, p.cfg.BalanceInterfaces[0]) {
		return nil
	}
	return p.balance.Chain(g.Program())
}

// Balance returns the balancer, or nil if it is absent.
func (p *Programs) Balance() *balance.Balancer { return p.balance }

// balancedAddresses are those of anycast pools: any node of the site may get their packets. Addresses of node pools
// are one node's.
func balancedAddresses(s *model.Snapshot, self model.NodeID) []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	var all []netip.Prefix
	for i := range s.Listeners {
		on, anycast := addressesOf(s, self, &s.Listeners[i])
		if !anycast {
			continue
		}
		for _, a := range on {
			p := netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
			if !seen[p] {
				seen[p] = true
				all = append(all, p)
			}
		}
	}
	return all
}

// flowsNote says that the table of flows is about to forget flows that are in use; "": it isn't.
func flowsNote(f balance.Flows) string {
	if f.Used < f.Room*flowsFull/100 {
		return ""
	}
	return fmt.Sprintf("balance's table of flows is full: %d of its %d entries were seen within five minutes, and %d were "+
		"forgotten for want of room so far; a flow that is forgotten is looked for at the site's other nodes again, and a UDP "+
		"flow is lost if its row has changed its owner meanwhile; give the node a larger --balance-flows", f.Used, f.Room,
		f.Forgotten)
}
