package scenario

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// nobody is a user without any privilege.
const nobody = 65534

// userCapabilities are those that docs/OPERATING.md gives to a node.
var userCapabilities = []uintptr{unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON}

// TestUser has the shipped edge run as the documentation's unit has it: not as root, with four capabilities, all its
// kernel programs, and a service manager that is told how it is. Whole prefixes are routed to the machine, so that the
// node gives itself no address. Flows of both protocols and families go through it, before and after an upgrade.
func TestUser(t *testing.T) {
	netns.RequireRoot(t, "start a process as another user")
	u := &userNode{dir: mkdirForAll(t)}
	d := stand(t, "main", one("user"), world.Options{
		Dir: u.dir, NodeArgs: []string{"--guard-interfaces", "eth0"},
	})
	u.deployment, u.node = d, d.Nodes["sin-1"]
	t.Cleanup(func() { d.stopNext(t, "sin-1") })
	d.witness(t, "eu-fra-1-app-1")
	u.app = d.addresses(t)
	d.do(t, u.node.Stop())
	u.prepare(t)
	d.do(t, u.node.Start())
	first := u.node.PID()
	u.manager.wants(t, first, "READY=1")
	d.do(t, u.node.Ready(d.ctx))
	u.unprivileged(t, first)
	u.serves(t)
	u.failedUpgrade(t, first)
	u.upgraded(t, first)
}

type userNode struct {
	*deployment
	dir     string
	node    *world.Process
	program string
	manager *serviceManager
	app     *addresses
}

// mkdirForAll makes a directory that every user can enter, which those of the testing package are not.
func mkdirForAll(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "nearcast-user-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// prepare makes the node's next start one of the user's: its program, its data, its pins and its service manager.
func (u *userNode) prepare(t *testing.T) {
	t.Helper()
	u.program = filepath.Join(u.dir, "nearcast-edge")
	u.install(t, filepath.Join(os.Getenv("NEARCAST_BIN"), "nearcast-edge"))
	u.do(t, filepath.WalkDir(u.DataDir("sin-1"), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, nobody, nobody)
	}))
	pins := filepath.Join(u.dir, "pins")
	u.do(t, os.Mkdir(pins, 0o755))
	u.do(t, unix.Mount("bpf", pins, "bpf", 0, "mode=700"))
	t.Cleanup(func() {
		if err := unix.Unmount(pins, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	u.do(t, os.Chown(pins, nobody, nobody))
	u.node.AddArgs("--kernel-pins", filepath.Join(pins, "sin-1"))
	for _, pool := range u.Spec.Pools {
		for _, p := range pool.Prefixes {
			u.do(t, u.NS("sin-1").AddRoute(netns.Route{Dst: p, Local: true}))
		}
	}
	u.manager = newServiceManager(t, filepath.Join(u.dir, "notify"))
	u.node.Prepare = func(cmd *exec.Cmd) {
		cmd.Path, cmd.Dir = u.program, "/"
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+u.manager.path)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		cmd.SysProcAttr.AmbientCaps = userCapabilities
	}
}

// install puts a program in the place of the node's, which may be running.
func (u *userNode) install(t *testing.T, from string) {
	t.Helper()
	text, err := os.ReadFile(from)
	u.do(t, err)
	u.do(t, os.WriteFile(u.program+".new", text, 0o755))
	u.do(t, os.Rename(u.program+".new", u.program))
}

// unprivileged asserts that a process is not root's, has the four capabilities and no other, and all that it wants.
func (u *userNode) unprivileged(t *testing.T, pid int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	u.do(t, err)
	var mask uint64
	for _, c := range userCapabilities {
		mask |= 1 << c
	}
	for _, want := range []string{fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d", nobody), fmt.Sprintf("CapPrm:\t%016x", mask),
		fmt.Sprintf("CapEff:\t%016x", mask)} {
		if !strings.Contains(string(text), want+"\n") {
			t.Errorf("process %d has not %q:\n%s", pid, want, text)
		}
	}
	page, err := u.node.Get(u.ctx, "/status")
	u.do(t, err)
	var status struct {
		Kernel []struct {
			Program, Why string
			Present      bool
		}
	}
	u.do(t, json.Unmarshal([]byte(page), &status))
	present := map[string]bool{}
	for _, k := range status.Kernel {
		present[k.Program] = k.Present
		if !k.Present && k.Program != "balance" || k.Present && k.Why != "" {
			t.Errorf("kernel program %+v", k)
		}
	}
	if !present["dispatch"] || !present["tune"] || !present["guard"] {
		t.Errorf("kernel programs %v", present)
	}
}

// serves asserts that flows of each protocol and family go through, without an address that the node gave itself.
func (u *userNode) serves(t *testing.T) {
	t.Helper()
	for _, addr := range u.app.at {
		for _, network := range []string{"tcp", "udp"} {
			at := netip.AddrPortFrom(addr, witnessPort)
			eventually(t, 30*time.Second, fmt.Sprintf("%s to %v", network, at), func() error {
				_, err := u.app.ask(network, netip.AddrPort{}, at, "")
				return err
			})
		}
	}
	if len(u.app.at) != 4 {
		t.Errorf("addresses %v, want two of each family", u.app.at)
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := u.NS("sin-1").Cmd(u.ctx, "ip", family, "route", "show", "table", "local", "proto", "178").CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("routes that the node gave: %s, %v", out, err)
		}
	}
}

// failedUpgrade has the service manager hear that the node is ready again, in the process that it knows.
func (u *userNode) failedUpgrade(t *testing.T, pid int) {
	t.Helper()
	u.install(t, "/bin/false")
	u.do(t, syscall.Kill(pid, syscall.SIGHUP))
	u.manager.wants(t, pid, `RELOADING=1\nMONOTONIC_USEC=\d+`)
	u.manager.wants(t, pid, "READY=1")
	u.serves(t)
}

// upgraded has the service manager hear which process is the main one now. It is as unprivileged as the one before.
func (u *userNode) upgraded(t *testing.T, pid int) {
	t.Helper()
	u.install(t, filepath.Join(os.Getenv("NEARCAST_BIN"), "nearcast-edge"))
	u.do(t, syscall.Kill(pid, syscall.SIGHUP))
	u.manager.wants(t, pid, `RELOADING=1\nMONOTONIC_USEC=\d+`)
	next := u.manager.wants(t, pid, `MAINPID=(\d+)\nREADY=1`)
	main, err := strconv.Atoi(next[1])
	u.do(t, err)
	if main == pid {
		t.Errorf("the main process is said to be %d, which it was before", main)
	}
	eventually(t, 30*time.Second, "the next process says that it serves", func() error {
		if now := u.pid(t, "sin-1"); now != main {
			return fmt.Errorf("process %d serves, and the service manager was told of %d", now, main)
		}
		return nil
	})
	u.unprivileged(t, main)
	u.serves(t)
}

// serviceManager hears what a service says of itself, as systemd does (sd_notify(3)), and who says it.
type serviceManager struct {
	path  string
	heard chan notice
}

type notice struct {
	pid  int
	what string
}

// newServiceManager listens on a socket until the test ends.
func newServiceManager(t *testing.T, path string) *serviceManager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		if err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &serviceManager{path: path, heard: make(chan notice, 100)}
	done, over := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(over); c.Close(); <-done })
	go func() {
		defer close(done)
		b, oob := make([]byte, 4096), make([]byte, 4096)
		for {
			n, k, _, _, err := c.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			select {
			case m.heard <- notice{sender(oob[:k]), string(b[:n])}:
			case <-over:
				return
			}
		}
	}()
	return m
}

// sender returns the process that sent a datagram, 0 if the kernel does not say.
func sender(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return int(cred.Pid)
		}
	}
	return 0
}

// wants waits for the next thing that a process says, which must be this, and returns its parts. What other processes
// say is passed over: the next one says that it is ready, too.
func (m *serviceManager) wants(t *testing.T, pid int, what string) []string {
	t.Helper()
	limit := time.After(60 * time.Second)
	for {
		select {
		case n := <-m.heard:
			if n.pid != pid {
				continue
			}
			parts := regexp.MustCompile("^" + what + "$").FindStringSubmatch(n.what)
			if parts == nil {
				t.Fatalf("process %d says %q, want %q", pid, n.what, what)
			}
			return parts
		case <-limit:
			t.Fatalf("process %d does not say %q", pid, what)
		}
	}
}
