package world

import (
	"fmt"
	"net/netip"
	"time"
)

// Ports of the shipped binaries in a world: their defaults.
const (
	portController = 7443
	portBackbone   = 7444
	portGossip     = 7445
	portMetrics    = 9465
	portMetricsCtl = 9464
	portPeer       = 7446
)

// MetricsAddr is where each node answers on its own loopback: /metrics, /status, /debug/pprof/.
const MetricsAddr = "127.0.0.1:9465"

// kind says what a host is; it is also the second byte of its address.
type kind byte

const (
	kindCity kind = iota + 1
	kindNode
	kindEndpoint
	kindController
	kindSpare
)

// Host is one machine of the world.
type Host struct {
	Name  string // also the end of its namespace's name
	Place string
	V4    netip.Addr
	V6    netip.Addr
	Cable netip.Addr // its end of the last cable laid to it; zero: none

	kind kind
}

// plan lists the world's hosts. Addresses tell what they are: 10.KIND.PLACE.NUMBER and
// fd00:KIND:PLACE::NUMBER.
func (s *Spec) plan() []Host {
	var hosts []Host
	add := func(k kind, group, number int, name, place string) {
		hosts = append(hosts, Host{
			Name: name, Place: place, kind: k,
			V4: netip.AddrFrom4([4]byte{10, byte(k), byte(group), byte(number + 1)}),
			V6: netip.AddrFrom16([16]byte{0xfd, 0, 0, byte(k), 0, byte(group), 15: byte(number + 1)}),
		})
	}
	for i, c := range s.Cities {
		add(kindCity, i+1, 1, c.Name, c.Name)
	}
	for i, site := range s.Sites {
		for n := range site.Nodes {
			add(kindNode, i+1, n+1, nodeName(site.Name, n), site.Name)
		}
	}
	for i, r := range s.Regions {
		for n := range r.Endpoints {
			add(kindEndpoint, i+1, n+1, endpointName(r.Name, n), r.At)
		}
	}
	for n := range s.Controllers.Count {
		add(kindController, 1, n+1, controllerName(n), s.Controllers.At)
	}
	for n, spare := range s.Spares {
		add(kindSpare, 1, n+1, spare.Name, spare.At)
	}
	return hosts
}

func nodeName(site string, n int) string       { return fmt.Sprintf("%s-%d", site, n+1) }
func endpointName(region string, n int) string { return fmt.Sprintf("%s-app-%d", region, n+1) }
func controllerName(n int) string              { return fmt.Sprintf("ctl-%d", n+1) }

// RTT returns the configured round trip between two places; both must exist.
func (w *World) RTT(a, b string) time.Duration {
	d, _ := w.Spec.rtt(a, b)
	return d
}

// CityClients returns the addresses that a city's clients may have besides its host's own.
func (w *World) CityClients(city string) netip.Prefix { return cityClients(w.hosts[city]) }
