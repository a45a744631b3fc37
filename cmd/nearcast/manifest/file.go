package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v2"
)

// BytesMax bounds a file. A file of every object that a snapshot can hold is smaller.
const BytesMax = 32 << 20

// File is what an operator wants, as YAML. Field names are those of the admin API.
type File struct {
	Regions      []Region      `yaml:"regions,omitempty"`
	Sites        []Site        `yaml:"sites,omitempty"`
	Pools        []Pool        `yaml:"pools,omitempty"`
	Targets      []Target      `yaml:"targets,omitempty"`
	Steering     *Steering     `yaml:"steering,omitempty"`
	Accelerators []Accelerator `yaml:"accelerators,omitempty"`
	Zones        []Zone        `yaml:"zones,omitempty"`
}

// Region is a region. Its description can be given when it is created only.
type Region struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description,omitempty"`
}

// Site is a site.
type Site struct {
	Name      string   `yaml:"name"`
	Region    string   `yaml:"region"`
	Latitude  float64  `yaml:"latitude"`
	Longitude float64  `yaml:"longitude"`
	BGP       *SiteBGP `yaml:"bgp,omitempty"`   // left out: not touched
	Peers     []Peer   `yaml:"peers,omitempty"` // left out: not touched
}

// Pool is a pool. Kind follows from zone and prefixes if it is left out.
type Pool struct {
	Name     string   `yaml:"name"`
	Kind     string   `yaml:"kind,omitempty"`
	Zone     string   `yaml:"zone,omitempty"`
	Prefixes []string `yaml:"prefixes,omitempty"`
	Sites    []string `yaml:"sites,omitempty"`
}

// Target is a target.
type Target struct {
	Name   string            `yaml:"name"`
	Host   string            `yaml:"host"`
	Region string            `yaml:"region,omitempty"`
	Tags   map[string]string `yaml:"tags,omitempty"` // left out: not touched
}

// Accelerator is an accelerator with what is below it.
type Accelerator struct {
	Name          string            `yaml:"name"`
	Enabled       *bool             `yaml:"enabled,omitempty"` // left out: true
	IPAddressType string            `yaml:"ip_address_type,omitempty"`
	Pools         []string          `yaml:"pools,omitempty"`     // left out: not touched; chosen at creation
	Addresses     []string          `yaml:"addresses,omitempty"` // left out: not touched; chosen at creation
	Project       string            `yaml:"project,omitempty"`   // left out: not touched
	Tags          map[string]string `yaml:"tags,omitempty"`      // left out: not touched
	Listeners     []Listener        `yaml:"listeners"`           // left out: not touched
}

// Listener is a listener with its groups.
type Listener struct {
	// ID is needed only to change ports so much that nothing else tells which listener is meant.
	ID                string            `yaml:"id,omitempty"`
	Protocol          string            `yaml:"protocol,omitempty"` // left out: tcp
	Ports             Ports             `yaml:"ports,flow"`
	Affinity          string            `yaml:"affinity,omitempty"`
	TCPIdleTimeout    Duration          `yaml:"tcp_idle_timeout,omitempty"`
	UDPIdleTimeout    Duration          `yaml:"udp_idle_timeout,omitempty"`
	ProxyProtocolFrom []string          `yaml:"proxy_protocol_from,omitempty"`
	MaxFlows          uint32            `yaml:"max_flows,omitempty"`
	MaxFlowsPerSource uint32            `yaml:"max_flows_per_source,omitempty"`
	Guard             *Guard            `yaml:"guard,omitempty"`
	Tags              map[string]string `yaml:"tags,omitempty"` // left out: not touched
	Groups            []Group           `yaml:"groups"`         // left out: not touched
}

// Group is an endpoint group with its endpoints.
type Group struct {
	Region        string            `yaml:"region"`
	TrafficDial   *float32          `yaml:"traffic_dial,omitempty"` // left out: 100
	HealthCheck   *HealthCheck      `yaml:"health_check,omitempty"`
	PortOverrides []PortOverride    `yaml:"port_overrides,omitempty"`
	Tags          map[string]string `yaml:"tags,omitempty"` // left out: not touched
	Endpoints     []Endpoint        `yaml:"endpoints"`      // left out: not touched
}

// HealthCheck is how a group's endpoints are judged.
type HealthCheck struct {
	Protocol           string   `yaml:"protocol,omitempty"`
	Port               uint32   `yaml:"port,omitempty"` // left out: the listener's first port
	Path               string   `yaml:"path,omitempty"`
	Interval           Duration `yaml:"interval,omitempty"`
	Timeout            Duration `yaml:"timeout,omitempty"`
	HealthyThreshold   uint32   `yaml:"healthy_threshold,omitempty"`
	UnhealthyThreshold uint32   `yaml:"unhealthy_threshold,omitempty"`
	Host               string   `yaml:"host,omitempty"`
	ExpectedCodes      string   `yaml:"expected_codes,omitempty"`
}

// PortOverride sends a listener port to another port of the endpoints.
type PortOverride struct {
	ListenerPort uint32 `yaml:"listener_port"`
	EndpointPort uint32 `yaml:"endpoint_port"`
}

// Endpoint is an endpoint; one with nothing but an id may be written as that alone.
type Endpoint struct {
	ID            string  `yaml:"id"`
	Weight        *uint32 `yaml:"weight,omitempty"` // left out: 128
	ClientAddress string  `yaml:"client_address,omitempty"`
}

// UnmarshalYAML takes a mapping, or an id alone.
func (e *Endpoint) UnmarshalYAML(unmarshal func(any) error) error {
	var id string
	if unmarshal(&id) == nil {
		*e = Endpoint{ID: id}
		return nil
	}
	type plain Endpoint
	return unmarshal((*plain)(e))
}

// MarshalYAML writes an id alone where there is nothing else to say.
func (e Endpoint) MarshalYAML() (any, error) {
	if e.Weight == nil && e.ClientAddress == "" {
		return e.ID, nil
	}
	type plain Endpoint
	return plain(e), nil
}

// Ports are ports and ranges like 443 and "8000-8999": one, a list, or several parted by commas.
type Ports []string

// UnmarshalYAML takes a list or a single value.
func (p *Ports) UnmarshalYAML(unmarshal func(any) error) error {
	var one string
	if unmarshal(&one) == nil {
		*p = Ports{one}
		return nil
	}
	return unmarshal((*[]string)(p))
}

// MarshalYAML writes single ports as numbers.
func (p Ports) MarshalYAML() (any, error) {
	list := make([]any, len(p))
	for i, s := range p {
		list[i] = s
		if n, err := ParsePort(s); err == nil {
			list[i] = n
		}
	}
	return list, nil
}

// Duration is written like 30s or 1h30m.
type Duration time.Duration

// UnmarshalYAML demands a unit.
func (d *Duration) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration; write it with its unit, like 30s or 5m", text)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalYAML is what UnmarshalYAML reads.
func (d Duration) MarshalYAML() (any, error) { return DurationText(time.Duration(d)), nil }

// Parse reads a file. An unknown or doubled field, a second document, or nothing at all is an error.
func Parse(text []byte) (*File, error) {
	if len(text) > BytesMax {
		return nil, fmt.Errorf("larger than %d bytes", BytesMax)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.SetStrict(true)
	var f File
	if err := dec.Decode(&f); errors.Is(err, io.EOF) {
		return nil, errEmpty
	} else if err != nil {
		return nil, readable(err)
	}
	var second any
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more than one document (---); apply them one by one")
	}
	if len(f.Regions)+len(f.Sites)+len(f.Pools)+len(f.Targets)+len(f.Accelerators)+len(f.Zones) == 0 &&
		f.Steering == nil {
		return nil, errEmpty
	}
	return &f, nil
}

var errEmpty = errors.New("names nothing; it may hold " +
	"accelerators, pools, sites, regions, targets, zones and steering")

// readable takes the names of Go types out of the parser's errors.
func readable(err error) error {
	var typed *yaml.TypeError
	if !errors.As(err, &typed) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	lines := make([]string, len(typed.Errors))
	for i, line := range typed.Errors {
		line, _, _ = strings.Cut(line, " in type ")
		line = strings.ReplaceAll(line, "already set", "is there twice")
		line = strings.ReplaceAll(line, "not found", "is unknown here")
		if before, _, ok := strings.Cut(line, " into "); ok {
			line = strings.ReplaceAll(before, "cannot unmarshal !!", "cannot use ")
		}
		lines[i] = line
	}
	return errors.New(strings.Join(lines, "\n"))
}

// Marshal is the file that Parse reads.
func (f *File) Marshal() ([]byte, error) { return yaml.Marshal(f) }
