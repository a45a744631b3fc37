package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// world is where a test's command lines run.
type world struct {
	dir      string // its HOME
	stdin    string
	terminal bool
	width    int
	dial     func(context.Context, string) (net.Conn, error)
	slept    time.Duration
	now      func() time.Time
}

// newWorld makes a world whose only context is entry.
func newWorld(t testing.TB, entry contextEntry) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	err := writeContexts(w.contexts(), &contextsFile{Current: entry.Name, Contexts: []contextEntry{entry}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) contexts() string {
	return filepath.Join(w.dir, ".config", "nearcast", "contexts.yaml")
}

// result is what a command line has come to.
type result struct {
	code           int
	stdout, stderr string
}

func (w *world) run(args ...string) result {
	var stdout, stderr bytes.Buffer
	dial := w.dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	now := w.now
	if now == nil {
		now = func() time.Time { return fakeNow.Add(w.slept) }
	}
	code := run(context.Background(), env{
		args: args, stdin: strings.NewReader(w.stdin), stdout: &stdout, stderr: &stderr,
		getenv: func(key string) string { return map[string]string{"HOME": w.dir}[key] },
		now:    now,
		sleep: func(_ context.Context, d time.Duration) error {
			w.slept += d
			return nil
		},
		dial: dial, terminal: w.terminal, width: w.width,
	})
	return result{code, stdout.String(), stderr.String()}
}

func (w *world) must(t testing.TB, args ...string) string {
	t.Helper()
	r := w.run(args...)
	if r.code != exitOK {
		t.Fatalf("nearcast %s: exit %d: %s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.stdout
}

// TestTranscripts runs the command lines of testdata/*.transcript against a fake controller and compares
// what they print. A line "$ nearcast ARGS" is a command line ("$ y | nearcast ARGS" with somebody at a
// terminal who answers y); what follows is its stdout, lines of stderr after "! ", and its exit code if
// it is not 0. NEARCAST_UPDATE_GOLDEN=1 writes the files anew.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.transcript")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d transcripts, %v", len(files), err)
	}
	commands := 0
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".transcript"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			f := newFake()
			entry := f.serve(t)
			w := newWorld(t, entry)
			var got strings.Builder
			for line := range strings.Lines(string(text)) {
				line = strings.TrimSuffix(line, "\n")
				switch {
				case strings.HasPrefix(line, "// "):
					fmt.Fprintln(&got, line)
				case strings.HasPrefix(line, "$ "):
					commands++
					fmt.Fprintln(&got, line)
					got.WriteString(w.transcribe(t, strings.TrimPrefix(line, "$ "), entry))
				}
			}
			if os.Getenv("NEARCAST_UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(text) {
				t.Errorf("got\n%s\nwant\n%s", got.String(), text)
			}
		})
	}
	if commands < 60 {
		t.Errorf("only %d command lines were found", commands)
	}
}

// transcribe runs one line and renders what came of it. What differs from run to run has a name instead.
func (w *world) transcribe(t *testing.T, line string, entry contextEntry) string {
	t.Helper()
	w.stdin, w.terminal = "", false
	if answer, rest, ok := strings.Cut(line, " | "); ok {
		w.stdin, w.terminal, line = answer+"\n", true, rest
	}
	args, ok := strings.CutPrefix(line, "nearcast ")
	if !ok {
		t.Fatalf("not a command line: %q", line)
	}
	words := strings.Fields(args)
	for i := range words {
		words[i] = strings.ReplaceAll(words[i], "$DIR", w.dir)
	}
	r := w.run(words...)
	out := r.stdout
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "⏎\n"
	}
	for line := range strings.Lines(r.stderr) {
		out += "! " + line
	}
	if r.code != 0 {
		out += fmt.Sprintf("exit %d\n", r.code)
	}
	return strings.NewReplacer(entry.Server, "SERVER", w.dir, "$DIR", caText(entry), "SHA-256 CAHASH, until DATE").Replace(out) + "\n"
}

// caText is a context's CA as it is shown.
func caText(e contextEntry) string {
	roots, err := parseCA(e.CA)
	if err != nil {
		return "no CA"
	}
	return fmt.Sprintf("SHA-256 %x, until %s", sha256.Sum256(roots[0].Raw), roots[0].NotAfter.Format("2006-01-02"))
}
