package controlplane

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/series"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// awsCommands returns the aws command lines of this machine: Debian's, and another that comes first in PATH.
func awsCommands(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, name := range []string{"/usr/bin/aws", "aws"} {
		if path, err := exec.LookPath(name); err == nil && (len(found) == 0 || found[0] != path) {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		const missing = "the aws command line is not installed: install awscli"
		if os.Getenv("NEARCAST_REQUIRE_ROOT") == "1" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return found
}

// awsClient runs an aws command line against an endpoint with one key.
type awsClient struct {
	t                  *testing.T
	path, url, id, key string
}

// run returns what the command printed, or what it complained about.
func (c *awsClient) run(args ...string) (out, complaint string) {
	c.t.Helper()
	return c.ask("globalaccelerator", args...)
}

// ask is run for a service.
func (c *awsClient) ask(service string, args ...string) (out, complaint string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.path,
		append([]string{service, "--endpoint-url", c.url, "--output", "json"}, args...)...)
	nowhere := filepath.Join(c.t.TempDir(), "none")
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	cmd.Env = append(env, "AWS_ACCESS_KEY_ID="+c.id, "AWS_SECRET_ACCESS_KEY="+c.key,
		"AWS_DEFAULT_REGION=us-west-2", "AWS_CONFIG_FILE="+nowhere, "AWS_SHARED_CREDENTIALS_FILE="+nowhere,
		"AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && stderr.Len() == 0 {
		c.t.Fatalf("%v: %v", args, err)
	}
	return stdout.String(), stderr.String()
}

// get runs a command that must succeed and returns a member of its answer.
func (c *awsClient) get(path string, args ...string) string {
	c.t.Helper()
	out, complaint := c.run(args...)
	var v any
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		c.t.Fatalf("%v: %s%s", args, out, complaint)
	}
	for step := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			c.t.Fatalf("%v: no %s in %s", args, path, out)
		}
		v = m[step]
	}
	s, _ := v.(string)
	return s
}

// TestArticle runs the commands with which people set up Global Accelerator, as they are written down in
// many places, with Debian's aws command line and any other that is there.
func TestArticle(t *testing.T) {
	paths := awsCommands(t)
	addr := freePort(t)
	ctl := start(t, func(c *Config) { c.AWSListen = addr })
	admin := adminOf(t, ctl.cfg.DataDir, ctl.addr)
	admin.furnish(t)
	const alb = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/my-alb/abc123"
	must[model.Target](t)(ctl.catalog.CreateTarget(t.Context(),
		model.Target{Name: alb, Region: "us-east-1", Host: "10.1.2.3"}, catalog.Options{}))
	key := must[*v1.AccessKeySecret](t)(admin.CreateAccessKey(t.Context(), &v1.CreateAccessKeyRequest{
		Key: &v1.AccessKey{Role: v1.Role_ROLE_OPERATOR, AccountId: "123456789012"}}))
	for _, path := range paths {
		version, _ := exec.CommandContext(t.Context(), path, "--version").CombinedOutput()
		t.Logf("%s: %s", path, version)
		client := &awsClient{t, path, "http://" + addr, key.GetKey().GetId(), key.GetSecret()}
		watching(t, ctl.series, client)
		article(t, client, alb)
	}
	audit := must[*v1.ListAuditResponse](t)(admin.ListAudit(t.Context(), &v1.ListRequest{})).String()
	for _, want := range []string{"CreateEndpointGroup", "access key " + key.GetKey().GetId()} {
		if !strings.Contains(audit, want) {
			t.Errorf("the audit log does not tell of %s", want)
		}
	}
}

// watching asks the aws command line for what a node has reported, as people watch Global Accelerator.
func watching(t *testing.T, s *series.Series, c *awsClient) {
	t.Helper()
	arn := c.get("Accelerator.AcceleratorArn", "create-accelerator", "--name", "watched", "--no-enabled")
	id := arn[strings.LastIndexByte(arn, '/')+1:]
	minute := time.Now().UTC().Truncate(time.Hour).Add(-time.Hour)
	for sequence, flows := range []uint64{3, 4} {
		at := minute.Add(time.Duration(sequence) * time.Minute)
		if err := s.AddTraffic(t.Context(), "n1", model.TrafficReport{Boot: id[:8], Sequence: uint64(sequence + 1), Minute: at,
			Rows: []model.TrafficRow{{TrafficKey: model.TrafficKey{Accelerator: model.AcceleratorID(id), Listener: "l1",
				Protocol: model.TCP, Address: netip.MustParseAddr("192.0.2.1")},
				TrafficCounts: model.TrafficCounts{NewFlows: flows}}}}); err != nil {
			t.Fatal(err)
		}
	}
	window := []string{"--start-time", minute.Format(time.RFC3339), "--end-time", minute.Add(time.Hour).Format(time.RFC3339)}
	of := []string{"--namespace", "AWS/GlobalAccelerator", "--metric-name", "NewFlowCount", "--dimensions",
		"Name=Accelerator,Value=" + id}
	out, complaint := c.ask("cloudwatch", slices.Concat([]string{"get-metric-statistics"}, of, window,
		[]string{"--period", "3600", "--statistics", "Sum", "Maximum"})...)
	if !strings.Contains(out, `"Sum": 7.0`) || !strings.Contains(out, `"Maximum": 4.0`) {
		t.Errorf("statistics: %s%s", out, complaint)
	}
	query := `[{"Id":"m","MetricStat":{"Metric":{"Namespace":"AWS/GlobalAccelerator","MetricName":"NewFlowCount","Dimensions":` +
		`[{"Name":"Accelerator","Value":"` + id + `"}]},"Period":60,"Stat":"Sum"}}]`
	out, complaint = c.ask("cloudwatch", slices.Concat([]string{"get-metric-data", "--metric-data-queries", query}, window)...)
	if !strings.Contains(out, "4.0") || !strings.Contains(out, "Complete") {
		t.Errorf("data: %s%s", out, complaint)
	}
	out, complaint = c.ask("cloudwatch", slices.Concat([]string{"list-metrics"}, of)...)
	if !strings.Contains(out, id) || !strings.Contains(out, "TransportProtocol") {
		t.Errorf("metrics: %s%s", out, complaint)
	}
	_, complaint = c.ask("cloudwatch", slices.Concat([]string{"get-metric-statistics"}, of, window,
		[]string{"--period", "61", "--statistics", "Sum"})...)
	if !strings.Contains(complaint, "InvalidParameterValue") {
		t.Errorf("a period of 61 s: %s", complaint)
	}
	c.run("delete-accelerator", "--accelerator-arn", arn)
}

func article(t *testing.T, c *awsClient, alb string) {
	a := c.get("Accelerator.AcceleratorArn", "create-accelerator", "--name", "my-app-accelerator",
		"--ip-address-type", "IPV4", "--enabled")
	l := c.get("Listener.ListenerArn", "create-listener", "--accelerator-arn", a,
		"--port-ranges", "FromPort=443,ToPort=443", "--protocol", "TCP")
	g := c.get("EndpointGroup.EndpointGroupArn", "create-endpoint-group", "--listener-arn", l,
		"--endpoint-group-region", "us-east-1", "--endpoint-configurations", "EndpointId="+alb+",Weight=100")
	if !strings.HasPrefix(a, "arn:aws:globalaccelerator::123456789012:accelerator/") ||
		!strings.HasPrefix(g, l+"/endpoint-group/") || !strings.HasPrefix(l, a+"/listener/") {
		t.Errorf("made %s, %s and %s", a, l, g)
	}
	eventually(t, "the accelerator is deployed", func() error {
		if s := c.get("Accelerator.Status", "describe-accelerator", "--accelerator-arn", a); s != "DEPLOYED" {
			return errStatus(s)
		}
		return nil
	})
	if out, complaint := c.run("list-accelerators", "--page-size", "1"); !strings.Contains(out, a) {
		t.Errorf("listed %s%s", out, complaint)
	}
	for _, bad := range []struct {
		code, operation string
		args            []string
	}{
		{"AcceleratorNotDisabledException", "DeleteAccelerator", []string{"delete-accelerator", "--accelerator-arn", a}},
		{"AssociatedEndpointGroupFoundException", "DeleteListener", []string{"delete-listener", "--listener-arn", l}},
		{"AcceleratorNotFoundException", "DescribeAccelerator",
			[]string{"describe-accelerator", "--accelerator-arn", a[:len(a)-1] + "x"}},
		{"InvalidArgumentException", "UpdateEndpointGroup",
			[]string{"update-endpoint-group", "--endpoint-group-arn", g, "--traffic-dial-percentage", "101"}},
	} {
		want := "(" + bad.code + ") when calling the " + bad.operation + " operation"
		if _, complaint := c.run(bad.args...); !strings.Contains(complaint, want) {
			t.Errorf("%v: %s, want %s", bad.args, complaint, want)
		}
	}
	for _, args := range [][]string{
		{"update-endpoint-group", "--endpoint-group-arn", g, "--endpoint-configurations", "[]"},
		{"delete-endpoint-group", "--endpoint-group-arn", g}, {"delete-listener", "--listener-arn", l},
		{"update-accelerator", "--accelerator-arn", a, "--no-enabled"}, {"delete-accelerator", "--accelerator-arn", a},
	} {
		if _, complaint := c.run(args...); complaint != "" {
			t.Errorf("%v: %s", args, complaint)
		}
	}
}

type errStatus string

func (e errStatus) Error() string { return "status " + string(e) }
