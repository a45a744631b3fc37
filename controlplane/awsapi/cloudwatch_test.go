package awsapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	cw "github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	ga "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// watcher returns the SDK's client of CloudWatch for a project. That SDK speaks RPC v2 in CBOR.
func (w *world) watcher(project string) *cw.Client {
	w.t.Helper()
	k, secret, err := w.keys.Create(w.t.Context(), access.AccessKey{Role: v1.Role_ROLE_VIEWER, Project: project})
	if err != nil {
		w.t.Fatal(err)
	}
	transport := &http.Transport{}
	w.t.Cleanup(transport.CloseIdleConnections)
	return cw.New(cw.Options{Region: "us-west-2", BaseEndpoint: aws.String(w.url), RetryMaxAttempts: 1,
		HTTPClient: &http.Client{Transport: transport},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: secret}, nil
		})})
}

// carry has a node report flows of an accelerator, in a minute.
func (w *world) carry(a *string, minute time.Time, sequence, flows uint64) {
	w.t.Helper()
	r, ok := parseARN(*a)
	if !ok {
		w.t.Fatal(*a)
	}
	if err := w.traffic.AddTraffic(w.t.Context(), "n1", model.TrafficReport{Boot: "b", Sequence: sequence, Minute: minute,
		Rows: []model.TrafficRow{{TrafficKey: model.TrafficKey{Accelerator: r.accelerator, Listener: "l1", Group: "g1",
			Region: "us-east-1", Protocol: model.TCP, Address: netip.MustParseAddr("198.51.100.7")},
			TrafficCounts: model.TrafficCounts{NewFlows: flows, BytesIn: flows * 1000}}}}); err != nil {
		w.t.Fatal(err)
	}
}

func TestCloudWatch(t *testing.T) {
	w := newWorld(t)
	ours := w.operator()
	a := w.accelerator(ours, "web").AcceleratorArn
	others := w.accelerator(w.client(v1.Role_ROLE_OPERATOR, "other", ""), "theirs").AcceleratorArn
	began := time.Now().UTC().Truncate(time.Hour).Add(-time.Hour)
	w.carry(a, began, 1, 3)
	w.carry(a, began.Add(time.Minute), 2, 5)
	w.carry(others, began, 3, 100)
	c, ctx := w.watcher("default"), t.Context()
	id := strings.TrimPrefix(*a, arnPrefix+account+":accelerator/")
	dims := []types.Dimension{{Name: aws.String("Accelerator"), Value: &id}}

	list := must[*cw.ListMetricsOutput](t)(c.ListMetrics(ctx, &cw.ListMetricsInput{Namespace: aws.String(namespace),
		MetricName: aws.String("NewFlowCount")})).Metrics
	if len(list) != 8 {
		t.Errorf("metrics %s", jsonOf(t, list))
	}
	for _, m := range list {
		if jsonOf(t, m.Dimensions[0]) != jsonOf(t, dims[0]) {
			t.Errorf("a metric of somebody else's: %s", jsonOf(t, m))
		}
	}
	got := must[*cw.GetMetricStatisticsOutput](t)(c.GetMetricStatistics(ctx, &cw.GetMetricStatisticsInput{
		Namespace: aws.String(namespace), MetricName: aws.String("ProcessedBytesIn"), Dimensions: dims,
		StartTime: &began, EndTime: aws.Time(began.Add(time.Hour)), Period: aws.Int32(3600),
		Statistics: []types.Statistic{"Sum", "Average", "SampleCount", "Minimum", "Maximum"}}))
	if p := got.Datapoints; len(p) != 1 || *p[0].Sum != 8000 || *p[0].Average != 4000 || *p[0].SampleCount != 2 ||
		*p[0].Minimum != 3000 || *p[0].Maximum != 5000 || !p[0].Timestamp.Equal(began) || p[0].Unit != "Bytes" {
		t.Errorf("statistics %s", jsonOf(t, got.Datapoints))
	}
	data := must[*cw.GetMetricDataOutput](t)(c.GetMetricData(ctx, &cw.GetMetricDataInput{
		StartTime: &began, EndTime: aws.Time(began.Add(time.Hour)), ScanBy: types.ScanByTimestampAscending,
		MetricDataQueries: []types.MetricDataQuery{{Id: aws.String("flows"), MetricStat: &types.MetricStat{
			Metric: &types.Metric{Namespace: aws.String(namespace), MetricName: aws.String("NewFlowCount"), Dimensions: dims},
			Period: aws.Int32(60), Stat: aws.String("Sum")}}}})).MetricDataResults
	if len(data) != 1 || len(data[0].Values) != 2 || data[0].Values[1] != 5 || data[0].StatusCode != "Complete" ||
		!data[0].Timestamps[1].Equal(began.Add(time.Minute)) {
		t.Errorf("data %s", jsonOf(t, data))
	}
	for what, x := range map[string]struct {
		in   cw.GetMetricStatisticsInput
		code string
	}{
		"no period a minute divides": {cw.GetMetricStatisticsInput{Period: aws.Int32(61)}, "InvalidParameterValue"},
		"time backwards":             {cw.GetMetricStatisticsInput{Period: aws.Int32(60), EndTime: aws.Time(began.Add(-time.Hour))}, "InvalidParameterCombination"},
		"too many points":            {cw.GetMetricStatisticsInput{Period: aws.Int32(60), EndTime: aws.Time(began.Add(25 * time.Hour))}, "InvalidParameterCombination"},
	} {
		x.in.Namespace, x.in.MetricName, x.in.StartTime = aws.String(namespace), aws.String("NewFlowCount"), &began
		x.in.Statistics = []types.Statistic{"Sum"}
		if x.in.EndTime == nil {
			x.in.EndTime = aws.Time(began.Add(time.Hour))
		}
		wantCloudWatch(t, what, second(c.GetMetricStatistics(ctx, &x.in)), x.code)
	}
	wantCloudWatch(t, "an operation that is not offered", second(c.DescribeAlarms(ctx, &cw.DescribeAlarmsInput{})),
		"InvalidAction")
	must[any](t)(ours.DescribeAccelerator(ctx, &ga.DescribeAcceleratorInput{AcceleratorArn: a}))
}

// wantCloudWatch is wantCode for codes that the SDK may name in its own way.
func wantCloudWatch(t *testing.T, what string, err error, code string) {
	t.Helper()
	if got := codeOf(err); !strings.HasPrefix(got, code) {
		t.Errorf("%s: %s (%v), want %s", what, got, err, code)
	}
}

func TestFormToJSON(t *testing.T) {
	name, members, err := formToJSON([]byte("Action=GetMetricStatistics&Version=2010-08-01&Namespace=AWS%2FGlobalAccelerator" +
		"&Dimensions.member.2.Name=b&Dimensions.member.1.Name=a&Dimensions.member.1.Value=x&Period=60&Statistics.member.1=Sum"))
	want := `{"Dimensions":[{"Name":"a","Value":"x"},{"Name":"b"}],"Namespace":"AWS/GlobalAccelerator","Period":"60","Statistics":["Sum"]}`
	if err != nil || name != "GetMetricStatistics" || string(members) != want {
		t.Errorf("%s %s %v", name, members, err)
	}
}

// sameJSON compares what two texts mean.
func sameJSON(t *testing.T, a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		t.Errorf("%s or %s is no JSON", a, b)
	}
	return reflect.DeepEqual(x, y)
}

// FuzzCloudWatch: no body of any protocol makes the decoders panic, and what CBOR is written is read again.
func FuzzCloudWatch(f *testing.F) {
	f.Add([]byte("Action=ListMetrics&Dimensions.member.1.Name=a"))
	f.Add(cborTree(tree{"Namespace": "n", "Dimensions": []any{tree{"Name": "a"}}, "StartTime": time.Unix(1e9, 0),
		"Period": 60.0}))
	f.Add([]byte{0xbf, 0x61, 'a', 0x9f, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, members, err := formToJSON(b); err == nil {
			for _, in := range []any{&listMetrics{}, &getStatistics{}, &getMetricData{}} {
				_ = json.Unmarshal(members, in) // may refuse
			}
		}
		text, err := cborToJSON(b)
		if err != nil {
			return
		}
		for _, in := range []any{&listMetrics{}, &getStatistics{}, &getMetricData{}} {
			_ = json.Unmarshal(text, in) // may refuse
		}
		var m tree
		if json.Unmarshal(text, &m) == nil && m != nil {
			again, err := cborToJSON(cborTree(m))
			if want, _ := json.Marshal(m); err != nil || !sameJSON(t, again, want) {
				t.Errorf("%s became %s, %v", want, again, err)
			}
		}
	})
}
