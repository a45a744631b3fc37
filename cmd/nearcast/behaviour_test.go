package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
)

// TestHelp walks all commands: none may lack a one-line description, an example that begins with the
// command itself, and help for each flag.
func TestHelp(t *testing.T) {
	seen := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		seen++
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: Short is %q", path, cmd.Short)
		}
		if !strings.Contains(cmd.Example, path) && !strings.Contains(cmd.Example, aliased(cmd)) {
			t.Errorf("%s: no example of it: %q", path, cmd.Example)
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: an example is not indented: %q", path, line)
			}
		}
		if cmd.RunE == nil && cmd.Run == nil {
			t.Errorf("%s does nothing", path)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s has no help", path, f.Name)
			}
		})
		w := &world{dir: t.TempDir()}
		if r := w.run(append(strings.Fields(path)[1:], "--help")...); r.code != 0 || r.stderr != "" ||
			!strings.Contains(r.stdout, "Examples:\n") || !strings.Contains(r.stdout, cmd.Short) && cmd.Long == "" {
			t.Errorf("%s --help: exit %d, %s%s", path, r.code, r.stdout, r.stderr)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&cli{}).root())
	if seen < 75 {
		t.Errorf("only %d commands were found", seen)
	}
}

// aliased is the command's path with its shortest alias.
func aliased(cmd *cobra.Command) string {
	name := cmd.Name()
	for _, a := range cmd.Aliases {
		if len(a) < len(name) {
			name = a
		}
	}
	return strings.TrimSuffix(cmd.CommandPath(), cmd.Name()) + name
}

// TestExamplesAreUnderstood runs every example line of every command as far as its arguments and flags
// go, so that no example names a flag that is not there.
func TestExamplesAreUnderstood(t *testing.T) {
	seen := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for line := range strings.Lines(strings.ReplaceAll(cmd.Example, "\\\n", " ")) {
			line, _, _ = strings.Cut(line, " || ")
			for part := range strings.SplitSeq(line, " | ") {
				part, _, _ = strings.Cut(part, " > ")
				words := strings.Fields(part)
				if len(words) < 2 || words[0] != "nearcast" || slices.Contains(words, "<") {
					continue
				}
				seen++
				root := (&cli{}).root()
				found, rest, err := root.Find(words[1:])
				if err != nil || found == root {
					t.Errorf("%q: no such command (%v)", part, err)
				} else if err := found.ParseFlags(rest); err != nil {
					t.Errorf("%q: %v", part, err)
				} else if err := found.ValidateArgs(found.Flags().Args()); err != nil {
					t.Errorf("%q: %v", part, err)
				} else if err := (&cli{flags: globalFlags{output: "table", timeout: 1}}).before(found, nil); err != nil {
					t.Errorf("%q: %v", part, err)
				}
			}
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&cli{}).root())
	if seen < 120 {
		t.Errorf("only %d examples were found", seen)
	}
}

// words runs a completion and returns the words without their descriptions.
func (w *world) words(t *testing.T, args ...string) []string {
	t.Helper()
	r := w.run(append([]string{cobra.ShellCompRequestCmd}, args...)...)
	if r.code != 0 {
		t.Fatalf("%v: exit %d: %s", args, r.code, r.stderr)
	}
	var words []string
	for line := range strings.Lines(r.stdout) {
		if !strings.HasPrefix(line, ":") {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			words = append(words, word)
		}
	}
	return words
}

func TestCompletion(t *testing.T) {
	f := newFake()
	w := newWorld(t, f.serve(t))
	w.must(t, "apply", "-f", "testdata/web.yaml")
	w.must(t, "region", "create", "eu-fra-1")
	w.must(t, "site", "create", "fra", "--region", "eu-fra-1")
	w.must(t, "target", "create", "i-1", "--host", "10.0.0.7")
	for _, c := range []struct {
		line string
		want string // all words, or with "…" at the end some
	}{
		{"accelerator get ", "web"},
		{"accelerator get web ", ""},
		{"accelerator delete w", "web"},
		{"acc ", "create delete disable enable get list tag …"},
		{"listener create --accelerator ", "web"},
		{"listener create --protocol ", "tcp udp tcp_udp"},
		{"listener create --affinity ", "none source_ip"},
		{"listener get ", "a0000002 a0000003"},
		{"group create --listener ", "a0000002 a0000003"},
		{"group create --region ", "eu-fra-1"},
		{"group create --endpoint ", "i-1"},
		{"group get ", "b00000000004 b00000000005"},
		{"endpoint set --group b00000000004 ", "10.0.0.1 10.0.0.2"},
		{"endpoint add --group b00000000004 ", "i-1"},
		{"endpoint set --client-address ", "none proxy_v1 proxy_v2 transparent"},
		{"node drain ", "fra-1 iad-1"},
		{"pool get ", "any-a any-b"},
		{"site delete ", "fra"},
		{"target get ", "i-1"},
		{"operator delete ", "alice"},
		{"operator create x --role ", "viewer operator admin"},
		{"export ", "web"},
		{"--context ", "test"},
		{"context use ", "test"},
		{"-o ", "table json yaml"},
		{"stat", "status"},
	} {
		// Without the answer to an earlier flag's required ones, cobra offers them too: only words count.
		got := slices.DeleteFunc(w.words(t, splitLine(c.line)...), func(s string) bool { return strings.HasPrefix(s, "-") })
		want, some := strings.CutSuffix(c.want, " …")
		if !slices.Equal(got, strings.Fields(want)) && !(some && containsAll(got, strings.Fields(want))) {
			t.Errorf("%q: %q, want %q", c.line, got, c.want)
		}
	}
	// Without a controller there is nothing to offer, and no error.
	w.dial = func(context.Context, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	if got := w.words(t, "accelerator", "get", ""); len(got) != 0 {
		t.Errorf("without a controller: %q", got)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if script := w.must(t, "completion", shell); !strings.Contains(script, "__complete") {
			t.Errorf("%s: %.200s", shell, script)
		}
	}
}

// splitLine parts a command line; a space at the end begins an empty word.
func splitLine(line string) []string {
	words := strings.Fields(line)
	if strings.HasSuffix(line, " ") {
		words = append(words, "")
	}
	return words
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

func TestErrorsSayWhatToDo(t *testing.T) {
	f := newFake()
	good := f.serve(t)
	other := newFake().serve(t)
	mute, err := net.Listen("tcp", "127.0.0.1:0") // accepts by the kernel, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	closed := netns.FreeAddr(t)
	plain := plainServer(t)

	with := func(change func(*contextEntry)) contextEntry {
		e := good
		change(&e)
		return e
	}
	for _, c := range []struct {
		name string
		to   contextEntry
		dial func(context.Context, string) (net.Conn, error)
		says []string
	}{
		{"refused", with(func(e *contextEntry) { e.Server = closed }), nil,
			[]string{"connection refused", closed + ", context test", "systemctl status", "--server"}},
		{"unknown name", good, func(context.Context, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "ctl", IsNotFound: true}}
		}, []string{"the name of the controller", "no such host", "context show"}},
		{"no route", good, func(context.Context, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}
		}, []string{"cannot be reached", "no route to host", "firewall"}},
		{"something else", good, func(context.Context, string) (net.Conn, error) { return nil, errors.New("odd\x1b[31m") },
			[]string{"cannot be reached: odd?[31m"}},
		{"another cluster's CA", with(func(e *contextEntry) { e.CA = other.CA }), nil,
			[]string{"did not prove who it is", "another cluster's", "admin-context.yaml"}},
		{"not TLS", with(func(e *contextEntry) { e.Server = plain }), nil,
			[]string{"did not prove who it is", "the controllers' port"}},
		{"silence", with(func(e *contextEntry) { e.Server = mute.Addr().String() }), nil, []string{"did not answer in time", "--timeout"}},
		{"wrong token", with(func(e *contextEntry) { e.Token = "NCO1.mallory.abcdefghijklmnopqrstuvwxyz" }), nil,
			[]string{"unknown operator", "operator create", "context add"}},
		{"no token", with(func(e *contextEntry) { e.Token = "" }), nil, []string{"unknown operator", "--token-file"}},
		{"no CA", with(func(e *contextEntry) { e.CA = "" }), nil, []string{"which CA", "--ca FILE"}},
		{"broken CA", with(func(e *contextEntry) { e.CA = "hello" }), nil, []string{"read the CA certificate"}},
		{"no server", with(func(e *contextEntry) { e.Server = "" }), nil, []string{"where the controller is", "--server"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.to)
			w.dial = c.dial
			args := []string{"whoami"}
			if c.name == "silence" {
				args = append(args, "--timeout", "200ms")
			}
			r := w.run(args...)
			if r.code != exitFailed || r.stdout != "" {
				t.Errorf("exit %d, stdout %q", r.code, r.stdout)
			}
			for _, s := range c.says {
				if !strings.Contains(r.stderr, s) {
					t.Errorf("%q is not said in:\n%s", s, r.stderr)
				}
			}
			if strings.Contains(r.stderr, "rpc error") || strings.Contains(r.stderr, "\x1b") {
				t.Errorf("it speaks of its insides:\n%s", r.stderr)
			}
		})
	}
}

// plainServer answers in HTTP, like a port that is not the controllers': it reads what it is asked, and what comes
// after its answer until the client is gone. To close with something unread would reset the connection, and the
// answer might be lost.
func plainServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = conn.Read(make([]byte, 16<<10))
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return l.Addr().String()
}

func TestInterrupt(t *testing.T) {
	w := newWorld(t, newFake().serve(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errs strings.Builder
	code := run(ctx, env{args: []string{"whoami"}, stdin: strings.NewReader(""), stdout: &out, stderr: &errs,
		getenv: func(k string) string { return map[string]string{"NEARCAST_CONTEXTS": w.contexts()}[k] },
		now:    time.Now, sleep: sleep, dial: osEnv().dial})
	if code != exitInterrupted || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}

// TestWhereCommandsGo: flags over environment over the user's file, and parts of a context by flags.
func TestWhereCommandsGo(t *testing.T) {
	f := newFake()
	good := f.serve(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, token := file("ca.pem", good.CA), file("token", good.Token+"\n")
	wrong := good
	wrong.Server, wrong.Token = "127.0.0.1:1", "NCO1.x.abcdefghijklmnopqrstuvwxyz"
	w := newWorld(t, wrong)
	host, port, _ := net.SplitHostPort(good.Server)
	for _, args := range [][]string{
		{"--server", good.Server, "--token", good.Token},
		{"--server", good.Server, "--token-file", token},
		{"--server", good.Server, "--token-file", "-"},
		{"--contexts", filepath.Join(dir, "none.yaml"), "--server", net.JoinHostPort(host, port), "--ca", ca, "--token-file", token},
	} {
		w.stdin = good.Token
		w.must(t, append([]string{"whoami"}, args...)...)
	}
	if r := w.run("whoami", "--server", good.Server, "--token-file", file("empty", "\n")); !strings.Contains(r.stderr, "holds no token") {
		t.Errorf("an empty token file: %+v", r)
	}
	// Adding what the flags say makes the same a context.
	w.must(t, "context", "add", "new", "--server", good.Server, "--ca", ca, "--token-file", token)
	w.must(t, "whoami", "--context", "new")
	info, err := os.Stat(w.contexts())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the contexts file has mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(w.contexts(), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := w.run("whoami", "--context", "new"); r.code != exitOK || !strings.Contains(r.stderr, "chmod 600") {
		t.Errorf("a file that others can read: %+v", r)
	}
	if r := w.run("whoami", "--contexts", file("broken.yaml", "contexts: {")); r.code != exitFailed ||
		!strings.Contains(r.stderr, "is not a contexts file") {
		t.Errorf("a broken file: %+v", r)
	}
	for in, want := range map[string]string{"ctl": "ctl:7443", "ctl:1": "ctl:1", "::1": "[::1]:7443", "[::1]": "[::1]:7443",
		"[::1]:2": "[::1]:2", "192.0.2.1": "192.0.2.1:7443", "": ""} {
		if got := withPort(in); got != want {
			t.Errorf("withPort(%q) = %q", in, got)
		}
	}
}

func TestWait(t *testing.T) {
	f := newFake()
	w := newWorld(t, f.serve(t))
	f.nodes[1].Connected = true // at revision 90, never to move
	f.polls = 4
	r := w.run("accelerator", "create", "web", "--wait")
	if r.code != 0 || !strings.Contains(r.stdout, "deployed") {
		t.Fatalf("%+v", r)
	}
	want := "waiting for web: 2 nodes of 2 to apply it: fra-1, iad-1\n" +
		"waiting for web: 1 node of 2 to apply it: iad-1\ndeployed\n"
	if r.stderr != want {
		t.Errorf("progress:\n%swant\n%s", r.stderr, want)
	}
	if w.slept != 4*waitStep {
		t.Errorf("slept %v", w.slept)
	}
	// A node that refuses is named with its reason when the time is up.
	f.polls = 1 << 30
	f.nodes[1].Rejections = []*pb.Rejection{{Field: "listeners[a].port_ranges[0].to", Message: "is 0"}}
	r = w.run("accelerator", "enable", "web", "--wait", "--wait-timeout", "10s")
	if r.code != exitFailed || !strings.Contains(r.stderr, "not deployed after 10s") ||
		!strings.Contains(r.stderr, "iad-1 (refuses: listeners[a].port_ranges[0].to: is 0)") ||
		!strings.Contains(r.stderr, "nearcast status") {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{
		{"listener", "create", "--accelerator", "web", "--ports", "443"},
		{"group", "create", "--listener", "web:443", "--region", "r", "--endpoint", "10.0.0.1"},
		{"endpoint", "set", "-g", "web@r", "10.0.0.1", "--weight", "1"},
		{"apply", "-f", "testdata/web2.yaml"},
	} {
		f.polls = 3
		if r := w.run(append(args, "--wait")...); r.code != 0 || !strings.HasSuffix(r.stderr, "deployed\n") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

func TestApplyStopsAtTheFirstFailure(t *testing.T) {
	f := newFake()
	w := newWorld(t, f.serve(t))
	w.must(t, "apply", "-f", "testdata/web.yaml")
	f.accs[0].Revision = 7 // what was read is not what is changed: somebody came between
	w.stdin = "accelerators:\n- {name: web, enabled: false}\n- {name: other}\n"
	f.touchOnRead = true
	r := w.run("apply", "-f", "-")
	if r.code != exitFailed || !strings.Contains(r.stderr, "update accelerator web: accelerator is at revision") ||
		!strings.Contains(r.stderr, "0 of 2 changes had been made before") || !strings.Contains(r.stderr, "Somebody else changed it") {
		t.Errorf("%+v", r)
	}
	if len(f.accs) != 1 {
		t.Error("it went on after the failure")
	}
}

func TestTables(t *testing.T) {
	rows := func() [][]string {
		return [][]string{{"NAME", "ADDRESSES", "N"}, {"a", "198.51.100.1 203.0.113.1 2001:db8::1", "1"}, {"ключ", "", "22"}}
	}
	for _, c := range []struct {
		width int
		want  string
	}{
		{0, "NAME  ADDRESSES                             N\n" +
			"a     198.51.100.1 203.0.113.1 2001:db8::1  1\n" +
			"ключ  -                                     22\n"},
		{30, "NAME  ADDRESSES             N\na     198.51.100.1 203.0.…  1\nключ  -                     22\n"},
		{5, "NAME  ADDRESS…  N\na     198.51.…  1\nключ  -         22\n"},
	} {
		var out strings.Builder
		if err := writeRows(&out, rows(), "", c.width); err != nil || out.String() != c.want {
			t.Errorf("width %d: %v\n%swant\n%s", c.width, err, out.String(), c.want)
		}
	}
	var out strings.Builder
	_ = writeRows(&out, [][]string{{"evil\x1b[2J\r\x00"}}, "", 0)
	if out.String() != "evil?[2J??\n" {
		t.Errorf("%q", out.String())
	}
	f := newFake()
	w := newWorld(t, f.serve(t))
	w.must(t, "accelerator", "create", "web")
	w.width = 80
	for line := range strings.Lines(w.must(t, "accelerator", "list")) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}

func TestPagesAreAllRead(t *testing.T) {
	f := newFake()
	w := newWorld(t, f.serve(t))
	for range 7 {
		w.must(t, "accelerator", "create", "web")
	}
	if lines := strings.Count(w.must(t, "accelerator", "list"), "\n"); lines != 8 {
		t.Errorf("%d lines", lines)
	}
	for limit, want := range map[string]int{"1": 2, "2": 3, "5": 6, "99": 6} {
		if lines := strings.Count(w.must(t, "audit", "list", "--limit", limit), "\n"); lines != want {
			t.Errorf("--limit %s: %d lines", limit, lines)
		}
	}
}

func TestStatusShowsProblemsFirst(t *testing.T) {
	f := newFake()
	f.problems = []string{"node iad-1 is away since 3m", "group b1 has no healthy endpoint"}
	w := newWorld(t, f.serve(t))
	r := w.run("status", "--check")
	if r.code != exitFailed || r.stderr != "" || !strings.HasPrefix(r.stdout,
		"Cluster prod: 2 PROBLEMS\n  ! node iad-1 is away since 3m\n  ! group b1 has no healthy endpoint\n\nOverview\n") {
		t.Errorf("%+v", r)
	}
}
