package world

import (
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Spec is a world file. Places are cities and sites; everything at one place is 0.5 ms apart.
type Spec struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// Pools are the anycast pools; every city reaches their addresses at its nearest site.
	Pools   []PoolSpec   `json:"pools"`
	Regions []RegionSpec `json:"regions"`
	Sites   []SiteSpec   `json:"sites"`
	Cities  []CitySpec   `json:"cities"`
	// Controllers stand at the site At.
	Controllers ControllerSpec `json:"controllers"`
	// RTT is the round trip between places, each pair given once in either order.
	RTT map[string]map[string]Duration `json:"rtt"`
	// Backbone is what links between sites can carry.
	Backbone LinkSpec `json:"backbone"`
	// Cables join machines directly, past the emulated network, for benchmarks that want no delay and
	// none of the emulator's CPU time. What passes between their ends takes the cable.
	Cables []CableSpec `json:"cables,omitempty"`
	// Spares are machines on which nothing runs.
	Spares []SpareSpec `json:"spares,omitempty"`
	// BGP has real routers lead clients to the sites. Without it each city reaches its site by decree.
	BGP *BGPSpec `json:"bgp,omitempty"`
}

// SpareSpec is a machine on which nothing runs.
type SpareSpec struct {
	Name string `json:"name"`
	At   string `json:"at"` // the place where it stands
}

// CableSpec joins two machines, like "jakarta" and "sin-1".
type CableSpec struct {
	A string `json:"a"`
	B string `json:"b"`
}

// PoolSpec is one pool, anycast unless it says otherwise.
type PoolSpec struct {
	Name     string         `json:"name"`
	Kind     string         `json:"kind,omitempty"` // "node": each node's own addresses, which DNS answers name
	Zone     string         `json:"zone"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

// RegionSpec is endpoints near a site.
type RegionSpec struct {
	Name      string `json:"name"`
	At        string `json:"at"` // the place where they stand
	Endpoints int    `json:"endpoints"`
}

// SiteSpec is nodes in one place.
type SiteSpec struct {
	Name   string   `json:"name"`
	Region string   `json:"region"` // whose gateways its nodes are
	Nodes  int      `json:"nodes"`
	Roles  []string `json:"roles"`
}

// CitySpec is clients in one place.
type CitySpec struct {
	Name   string   `json:"name"`
	Site   string   `json:"site"` // where anycast takes them
	Access LinkSpec `json:"access"`
}

// ControllerSpec says how many controllers there are and where.
type ControllerSpec struct {
	At    string `json:"at"`
	Count int    `json:"count"`
}

// LinkSpec is what a link does to traffic besides delaying it.
type LinkSpec struct {
	Rate  Rate    `json:"rate,omitempty"`  // bits per second; 0: unlimited
	Loss  Percent `json:"loss,omitempty"`  // each way
	Queue int     `json:"queue,omitempty"` // bytes; 0: one bandwidth-delay product of 100 ms
}

// Duration is written like "20ms".
type Duration time.Duration

// UnmarshalText parses "20ms".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Rate is written like "100mbit" or "1gbit".
type Rate int64

// UnmarshalText parses "100mbit".
func (r *Rate) UnmarshalText(b []byte) error {
	s, unit := strings.ToLower(string(b)), int64(1)
	for suffix, u := range map[string]int64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = rest, u
		}
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v < 0 {
		return fmt.Errorf("rate %q: write it like 100mbit", b)
	}
	*r = Rate(v * float64(unit))
	return nil
}

// Percent is written like "0.5%"; its value is a fraction.
type Percent float64

// UnmarshalText parses "0.5%".
func (p *Percent) UnmarshalText(b []byte) error {
	s, ok := strings.CutSuffix(string(b), "%")
	v, err := strconv.ParseFloat(s, 64)
	if !ok || err != nil || v < 0 || v > 100 {
		return fmt.Errorf("share %q: write it like 0.5%%", b)
	}
	*p = Percent(v / 100)
	return nil
}

//go:embed worlds/*.yaml
var shipped embed.FS

// Load reads a world by its file name, or by the name of a shipped one.
func Load(name string) (*Spec, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) && !strings.ContainsRune(name, filepath.Separator) {
		text, err = shipped.ReadFile("worlds/" + strings.TrimSuffix(name, ".yaml") + ".yaml")
		if err != nil {
			return nil, fmt.Errorf("no world %q: give a file, or one of %s", name, strings.Join(Shipped(), ", "))
		}
	}
	if err != nil {
		return nil, err
	}
	return Parse(text)
}

// Shipped returns the names of the worlds that are built in.
func Shipped() []string {
	entries, _ := shipped.ReadDir("worlds")
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Parse reads and checks a world file. Unknown keys are errors.
func Parse(text []byte) (*Spec, error) {
	s := new(Spec)
	if err := yaml.UnmarshalStrict(text, s); err != nil {
		return nil, fmt.Errorf("world file: %w", err)
	}
	s.Spares = append(s.Spares, s.BGP.spares()...)
	return s, s.validate()
}

func (s *Spec) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Name == "" || len(s.Name) > 8 {
		bad("name: 1–8 characters, as it begins the namespaces' names")
	}
	places := s.places()
	for i, name := range places {
		if slices.Contains(places[:i], name) {
			bad("%s: two places have this name", name)
		}
		for _, other := range places[:i] {
			if _, ok := s.rtt(name, other); !ok {
				bad("rtt: none between %s and %s", other, name)
			}
		}
	}
	for _, c := range s.Cities {
		if !slices.ContainsFunc(s.Sites, func(site SiteSpec) bool { return site.Name == c.Site }) {
			bad("cities.%s.site: no site %q", c.Name, c.Site)
		}
	}
	for _, r := range s.Regions {
		if !slices.Contains(places, r.At) {
			bad("regions.%s.at: no place %q", r.Name, r.At)
		}
	}
	if !slices.Contains(places, s.Controllers.At) {
		bad("controllers.at: no place %q", s.Controllers.At)
	}
	if s.Controllers.Count < 1 {
		bad("controllers.count: at least 1")
	}
	s.BGP.validate(s, bad)
	return errors.Join(errs...)
}

// dual reports whether a pool has IPv6 prefixes: then accelerators are dual-stack, and routers carry both families.
func (s *Spec) dual() bool {
	return slices.ContainsFunc(s.Pools, func(p PoolSpec) bool {
		return slices.ContainsFunc(p.Prefixes, func(n netip.Prefix) bool { return n.Addr().Is6() })
	})
}

func (s *Spec) places() []string {
	var names []string
	for _, c := range s.Cities {
		names = append(names, c.Name)
	}
	for _, site := range s.Sites {
		names = append(names, site.Name)
	}
	return names
}

// samePlaceRTT is between two machines of one data centre or metropolitan area.
const samePlaceRTT = 500 * time.Microsecond

// rtt returns the round trip between two places.
func (s *Spec) rtt(a, b string) (time.Duration, bool) {
	if a == b {
		return samePlaceRTT, true
	}
	if d, ok := s.RTT[a][b]; ok {
		return time.Duration(d), true
	}
	d, ok := s.RTT[b][a]
	return time.Duration(d), ok
}
