package awsapi

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/controlplane/access"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TestJavaScript has the AWS SDK for JavaScript v3 make, read, change and delete things (testdata/client.mjs). It needs
// node, and a directory in which `npm install @aws-sdk/client-global-accelerator` was run, in NEARCAST_AWS_JS.
func TestJavaScript(t *testing.T) {
	dir := os.Getenv("NEARCAST_AWS_JS")
	if dir == "" {
		t.Skip("NEARCAST_AWS_JS names no directory with the SDK for JavaScript")
	}
	w := newWorld(t)
	k, secret, err := w.keys.Create(t.Context(), access.AccessKey{Role: v1.Role_ROLE_OPERATOR})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "testdata/client.mjs", w.url, dir)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+k.ID, "AWS_SECRET_ACCESS_KEY="+secret, "AWS_EC2_METADATA_DISABLED=true")
	cmd.Stderr = os.Stderr // where node also warns of its age
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v: %s", err, out)
	}
}
