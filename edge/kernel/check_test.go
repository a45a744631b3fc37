package kernel

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

// nobody is a user without any privilege.
const nobody = 65534

// checkAs runs Check in a process of that user with these capabilities, and nothing else.
func checkAs(t *testing.T, capabilities ...uintptr) map[string]Finding {
	t.Helper()
	netns.RequireRoot(t, "start a process as another user")
	// The test's own binary may lie where nobody may read it.
	dir, err := os.MkdirTemp("/tmp", "nearcast-check-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "check")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^TestCheckHelper$")
	cmd.Env = []string{"NEARCAST_CHECK_HELPER=1"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: capabilities,
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var list []Finding
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := map[string]Finding{}
	for _, f := range list {
		all[f.What] = f
		if !f.OK && (f.Why == "" || f.Cost == "") {
			t.Errorf("%+v does not say why or what it costs", f)
		}
	}
	return all
}

// TestCheckHelper is what checkAs runs.
func TestCheckHelper(t *testing.T) {
	if os.Getenv("NEARCAST_CHECK_HELPER") == "" {
		t.Skip("run by other tests")
	}
	if os.Geteuid() == 0 {
		os.Exit(3)
	}
	if err := json.NewEncoder(os.Stdout).Encode(Check()); err != nil {
		os.Exit(4)
	}
	os.Exit(0)
}

// TestCapabilities: what is said to be enough is enough, not as root, and less is not.
func TestCapabilities(t *testing.T) {
	with := checkAs(t, unix.CAP_BPF, unix.CAP_NET_ADMIN)
	for _, name := range []Name{Dispatch, Tune} {
		if f := with["program "+string(name)]; !f.OK {
			t.Errorf("with CAP_BPF and CAP_NET_ADMIN: %+v", f)
		}
	}
	xdp := checkAs(t, unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON)
	for _, name := range []Name{Balance + ifNamed, Guard + ifNamed} {
		if f := xdp["program "+string(name)]; !f.OK {
			t.Errorf("with CAP_PERFMON, too: %+v", f)
		}
		if f := with["program "+string(name)]; f.OK || !strings.Contains(f.Why, "CAP_PERFMON") {
			t.Errorf("without CAP_PERFMON: %+v", f)
		}
	}
	if with["CAP_NET_BIND_SERVICE"].OK || !with["CAP_BPF"].OK {
		t.Errorf("capabilities: %+v", with)
	}
	for _, name := range []Name{Dispatch, Tune} {
		if f := checkAs(t)["program "+string(name)]; f.OK {
			t.Errorf("without any capability: %+v", f)
		}
	}
}
