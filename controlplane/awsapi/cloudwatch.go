package awsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/series"
	"github.com/nearcast/nearcast/proto/model"
)

// This file answers CloudWatch's three questions about the namespace AWS/GlobalAccelerator. Clients ask
// them in one of three protocols (cloudwatch_wire.go); here they are structs and trees of values.

const (
	namespace         = "AWS/GlobalAccelerator"
	exMissing         = "MissingParameter"
	exParameter       = "InvalidParameterValue"
	exCombination     = "InvalidParameterCombination"
	exNextToken       = "InvalidNextToken"
	datapointsMax     = 1440 // of GetMetricStatistics
	dataMax           = 100_800
	queriesMax        = 500
	metricsPage       = 500
	cloudWatchWindow  = 15 * 24 * time.Hour
	recentlyActive    = 3 * time.Hour
	cloudWatchService = "GraniteServiceVersion20100801"
)

type cwDimension struct{ Name, Value string }

type cwMetric struct {
	Namespace  string
	MetricName string
	Dimensions []cwDimension
}

type listMetrics struct {
	cwMetric
	NextToken      string
	RecentlyActive string
}

type getStatistics struct {
	cwMetric
	StartTime, EndTime *instant
	Period             number
	Statistics         []string
	ExtendedStatistics []string
	Unit               string
}

type getMetricData struct {
	MetricDataQueries []struct {
		Id         string
		Expression string
		Label      string
		ReturnData *flag
		MetricStat *struct {
			Metric cwMetric
			Period number
			Stat   string
			Unit   string
		}
	}
	StartTime, EndTime *instant
	ScanBy             string
	NextToken          string
}

// number, flag and instant are values as either protocol writes them.
type (
	number  int64
	flag    bool
	instant time.Time
)

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(b), `"`), 64)
	*n = number(v)
	return err
}

func (f *flag) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseBool(strings.Trim(string(b), `"`))
	*f = flag(v)
	return err
}

func (t *instant) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	if v, err := strconv.ParseFloat(s, 64); err == nil && v > -1e11 && v < 1e11 {
		*t = instant(time.UnixMilli(int64(v * 1000)).UTC())
		return nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if v, err := time.Parse(form, s); err == nil {
			*t = instant(v.UTC())
			return nil
		}
	}
	return fmt.Errorf("%q is not a time", shorten(s))
}

// tree is an answer: maps, lists, texts, numbers and times.
type tree = map[string]any

// cloudWatch are the operations by name.
var cloudWatch = map[string]func(call, context.Context, []byte) (tree, error){
	"ListMetrics":         asks(call.listMetrics),
	"GetMetricStatistics": asks(call.getStatistics),
	"GetMetricData":       asks(call.getMetricData),
}

func asks[In any](f func(call, context.Context, *In) (tree, error)) func(call, context.Context, []byte) (tree, error) {
	return func(c call, ctx context.Context, request []byte) (tree, error) {
		in := new(In)
		if err := json.Unmarshal(request, in); err != nil {
			return nil, faultf(exParameter, "%s", jsonProblem(err))
		}
		return f(c, ctx, in)
	}
}

// askCloudWatch answers one question.
func (h *Handler) askCloudWatch(ctx context.Context, key access.AccessKey, p *cwProtocol, name string, request []byte) (tree, *fault) {
	ask := p.ask(name)
	switch {
	case ask == nil || h.cfg.Traffic == nil && cloudWatch[name] != nil:
		return nil, faultf("InvalidAction", "%q is no operation of this endpoint", shorten(name))
	case !access.Allows(key.Role, access.NeedViewer):
		return nil, faultf("AccessDenied", "the key may not read")
	}
	answer, err := ask(call{h, key}, ctx, request)
	if err == nil {
		return answer, nil
	}
	if f, ok := err.(*fault); ok {
		return nil, f
	}
	h.log.Error("operation failed", "operation", name, "key", key.ID, "err", err)
	return nil, &fault{"InternalServiceFault", http.StatusInternalServerError, "There was an internal error; try again."}
}

// mine returns a filter of the caller's accelerators.
func (c call) mine(ctx context.Context) (func(model.AcceleratorID) bool, error) {
	own := map[model.AcceleratorID]bool{}
	for p := (catalog.PageOptions{Size: 1000}); ; {
		items, next, err := c.cfg.Catalog.ListAcceleratorsOf(ctx, c.key.Project, p)
		if err != nil {
			return nil, err
		}
		for _, a := range items {
			own[a.ID] = true
		}
		if p.Token = next; next == "" {
			return func(id model.AcceleratorID) bool { return own[id] }, nil
		}
	}
}

func (m *cwMetric) dimensions() (out []series.Dimension) {
	for _, d := range m.Dimensions {
		out = append(out, series.Dimension(d))
	}
	return out
}

func (c call) listMetrics(ctx context.Context, in *listMetrics) (tree, error) {
	own, err := c.mine(ctx)
	if err != nil {
		return nil, err
	}
	from := c.cfg.Now().Add(-cloudWatchWindow)
	switch in.RecentlyActive {
	case "":
	case "PT3H":
		from = c.cfg.Now().Add(-recentlyActive)
	default:
		return nil, faultf(exParameter, "RecentlyActive can only be PT3H")
	}
	after := 0
	if in.NextToken != "" {
		if after, err = strconv.Atoi(in.NextToken); err != nil || after < 0 {
			return nil, faultf(exNextToken, "the token is not one that this listing gave")
		}
	}
	var found []series.Metric
	if in.Namespace == "" || in.Namespace == namespace {
		found = c.cfg.Traffic.Metrics(from, c.cfg.Places, own)
	}
	found = slices.DeleteFunc(found, func(m series.Metric) bool {
		if in.MetricName != "" && m.Name != in.MetricName {
			return true
		}
		return slices.ContainsFunc(in.Dimensions, func(want cwDimension) bool {
			return !slices.ContainsFunc(m.Dimensions, func(d series.Dimension) bool {
				return d.Name == want.Name && (want.Value == "" || d.Value == want.Value)
			})
		})
	})
	answer := tree{}
	found = found[min(after, len(found)):]
	if len(found) > metricsPage {
		found = found[:metricsPage]
		answer["NextToken"] = strconv.Itoa(after + metricsPage)
	}
	metrics := []any{}
	for _, m := range found {
		dims := []any{}
		for _, d := range m.Dimensions {
			dims = append(dims, tree{"Name": d.Name, "Value": d.Value})
		}
		metrics = append(metrics, tree{"Namespace": namespace, "MetricName": m.Name, "Dimensions": dims})
	}
	answer["Metrics"] = metrics
	return answer, nil
}

// window checks and aligns what is asked for.
func window(from, to *instant, period number) (a, b time.Time, p time.Duration, err error) {
	if from == nil || to == nil {
		return a, b, 0, faultf(exMissing, "The parameters StartTime and EndTime are required.")
	}
	a, b, p = time.Time(*from), time.Time(*to), time.Duration(period)*time.Second
	switch {
	case period < 60 || period%60 != 0 || period > 86_400:
		return a, b, 0, faultf(exParameter, "The parameter Period must be a multiple of 60, at most 86400.")
	case !a.Before(b):
		return a, b, 0, faultf(exCombination, "The parameter StartTime must be less than the parameter EndTime.")
	}
	return a.Truncate(p), b, p, nil
}

var statistics = map[string]func(series.Point) float64{
	"Sum":         func(p series.Point) float64 { return p.Sum },
	"Minimum":     func(p series.Point) float64 { return p.Min },
	"Maximum":     func(p series.Point) float64 { return p.Max },
	"Average":     func(p series.Point) float64 { return p.Sum / float64(p.Samples) },
	"SampleCount": func(p series.Point) float64 { return float64(p.Samples) },
}

// unit is what a metric is counted in.
func unit(metric string) string {
	if strings.HasPrefix(metric, "ProcessedBytes") {
		return "Bytes"
	}
	return "Count"
}

func (c call) points(ctx context.Context, m *cwMetric, from, to time.Time, period time.Duration) ([]series.Point, error) {
	if m.Namespace == "" || m.MetricName == "" {
		return nil, faultf(exMissing, "The parameters Namespace and MetricName are required.")
	}
	if m.Namespace != namespace {
		return nil, nil
	}
	own, err := c.mine(ctx)
	if err != nil {
		return nil, err
	}
	return c.cfg.Traffic.Points(series.Metric{Name: m.MetricName, Dimensions: m.dimensions()}, from, to, period,
		c.cfg.Places, own), nil
}

func (c call) getStatistics(ctx context.Context, in *getStatistics) (tree, error) {
	from, to, period, err := window(in.StartTime, in.EndTime, in.Period)
	if err != nil {
		return nil, err
	}
	if len(in.ExtendedStatistics) > 0 {
		return nil, faultf(exParameter, "percentiles are not kept: use Sum, Average, Minimum, Maximum, SampleCount")
	}
	if len(in.Statistics) == 0 {
		return nil, faultf(exMissing, "The parameter Statistics is required.")
	}
	for _, s := range in.Statistics {
		if statistics[s] == nil {
			return nil, faultf(exParameter, "The parameter Statistics has the unknown value '%s'.", shorten(s))
		}
	}
	if to.Sub(from)/period > datapointsMax {
		return nil, faultf(exCombination, "You have requested up to %d datapoints, which exceeds the limit of %d. "+
			"You may reduce the datapoints requested by increasing Period, or decreasing the time range.",
			to.Sub(from)/period, datapointsMax)
	}
	points, err := c.points(ctx, &in.cwMetric, from, to, period)
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, p := range points {
		if in.Unit != "" && in.Unit != unit(in.MetricName) {
			break
		}
		d := tree{"Timestamp": p.At, "Unit": unit(in.MetricName)}
		for _, s := range in.Statistics {
			d[s] = statistics[s](p)
		}
		list = append(list, d)
	}
	return tree{"Label": in.MetricName, "Datapoints": list}, nil
}

func (c call) getMetricData(ctx context.Context, in *getMetricData) (tree, error) {
	if n := len(in.MetricDataQueries); n == 0 || n > queriesMax {
		return nil, faultf(exParameter, "The parameter MetricDataQueries must have 1 to %d entries.", queriesMax)
	}
	results, total := []any{}, 0
	for _, q := range in.MetricDataQueries {
		if q.Expression != "" || q.MetricStat == nil {
			return nil, faultf("ValidationError", "The query %s has no MetricStat; expressions are not offered.",
				shorten(q.Id))
		}
		of := statistics[q.MetricStat.Stat]
		if of == nil {
			return nil, faultf("ValidationError", "The value '%s' for Stat in query %s is not offered.",
				shorten(q.MetricStat.Stat), shorten(q.Id))
		}
		from, to, period, err := window(in.StartTime, in.EndTime, q.MetricStat.Period)
		if err != nil {
			return nil, err
		}
		points, err := c.points(ctx, &q.MetricStat.Metric, from, to, period)
		if err != nil {
			return nil, err
		}
		if total += len(points); total > dataMax {
			return nil, faultf(exCombination, "More than %d datapoints are asked for; ask for less at once.", dataMax)
		}
		if q.ReturnData != nil && !bool(*q.ReturnData) {
			continue
		}
		if in.ScanBy != "TimestampAscending" {
			slices.Reverse(points)
		}
		times, values := []any{}, []any{}
		for _, p := range points {
			times, values = append(times, p.At), append(values, of(p))
		}
		label := q.Label
		if label == "" {
			label = q.MetricStat.Metric.MetricName
		}
		results = append(results, tree{"Id": q.Id, "Label": label, "Timestamps": times, "Values": values,
			"StatusCode": "Complete"})
	}
	return tree{"MetricDataResults": results, "Messages": []any{}}, nil
}
