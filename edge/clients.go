package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/edge/clients"
	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// clientsFile keeps, in the data directory, what all nodes measured of clients' networks, so that a node that
// starts without controllers answers as before: SHA-256 of what follows, and a serialised ClientNetworks.
// seenFile keeps in the same form what this node itself saw.
const clientsFile, seenFile = "clients", "clients-seen"

// saw takes what a flow saw.
func (n *Node) saw(x clients.Sight) { n.clients.Saw(x, time.Now()) }

// recall takes over what an earlier process of this node saw.
func (n *Node) recall() {
	path := filepath.Join(n.cfg.DataDir, seenFile)
	list, err := loadClients(path, time.Now())
	if err != nil {
		n.log.Warn("what was seen of clients' networks is not used", "error", err)
	}
	if info, err := os.Stat(path); err == nil {
		n.clients.Restore(list, info.ModTime())
	}
}

// remember writes what this node sees of clients' networks to disk, now and then and at the end.
func (n *Node) remember(ctx context.Context) error {
	tick := time.NewTicker(clientsKeep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if list := n.measured(); len(list) > 0 {
			if err := keepClients(filepath.Join(n.cfg.DataDir, seenFile), list); err != nil {
				n.log.Warn("what is seen of clients' networks is not kept on disk", "error", err)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// onClients returns who takes what all nodes measured; nil: this node answers no DNS.
func (n *Node) onClients() func([]model.ClientNetwork) {
	if len(n.cfg.DNSListen) == 0 {
		return nil
	}
	return func(list []model.ClientNetwork) {
		if n.names != nil {
			n.names.setClients(list)
		}
	}
}

// measured is what this node reports of clients' networks, with what their round trip without acceleration
// would be by all that is known here.
func (n *Node) measured() []model.ClientNetwork {
	s := n.snapshot.Load()
	if n.clients == nil || s == nil {
		return nil
	}
	self := s.Node(n.self)
	if self == nil {
		return nil
	}
	list := n.clients.Networks(self.Site, model.ClientNetworksMax, time.Now())
	at := map[model.RegionName][]model.SiteName{}
	for _, site := range s.Sites {
		at[site.Region] = append(at[site.Region], site.Name)
	}
	known := n.names.places()
	for i := range list {
		c := &list[i]
		for j := range c.Regions {
			r, rtt := &c.Regions[j], c.Sites[0].RTT
			d, source, ok := known.Direct(c.Prefix.Addr().Next(), self.Site, rtt, at[r.Region])
			switch {
			case !ok:
				r.Direct, r.DirectBy = rtt+r.Backbone, model.DirectPath
			case source == geo.SourceCountry:
				r.Direct, r.DirectBy = d, model.DirectCountry
			default:
				r.Direct, r.DirectBy = d, model.DirectPlace
			}
		}
	}
	return list
}

// places returns what is known of where clients and sites are; nil: nothing.
func (d *names) places() *geo.Map {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known
}

// setClients takes what all nodes measured of clients' networks.
func (d *names) setClients(list []model.ClientNetwork) {
	d.mu.Lock()
	d.clients, d.stale = list, true
	due := time.Since(d.kept) >= clientsKeep
	if due {
		d.kept = time.Now()
	}
	d.mu.Unlock()
	d.poke()
	if !due {
		return
	}
	if err := keepClients(filepath.Join(d.n.cfg.DataDir, clientsFile), list); err != nil {
		d.n.log.Warn("what is measured of clients' networks is not kept on disk", "error", err)
	}
}

func keepClients(path string, list []model.ClientNetwork) error {
	raw, err := proto.Marshal(model.ClientNetworksToProto(list))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	return identity.ReplaceFile(path, append(sum[:], raw...))
}

// loadClients reads what keepClients wrote, unless it is too old.
func loadClients(path string, now time.Time) ([]model.ClientNetwork, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case now.Sub(info.ModTime()) > clientsAge:
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < sha256.Size {
		return nil, errors.New(path + " is cut short")
	}
	if sum := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, errors.New(path + " is damaged")
	}
	p := new(pb.ClientNetworks)
	if err := proto.Unmarshal(b[sha256.Size:], p); err != nil {
		return nil, err
	}
	return model.ClientNetworksFromProto(p, model.ClientNetworksKnown)
}
