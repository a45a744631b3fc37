package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

const (
	awsListen = "127.0.0.1:8089" // of the controller, on its own machine
	awsALB    = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/my-alb/abc123"
)

// TestAWS runs the commands with which people set up Global Accelerator, as they are written down in many
// places, with Debian's aws command line against the shipped controller. Traffic then flows to the target
// that the load balancer's ARN names, and CloudWatch's commands tell of it.
func TestAWS(t *testing.T) {
	netns.RequireRoot(t, "network namespaces")
	if _, err := os.Stat("/usr/bin/aws"); err != nil {
		t.Fatal("Debian's aws command line is not installed: install awscli")
	}
	d := stand(t, "main", func(s *world.Spec) {
		s.Name = "aws"
		s.Sites = s.Sites[:2]
		s.Sites[1].Nodes, s.Sites[1].Region = 1, "us-east-1"
		s.Regions = []world.RegionSpec{{Name: "us-east-1", At: "fra", Endpoints: 1}}
		s.Cities = s.Cities[:1]
	}, world.Options{ControllerArgs: []string{"--aws-listen", awsListen}})
	d.balancer(t)
	c := &awsCLI{deployment: d}
	c.login(t)
	made := c.article(t)
	sent := c.traffic(t, made)
	c.afterwards(t, made)
	c.watched(t, made, sent)
	c.takenDown(t, made)
}

// balancer answers at port 443 of the endpoint, as a load balancer would.
func (d *deployment) balancer(t *testing.T) {
	t.Helper()
	host := "us-east-1-app-1"
	l, err := d.NS(host).Listen(d.ctx, "tcp", netip.AddrPortFrom(d.Host(host).V4, 443))
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	t.Cleanup(func() { l.Close(); ended.Wait() })
	ended.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			ended.Go(func() { d.balance(host, client) })
		}
	})
	d.run(t, nil, "target", "create", awsALB, "--region", "us-east-1", "--host", d.Host(host).V4.String())
}

// balance hands a connection to the application behind.
func (d *deployment) balance(host string, client net.Conn) {
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(20 * time.Second))
	app, err := d.NS(host).DialContext(d.ctx, "tcp", netip.AddrPortFrom(d.Host(host).V4, load.PortHTTP).String())
	if err != nil {
		return
	}
	defer app.Close()
	var up sync.WaitGroup
	up.Go(func() { _, _ = io.Copy(app, client); _ = app.(*net.TCPConn).CloseWrite() })
	_, _ = io.Copy(client, app)
	client.Close()
	up.Wait()
}

// awsCLI runs Debian's aws command line on the controller's machine.
type awsCLI struct {
	*deployment
	id, secret string
}

func (c *awsCLI) login(t *testing.T) {
	t.Helper()
	var key struct {
		Key    struct{ ID string }
		Secret string
	}
	c.run(t, &key, "access-key", "create", "--role", "operator", "--account-id", "123456789012")
	if c.id, c.secret = key.Key.ID, key.Secret; c.id == "" || c.secret == "" {
		t.Fatalf("access-key create made %+v", key)
	}
}

// ask runs one command and decodes its answer into out, if there is one to be.
func (c *awsCLI) ask(t *testing.T, out any, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 2*time.Minute)
	defer cancel()
	cmd := c.NS("ctl-1").Cmd(ctx, "/usr/bin/aws", append(args, "--endpoint-url", "http://"+awsListen, "--output", "json")...)
	nowhere := filepath.Join(t.TempDir(), "none")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AWS_ACCESS_KEY_ID=" + c.id,
		"AWS_SECRET_ACCESS_KEY=" + c.secret, "AWS_DEFAULT_REGION=us-west-2", "AWS_CONFIG_FILE=" + nowhere,
		"AWS_SHARED_CREDENTIALS_FILE=" + nowhere, "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	t.Logf("$ aws %s", strings.Join(args, " "))
	err := cmd.Run()
	if err == nil && out != nil {
		err = json.Unmarshal(stdout.Bytes(), out)
	}
	if err != nil {
		t.Fatalf("%v: %s%s", err, stdout.Bytes(), stderr.Bytes())
	}
}

// awsMade are the things of the article.
type awsMade struct {
	accelerator, listener, group string // ARNs
	addresses                    []netip.Addr
}

// id is what the accelerator is called in metrics.
func (m *awsMade) id() string { return m.accelerator[strings.LastIndexByte(m.accelerator, '/')+1:] }

func (c *awsCLI) article(t *testing.T) *awsMade {
	var a struct {
		Accelerator struct {
			AcceleratorArn, Status string
			IPSets                 []struct{ IPAddresses []netip.Addr } `json:"IpSets"`
		}
	}
	c.ask(t, &a, "globalaccelerator", "create-accelerator", "--name", "my-app-accelerator", "--ip-address-type", "IPV4",
		"--enabled")
	var l struct{ Listener struct{ ListenerArn string } }
	c.ask(t, &l, "globalaccelerator", "create-listener", "--accelerator-arn", a.Accelerator.AcceleratorArn,
		"--port-ranges", "FromPort=443,ToPort=443", "--protocol", "TCP")
	var g struct {
		EndpointGroup struct{ EndpointGroupArn string }
	}
	c.ask(t, &g, "globalaccelerator", "create-endpoint-group", "--listener-arn", l.Listener.ListenerArn,
		"--endpoint-group-region", "us-east-1", "--endpoint-configurations", "EndpointId="+awsALB+",Weight=100")
	m := &awsMade{a.Accelerator.AcceleratorArn, l.Listener.ListenerArn, g.EndpointGroup.EndpointGroupArn, nil}
	for _, set := range a.Accelerator.IPSets {
		m.addresses = append(m.addresses, set.IPAddresses...)
	}
	if a.Accelerator.Status != "IN_PROGRESS" || len(m.addresses) != 2 ||
		!strings.HasPrefix(m.group, m.accelerator+"/listener/") {
		t.Fatalf("made %+v, %+v", a, m)
	}
	eventually(t, 2*time.Minute, "DEPLOYED", func() error {
		c.ask(t, &a, "globalaccelerator", "describe-accelerator", "--accelerator-arn", m.accelerator)
		if a.Accelerator.Status != "DEPLOYED" {
			return fmt.Errorf("status %s", a.Accelerator.Status)
		}
		return nil
	})
	return m
}

// awsTraffic is what a client has had.
type awsTraffic struct {
	flows, bytes int
	begun        time.Time
}

// traffic fetches through both addresses.
func (c *awsCLI) traffic(t *testing.T, m *awsMade) awsTraffic {
	const size, fetches = 100_000, 3
	sent := awsTraffic{begun: time.Now().Truncate(time.Minute)}
	for _, addr := range m.addresses {
		for range fetches {
			var got load.Times
			eventually(t, 30*time.Second, "a fetch", func() (err error) {
				ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
				defer cancel()
				got, err = load.Fetch(ctx, c.Dial("jakarta"), netip.AddrPortFrom(addr, 443), size)
				return err
			})
			if got.Server != "us-east-1-app-1" {
				t.Errorf("%v led to %q", addr, got.Server)
			}
			sent.flows, sent.bytes = sent.flows+1, sent.bytes+size
		}
	}
	return sent
}

// afterwards is what people do next, while the minute ends in which the traffic was.
func (c *awsCLI) afterwards(t *testing.T, m *awsMade) {
	var tags struct{ Tags []struct{ Key, Value string } }
	c.ask(t, nil, "globalaccelerator", "tag-resource", "--resource-arn", m.accelerator, "--tags", "Key=team,Value=web")
	c.ask(t, &tags, "globalaccelerator", "list-tags-for-resource", "--resource-arn", m.accelerator)
	if fmt.Sprint(tags.Tags) != "[{team web}]" {
		t.Errorf("tags %v", tags.Tags)
	}
	var list struct {
		Accelerators []struct{ AcceleratorArn string }
	}
	c.ask(t, &list, "globalaccelerator", "list-accelerators")
	if len(list.Accelerators) != 1 || list.Accelerators[0].AcceleratorArn != m.accelerator {
		t.Errorf("listed %+v", list)
	}
}

// watched asks CloudWatch for the flows and the bytes.
func (c *awsCLI) watched(t *testing.T, m *awsMade, sent awsTraffic) {
	window := []string{"--start-time", sent.begun.Add(-time.Minute).UTC().Format(time.RFC3339),
		"--end-time", sent.begun.Add(time.Hour).UTC().Format(time.RFC3339)}
	sum := func(metric string) float64 {
		var s struct{ Datapoints []struct{ Sum float64 } }
		c.ask(t, &s, append([]string{"cloudwatch", "get-metric-statistics", "--namespace", "AWS/GlobalAccelerator",
			"--metric-name", metric, "--dimensions", "Name=Accelerator,Value=" + m.id(), "--period", "60",
			"--statistics", "Sum"}, window...)...)
		total := 0.0
		for _, p := range s.Datapoints {
			total += p.Sum
		}
		return total
	}
	var out, in float64
	eventually(t, 5*time.Minute, "the flows in CloudWatch", func() (err error) {
		defer func() {
			if err != nil {
				time.Sleep(3 * time.Second) // between questions: each costs a second of CPU
			}
		}()
		if n := sum("NewFlowCount"); n < float64(sent.flows) {
			return fmt.Errorf("%v flows of %d", n, sent.flows)
		}
		// A flow is counted before its last bytes are.
		if out, in = sum("ProcessedBytesOut"), sum("ProcessedBytesIn"); out < float64(sent.bytes) || in <= 0 {
			return fmt.Errorf("%v bytes out and %v in, %d were fetched", out, in, sent.bytes)
		}
		return nil
	})
	// Bytes have the headers of IP and TCP, and flows may have been tried more than once.
	if out > 3*float64(sent.bytes) {
		t.Errorf("%v bytes out, %d were fetched", out, sent.bytes)
	}
	t.Logf("%d flows and %d bytes were fetched; CloudWatch has %v bytes out, %v in", sent.flows, sent.bytes, out, in)
	var metrics struct{ Metrics []struct{ MetricName string } }
	c.ask(t, &metrics, "cloudwatch", "list-metrics", "--namespace", "AWS/GlobalAccelerator", "--dimensions",
		"Name=Accelerator,Value="+m.id())
	names := fmt.Sprint(metrics.Metrics)
	for _, want := range []string{"NewFlowCount", "ProcessedBytesIn", "ProcessedBytesOut", "PacketsProcessed"} {
		if !strings.Contains(names, want) {
			t.Errorf("no metric %s in %v", want, names)
		}
	}
	var data struct{ MetricDataResults []struct{ Values []float64 } }
	query := fmt.Sprintf(`[{"Id":"bytes","MetricStat":{"Metric":{"Namespace":"AWS/GlobalAccelerator","MetricName":`+
		`"ProcessedBytesOut","Dimensions":[{"Name":"Accelerator","Value":"%s"},{"Name":"TransportProtocol","Value":"TCP"}]},`+
		`"Period":3600,"Stat":"Sum"}}]`, m.id())
	c.ask(t, &data, append([]string{"cloudwatch", "get-metric-data", "--metric-data-queries", query}, window...)...)
	if len(data.MetricDataResults) != 1 {
		t.Fatalf("data %+v", data)
	}
	total := 0.0
	for _, v := range data.MetricDataResults[0].Values {
		total += v
	}
	if again := sum("ProcessedBytesOut"); total < out || total > again { // what ended late may have come in between
		t.Errorf("get-metric-data says %v bytes, get-metric-statistics %v before and %v after", total, out, again)
	}
}

func (c *awsCLI) takenDown(t *testing.T, m *awsMade) {
	for _, args := range [][]string{
		{"delete-endpoint-group", "--endpoint-group-arn", m.group}, {"delete-listener", "--listener-arn", m.listener},
		{"update-accelerator", "--accelerator-arn", m.accelerator, "--no-enabled"},
		{"delete-accelerator", "--accelerator-arn", m.accelerator},
	} {
		c.ask(t, nil, append([]string{"globalaccelerator"}, args...)...)
	}
}
