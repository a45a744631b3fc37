package series

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Dimension narrows a metric.
type Dimension struct{ Name, Value string }

// Metric is a metric with its dimensions, sorted by name.
type Metric struct {
	Name       string
	Dimensions []Dimension
}

// Point is the samples of one period: one a minute in which there was anything.
type Point struct {
	At            time.Time // where the period begins
	Sum, Min, Max float64
	Samples       int
}

// traffic are the metrics of AWS Global Accelerator that nodes' counts make, and how.
var traffic = map[string]func(*model.TrafficRow) uint64{
	"NewFlowCount":                    func(r *model.TrafficRow) uint64 { return r.NewFlows },
	"ActiveFlowCount":                 func(r *model.TrafficRow) uint64 { return r.ActiveFlows },
	"ProcessedBytesIn":                func(r *model.TrafficRow) uint64 { return r.BytesIn },
	"ProcessedBytesOut":               func(r *model.TrafficRow) uint64 { return r.BytesOut },
	"PacketsProcessed":                func(r *model.TrafficRow) uint64 { return r.PacketsIn + r.PacketsOut },
	"TCP_Client_Reset_Count":          func(r *model.TrafficRow) uint64 { return r.ResetsClient },
	"TCP_Endpoint_Reset_Count":        func(r *model.TrafficRow) uint64 { return r.ResetsEndpoint },
	"TCP_AGA_Reset_Count":             func(r *model.TrafficRow) uint64 { return r.ResetsNearcast },
	"Flows_Dropped_No_Endpoint_Found": func(r *model.TrafficRow) uint64 { return r.Unserved },
}

// Names of the metrics that are of the moment and not of nodes' counts.
const (
	Healthy   = "HealthyEndpointCount"
	Unhealthy = "UnhealthyEndpointCount"
)

// sets are the combinations of dimensions beside Accelerator that a metric has, as AWS lists them.
func sets(metric string) [][]string {
	all := [][]string{{}, {"Listener"}, {"Listener", "EndpointGroup"}, {"SourceRegion"}, {"DestinationEdge"},
		{"AcceleratorIPAddress"}}
	switch metric {
	case "Flows_Dropped_No_Endpoint_Found":
		return [][]string{{}, {"Listener"}, {"AcceleratorIPAddress"}}
	case Healthy, Unhealthy:
		return all[:3]
	case "NewFlowCount", "ProcessedBytesIn", "ProcessedBytesOut":
		return append(all, []string{"TransportProtocol"}, []string{"NetworkProtocol"})
	case "ActiveFlowCount", "PacketsProcessed":
		return append(all, []string{"TransportProtocol"})
	}
	return all
}

// Places tells areas, which are dimensions.
type Places struct {
	EdgeArea   func(model.NodeID) string     // DestinationEdge
	RegionArea func(model.RegionName) string // SourceRegion
}

// dimension returns what a row has for a dimension, or "".
func (p Places) dimension(name string, node model.NodeID, r *model.TrafficRow) string {
	switch name {
	case "Accelerator":
		return string(r.Accelerator)
	case "Listener":
		return string(r.Listener)
	case "EndpointGroup":
		return string(r.Region)
	case "SourceRegion":
		if r.Region == "" {
			return ""
		}
		return p.RegionArea(r.Region)
	case "DestinationEdge":
		return p.EdgeArea(node)
	case "TransportProtocol":
		return r.Protocol.String()
	case "AcceleratorIPAddress":
		return r.Address.String()
	case "NetworkProtocol":
		if r.Address.Is4() {
			return "IPv4"
		}
		return "IPv6"
	}
	return ""
}

// known reports whether dims are a combination that metric has.
func known(metric string, dims []Dimension) bool {
	var names []string
	accelerator := false
	for _, d := range dims {
		if d.Name == "Accelerator" {
			accelerator = true
		} else {
			names = append(names, d.Name)
		}
	}
	slices.Sort(names)
	return accelerator && slices.ContainsFunc(sets(metric), func(set []string) bool {
		return slices.Equal(slices.Sorted(slices.Values(set)), names)
	})
}

// Points returns a metric of [from, to) by periods, in order, without empty ones. A combination of
// dimensions that the metric does not have has none. own says whose accelerators may be seen.
func (s *Series) Points(m Metric, from, to time.Time, period time.Duration, places Places,
	own func(model.AcceleratorID) bool) []Point {
	value := traffic[m.Name]
	if !known(m.Name, m.Dimensions) {
		return nil
	}
	if m.Name == Healthy || m.Name == Unhealthy {
		return grouped(s.healthMinutes(m, from, to, own), from, period)
	}
	if value == nil {
		return nil
	}
	minutes := map[time.Time]float64{}
	s.mu.RLock()
	for _, r := range s.reports {
		if r.minute.Before(from) || !r.minute.Before(to) {
			continue
		}
		for i := range r.rows {
			row := &r.rows[i]
			if n := value(row); n > 0 && own(row.Accelerator) && places.match(m.Dimensions, r.node, row) {
				minutes[r.minute] += float64(n)
			}
		}
	}
	s.mu.RUnlock()
	return grouped(minutes, from, period)
}

// grouped makes points of minutes.
func grouped(minutes map[time.Time]float64, from time.Time, period time.Duration) []Point {
	points := map[time.Time]*Point{}
	for minute, n := range minutes {
		at := from.Add(minute.Sub(from).Truncate(period))
		p := points[at]
		if p == nil {
			p = &Point{At: at, Min: math.Inf(1)}
			points[at] = p
		}
		p.Sum, p.Min, p.Max, p.Samples = p.Sum+n, min(p.Min, n), max(p.Max, n), p.Samples+1
	}
	var out []Point
	for _, at := range slices.SortedFunc(maps.Keys(points), time.Time.Compare) {
		out = append(out, *points[at])
	}
	return out
}

func (p Places) match(dims []Dimension, node model.NodeID, r *model.TrafficRow) bool {
	for _, d := range dims {
		if p.dimension(d.Name, node, r) != d.Value {
			return false
		}
	}
	return true
}

// Metrics returns every metric that has a point since from, sorted by name and dimensions.
func (s *Series) Metrics(from time.Time, places Places, own func(model.AcceleratorID) bool) []Metric {
	seen := map[string]Metric{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.reports {
		if r.minute.Before(from) {
			continue
		}
		for i := range r.rows {
			row := &r.rows[i]
			if !own(row.Accelerator) {
				continue
			}
			for name, value := range traffic {
				if value(row) == 0 {
					continue
				}
				for _, set := range sets(name) {
					if m, ok := places.metric(name, set, r.node, row); ok {
						seen[m.key()] = m
					}
				}
			}
		}
	}
	for _, steps := range s.health {
		last := steps[len(steps)-1]
		if last.gone && last.since.Before(from) || !own(last.Accelerator) {
			continue
		}
		row := &model.TrafficRow{TrafficKey: model.TrafficKey{Accelerator: last.Accelerator, Listener: last.Listener,
			Region: last.Region}}
		for _, name := range []string{Healthy, Unhealthy} {
			for _, set := range sets(name) {
				if m, ok := places.metric(name, set, "", row); ok {
					seen[m.key()] = m
				}
			}
		}
	}
	var out []Metric
	for _, k := range slices.Sorted(maps.Keys(seen)) {
		out = append(out, seen[k])
	}
	return out
}

// metric makes the metric of a row with a set of dimensions beside Accelerator.
func (p Places) metric(name string, set []string, node model.NodeID, r *model.TrafficRow) (Metric, bool) {
	m := Metric{Name: name}
	for _, d := range append([]string{"Accelerator"}, set...) {
		v := p.dimension(d, node, r)
		if v == "" {
			return m, false
		}
		m.Dimensions = append(m.Dimensions, Dimension{d, v})
	}
	return m, true
}

func (m *Metric) key() string {
	var b strings.Builder
	b.WriteString(m.Name)
	for _, d := range m.Dimensions {
		b.WriteString("\x00" + d.Name + "\x00" + d.Value)
	}
	return b.String()
}

// Area returns the code of the geographic area of a region, as AWS writes it, by the region's name, or by
// where it lies if the name says nothing.
func Area(region model.RegionName, latitude, longitude float64) string {
	name := string(region)
	for _, a := range []struct{ prefix, code string }{{"ap-northeast-2", "KR"}, {"ap-south-", "IN"},
		{"ap-southeast-2", "AU"}, {"ap-southeast-4", "AU"}, {"us-", "NA"}, {"ca-", "NA"}, {"mx-", "NA"}, {"eu-", "EU"},
		{"ap-", "AP"}, {"me-", "ME"}, {"il-", "ME"}, {"sa-", "SA"}, {"af-", "ZA"}} {
		if strings.HasPrefix(name, a.prefix) {
			return a.code
		}
	}
	switch {
	case longitude < -30 && latitude > 13:
		return "NA"
	case longitude < -30:
		return "SA"
	case longitude < 60 && latitude > 36:
		return "EU"
	case longitude < 60 && latitude > 12 && longitude > 34:
		return "ME"
	case longitude < 60:
		return "ZA"
	case longitude < 92 && latitude < 36:
		return "IN"
	case latitude < -10:
		return "AU"
	}
	return "AP"
}
