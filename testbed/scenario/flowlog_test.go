package scenario

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

const (
	storeAt = "127.0.0.1:9000" // of an S3-compatible store, on the edge's own machine
	fetched = 1000             // bytes, by each flow
)

// TestFlowLogs has the shipped edge write its flows into a directory and into an S3-compatible store, and
// kills it and the store on the way: every flow that was in the spool is delivered, once.
func TestFlowLogs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("AWS_ACCESS_KEY_ID", "AK")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "SK")
	t.Setenv("AWS_REGION", "eu-west-1")
	d := stand(t, "main", one("flows"), world.Options{
		NodeArgs: []string{"--flow-logs", dir, "--flow-logs-interval", "2s"}})
	app, err := d.Accelerate(d.ctx, t.Logf)
	d.do(t, err)
	d.app = app
	d.run(t, nil, "accelerator", "update", "shop", "--flow-logs", "logs/edge", "--wait")
	f := &flowLogs{d}
	t.Run("into a directory", func(t *testing.T) { f.directory(t, dir) })
	t.Run("live", f.live)
	t.Run("the node is killed", func(t *testing.T) { f.killed(t, dir) })
	t.Run("the store is away and the node is killed", f.store)
}

type flowLogs struct{ *deployment }

// flows has clients fetch something, each on a connection of its own, and returns their addresses.
func (f *flowLogs) flows(t *testing.T, n int) (clients []netip.AddrPort) {
	t.Helper()
	for len(clients) < n {
		var local netip.AddrPort
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := f.Dial("jakarta")(ctx, network, address)
			if err == nil {
				local = netip.MustParseAddrPort(c.LocalAddr().String())
			}
			return c, err
		}
		eventually(t, 30*time.Second, "a fetch", func() error {
			ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
			defer cancel()
			_, err := load.Fetch(ctx, dial, f.at(world.ListenHTTP), fetched)
			return err
		})
		clients = append(clients, local)
	}
	return clients
}

// record is one line of a log.
type record struct {
	fields []string
	file   string
}

func (r record) client() netip.AddrPort {
	port, _ := strconv.ParseUint(r.fields[4], 10, 16)
	addr, _ := netip.ParseAddr(r.fields[3])
	return netip.AddrPortFrom(addr, uint16(port))
}

// recordsOf unpacks a file.
func recordsOf(t *testing.T, name string, body io.Reader) (all []record) {
	t.Helper()
	z, err := gzip.NewReader(body)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for lines := bufio.NewScanner(z); lines.Scan(); {
		r := record{strings.Fields(lines.Text()), name}
		if n := len(r.fields); n < 22 || n > 24 {
			t.Fatalf("%s has a record of %d fields: %s", name, n, lines.Text())
		}
		all = append(all, r)
	}
	return all
}

// inDirectory returns all records below a directory, whose files have AWS's names.
func inDirectory(t *testing.T, dir string) (all []record) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), ".part-") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		all = append(all, recordsOf(t, rel, bytes.NewReader(b))...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// complete reports what lacks: each client has a record in each direction (two if a minute ended meanwhile)
// that say what it carried, and none is there twice.
func complete(all []record, clients []netip.AddrPort) error {
	seen, carried := map[string]string{}, map[string]int{}
	for _, r := range all {
		line := strings.Join(r.fields, " ")
		if other, twice := seen[line]; twice {
			return fmt.Errorf("%q is in %s and %s", line, other, r.file)
		}
		seen[line] = r.file
		bytes, _ := strconv.Atoi(r.fields[12])
		carried[r.client().String()+" "+r.fields[21]] += bytes
	}
	missing := 0
	for _, c := range clients {
		for direction, least := range map[string]int{"INGRESS": 100, "EGRESS": fetched} {
			if carried[c.String()+" "+direction] < least {
				missing++
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d records are missing", missing, 2*len(clients))
	}
	return nil
}

// awsPath is where AWS Global Accelerator puts a file: its developer guide, "Flow log files".
var awsPath = regexp.MustCompile(`^(logs/)?edge/AWSLogs/\d{12}/globalaccelerator/ap-sin-1/\d{4}/\d\d/\d\d/` +
	`\d{12}_globalaccelerator_[0-9a-f-]+_fl-[0-9a-f]+_\d{8}T\d{4}Z_[0-9a-f]{8}\.log\.gz$`)

// directory: every flow is there with what happened to it.
func (f *flowLogs) directory(t *testing.T, dir string) {
	clients := f.flows(t, 40)
	var all []record
	eventually(t, time.Minute, "every flow is in a file", func() error {
		all = inDirectory(t, dir)
		return complete(all, clients)
	})
	for _, r := range all {
		if !awsPath.MatchString(r.file) {
			t.Fatalf("a file is called %s", r.file)
		}
		line := strings.Join(r.fields, " ")
		want := fmt.Sprintf("%v 80 %v %d TCP IPV4", f.app.Addresses[0], f.Host("eu-fra-1-app-1").V4, load.PortHTTP)
		if r.fields[0] != "1.0" || !strings.Contains(line, want) || !strings.Contains(line, " ACCEPT OK "+f.Host("fra-1").V4.String()+" ") ||
			!strings.Contains(line, " eu-fra-1 sin ") {
			t.Fatalf("record %s", line)
		}
	}
	t.Logf("%d flows, %d records, for instance %s: %s", len(clients), len(all), all[0].file, strings.Join(all[0].fields, " "))
}

// live: nearcast flows tail shows flows as they end.
func (f *flowLogs) live(t *testing.T) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	cmd := f.NS("sin-1").Cmd(ctx, filepath.Join(os.Getenv("NEARCAST_BIN"), "nearcast"), "flows", "tail",
		"--socket", filepath.Join(f.DataDir("sin-1"), "flows.sock"))
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	f.do(t, cmd.Start())
	defer func() { cancel(); _ = cmd.Wait() }()
	eventually(t, 30*time.Second, "a flow is shown", func() error {
		c := f.flows(t, 1)[0] // the first ones may come before the reader
		var text string
		for range 50 {
			if text = out.String(); strings.Contains(text, "ACCEPT TCP  "+c.String()+" → ") {
				return nil
			}
			time.Sleep(20 * time.Millisecond)
		}
		return fmt.Errorf("%v is not in %q", c, text)
	})
}

// lockedBuffer is a buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// spooled waits until the edge has written all that there is to say of clients to its spool.
func (f *flowLogs) spooled(t *testing.T, clients []netip.AddrPort) {
	t.Helper()
	eventually(t, 30*time.Second, "the flows are in the spool", func() error {
		segments, err := filepath.Glob(filepath.Join(f.DataDir("sin-1"), "flowlogs", "*.seg"))
		if err != nil {
			return err
		}
		var all []record
		for _, name := range segments {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			_, lines, _ := strings.Cut(string(b), "\n") // the first line says where it goes
			for line := range strings.Lines(lines) {
				if fields := strings.Fields(line); len(fields) >= 22 { // the last one may just be written
					all = append(all, record{fields, name})
				}
			}
		}
		return complete(all, clients)
	})
}

// killed: what was in the spool when the node was killed is delivered by the next process, once.
func (f *flowLogs) killed(t *testing.T, dir string) {
	edge := f.Nodes["sin-1"]
	kill(t, edge)
	edge.AddArgs("--flow-logs-interval", "1h") // so that all of it is pending
	f.start(t, edge)
	var clients []netip.AddrPort
	const rounds, each = 3, 20
	for range rounds {
		clients = append(clients, f.flows(t, each)...)
		f.spooled(t, clients[len(clients)-each:]) // and so none of them is delivered
		kill(t, edge)
		f.start(t, edge)
	}
	eventually(t, time.Minute, "every spooled flow is delivered", func() error { return complete(inDirectory(t, dir), clients) })
	t.Logf("killed -9 %d times with %d flows pending each: all %d flows are there, once", rounds, each, len(clients))
}

// store: flows are kept while the store is away, also when the node is killed meanwhile.
func (f *flowLogs) store(t *testing.T) {
	edge := f.Nodes["sin-1"]
	kill(t, edge)
	edge.AddArgs("--flow-logs", "http://"+storeAt, "--flow-logs-interval", "2s")
	f.start(t, edge)
	clients := f.flows(t, 20)
	f.spooled(t, clients)
	eventually(t, 30*time.Second, "a delivery fails", func() error {
		if metric(t, edge, "nearcast_flowlog_files_total") == 0 || metric(t, edge, "nearcast_flowlog_spool_bytes") == 0 {
			return fmt.Errorf("nothing waits")
		}
		return nil
	})
	kill(t, edge)
	f.start(t, edge)
	clients = append(clients, f.flows(t, 20)...)
	f.spooled(t, clients)

	backend := s3mem.New()
	f.do(t, backend.CreateBucket("logs"))
	l, err := f.NS("sin-1").Listen(f.ctx, "tcp", netip.MustParseAddrPort(storeAt))
	f.do(t, err)
	srv := &http.Server{Handler: gofakes3.New(backend).Server()}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-served })
	begin := time.Now()
	var all []record
	// Between tries of a store that is away there is up to a minute.
	took := eventually(t, 2*time.Minute, "every flow is in the store", func() error {
		all = inStore(t, backend)
		return complete(all, clients)
	})
	for _, r := range all {
		if !awsPath.MatchString(r.file) {
			t.Fatalf("an object is called %s", r.file)
		}
	}
	eventually(t, 30*time.Second, "the spool is empty", func() error {
		if n := metric(t, edge, "nearcast_flowlog_spool_bytes"); n != 0 {
			return fmt.Errorf("%v bytes", n)
		}
		return nil
	})
	t.Logf("%d flows while the store was away and the node was killed: all %d records are there %v after it came back (%v)",
		len(clients), len(all), took.Round(time.Millisecond), time.Since(begin).Round(time.Second))
}

// inStore returns all records of the bucket.
func inStore(t *testing.T, backend *s3mem.Backend) (all []record) {
	t.Helper()
	list, err := backend.ListBucket("logs", &gofakes3.Prefix{}, gofakes3.ListBucketPage{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Contents {
		object, err := backend.GetObject("logs", o.Key, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, recordsOf(t, o.Key, object.Contents)...)
		object.Contents.Close()
	}
	return all
}
