package controlplane

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
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
	cmd := exec.CommandContext(c.t.Context(), c.path,
		append([]string{"globalaccelerator", "--endpoint-url", c.url, "--output", "json"}, args...)...)
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

// TestArticle runs the commands with which people set up Global Accelerator with Debian's aws command line and
// any other that is there, up to what clients do by error codes. TestAWS of the scenarios has traffic and
// CloudWatch beside them.
func TestArticle(t *testing.T) {
	paths := awsCommands(t)
	addr := netns.FreeAddr(t)
	ctl := start(t, func(c *Config) { c.AWSListen = addr })
	admin := adminOf(t, ctl.cfg.DataDir, ctl.addr)
	admin.furnish(t)
	const alb = "arn:aws:elasticloadbalancing:us-east-1:123456789012:loadbalancer/app/my-alb/abc123"
	must[model.Target](t)(ctl.catalog.CreateTarget(t.Context(),
		model.Target{Name: alb, Region: "us-east-1", Host: "10.1.2.3"}, catalog.Options{}))
	key := must[*v1.AccessKeySecret](t)(admin.CreateAccessKey(t.Context(), &v1.CreateAccessKeyRequest{
		Key: &v1.AccessKey{Role: v1.Role_ROLE_OPERATOR, AccountId: "123456789012"}}))
	for _, path := range paths {
		t.Log(path)
		article(t, &awsClient{t, path, "http://" + addr, key.GetKey().GetId(), key.GetSecret()}, alb)
	}
	audit := must[*v1.ListAuditResponse](t)(admin.ListAudit(t.Context(), &v1.ListRequest{})).String()
	for _, want := range []string{"CreateEndpointGroup", "access key " + key.GetKey().GetId()} {
		if !strings.Contains(audit, want) {
			t.Errorf("the audit log does not tell of %s", want)
		}
	}
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
	for _, bad := range []struct {
		code, operation string
		args            []string
	}{
		{"AcceleratorNotDisabledException", "DeleteAccelerator", []string{"delete-accelerator", "--accelerator-arn", a}},
		{"AssociatedEndpointGroupFoundException", "DeleteListener", []string{"delete-listener", "--listener-arn", l}},
		{"InvalidArgumentException", "UpdateEndpointGroup",
			[]string{"update-endpoint-group", "--endpoint-group-arn", g, "--traffic-dial-percentage", "101"}},
	} {
		want := "(" + bad.code + ") when calling the " + bad.operation + " operation"
		if _, complaint := c.run(bad.args...); !strings.Contains(complaint, want) {
			t.Errorf("%v: %s, want %s", bad.args, complaint, want)
		}
	}
}

type errStatus string

func (e errStatus) Error() string { return "status " + string(e) }
