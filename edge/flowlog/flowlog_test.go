package flowlog

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// longInterval is one that a test does not see the end of.
const longInterval = 7 * 24 * time.Hour

const accelerator = "ad534ac1-9c4d-4e1c-b2bd-5f8a1d1e1f10"

func window() meter.Window {
	at := netip.MustParseAddrPort
	return meter.Window{
		Accelerator: accelerator, Listener: "4fd0ab12", Group: "0123456789ab", Region: "ap-northeast-1",
		Protocol: model.TCP, Accelerated: at("75.2.76.16:80"),
		Path:    meter.Path{Client: at("139.162.106.181:37760"), Endpoint: at("172.31.21.192:8080"), Source: at("10.0.0.9:41000")},
		Carried: meter.Carried{PacketsIn: 7, PacketsOut: 9, BytesIn: 700, BytesOut: 9000},
		Start:   time.Unix(1580605194, 0), End: time.Unix(1580605204, 0),
	}
}

var from = origin{Account: "071855492661", Accelerator: accelerator, Site: "nrt"}

// The sample of AWS's developer guide is the model: order, number and spelling of fields.
func TestGoldenRecords(t *testing.T) {
	plain := window()
	kept := window()
	kept.Source = kept.Client
	rejected := meter.Window{Accelerator: accelerator, Protocol: model.UDP, Accelerated: plain.Accelerated,
		Path: meter.Path{Client: plain.Client}, Start: plain.Start, End: plain.End, Rejected: "limit"}
	six := window()
	six.Client, six.Accelerated = netip.MustParseAddrPort("[2001:db8::7]:37760"), netip.MustParseAddrPort("[2001:db8:1::1]:80")
	const head = " 071855492661 " + accelerator + " "
	for name, c := range map[string]struct {
		w    meter.Window
		want string
	}{
		"1.0": {plain, "1.0" + head + "139.162.106.181 37760 75.2.76.16 80 172.31.21.192 8080 TCP IPV4 7 700 1580605194 1580605204 ACCEPT OK 10.0.0.9 41000 ap-northeast-1 nrt INGRESS\n" +
			"1.0" + head + "139.162.106.181 37760 75.2.76.16 80 172.31.21.192 8080 TCP IPV4 9 9000 1580605194 1580605204 ACCEPT OK 10.0.0.9 41000 ap-northeast-1 nrt EGRESS\n"},
		"2.0, client address kept": {kept, "2.0" + head + "139.162.106.181 37760 75.2.76.16 80 172.31.21.192 8080 TCP IPV4 7 700 1580605194 1580605204 ACCEPT OK - 0 ap-northeast-1 nrt INGRESS -\n" +
			"2.0" + head + "139.162.106.181 37760 75.2.76.16 80 172.31.21.192 8080 TCP IPV4 9 9000 1580605194 1580605204 ACCEPT OK - 0 ap-northeast-1 nrt EGRESS -\n"},
		"rejected": {rejected, "1.0" + head + "139.162.106.181 37760 75.2.76.16 80 - 0 UDP IPV4 0 0 1580605194 1580605204 REJECT OK - 0 - nrt INGRESS limit\n" +
			"1.0" + head + "139.162.106.181 37760 75.2.76.16 80 - 0 UDP IPV4 0 0 1580605194 1580605204 REJECT OK - 0 - nrt EGRESS limit\n"},
		"IPv6": {six, "1.0" + head + "2001:db8::7 37760 2001:db8:1::1 80 172.31.21.192 8080 TCP IPV6 7 700 1580605194 1580605204 ACCEPT OK 10.0.0.9 41000 ap-northeast-1 nrt INGRESS\n" +
			"1.0" + head + "2001:db8::7 37760 2001:db8:1::1 80 172.31.21.192 8080 TCP IPV6 9 9000 1580605194 1580605204 ACCEPT OK 10.0.0.9 41000 ap-northeast-1 nrt EGRESS\n"},
	} {
		if got := string(appendWindow(nil, AWS, from, &c.w)); got != c.want {
			t.Errorf("%s:\ngot  %swant %s", name, got, c.want)
		}
		for line := range strings.Lines(c.want) {
			want := map[string]int{"1.0": 22, "2.0": 23}[line[:3]]
			if c.w.Rejected != "" {
				want++
			}
			if n := len(strings.Fields(line)); n != want {
				t.Errorf("%s: %d fields, want %d", name, n, want)
			}
		}
	}
	skipped := string(appendSkipped(nil, AWS, from, plain.Start, plain.End))
	if n := len(strings.Fields(skipped)); n != 22 || strings.Fields(skipped)[16] != "SKIPDATA" {
		t.Errorf("%d fields: %s", n, skipped)
	}
	want := `{"account":"071855492661","accelerator_id":"` + accelerator + `","listener_id":"4fd0ab12","group_id":"0123456789ab","client":"139.162.106.181:37760","accelerated":"75.2.76.16:80","endpoint":"172.31.21.192:8080","source":"10.0.0.9:41000","protocol":"TCP","packets":7,"bytes":700,"start":"2020-02-02T00:59:54Z","end":"2020-02-02T01:00:04Z","action":"ACCEPT","endpoint_region":"ap-northeast-1","site":"nrt","direction":"INGRESS"}` + "\n"
	if got := string(appendRecord(nil, JSON, from, &plain, ingress, 7, 700)); got != want {
		t.Errorf("JSON:\ngot  %swant %s", got, want)
	}
}

func newLog(t testing.TB, c Config) *Log {
	t.Helper()
	c.Node, c.Metrics = "n1", prometheus.NewRegistry()
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l.Apply(&model.Snapshot{Accelerators: []model.Accelerator{{ID: accelerator, Project: "071855492661",
		FlowLogs: model.FlowLogs{Enabled: true, Bucket: "logs", Prefix: "flows/"}}, {ID: "other"}}}, "ap-northeast-1", "nrt")
	return l
}

// run runs a Log until the returned function is called.
func run(t testing.TB, l *Log) (stop func()) {
	t.Helper()
	return leak.Run(t, l.Run)
}

// lines returns all lines of all files in a destination directory, and the files' paths below it.
func lines(t testing.TB, dir string) (text, files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		files = append(files, rel)
		f, err := os.ReadFile(p)
		if err == nil {
			text = append(text, unzip(t, f)...)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return text, files
}

func unzip(t testing.TB, b []byte) []string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
}

func TestWindowsBecomeFiles(t *testing.T) {
	dir, spool := t.TempDir(), t.TempDir()
	l := newLog(t, Config{Dir: spool, Destination: Directory(dir)})
	if !l.Wanted(accelerator) || l.Wanted("other") || l.Wanted("unknown") {
		t.Error("the wrong accelerators are wanted")
	}
	for range 100 {
		l.Record(window())
	}
	w := window()
	w.Accelerator = "other" // not logged
	l.Record(w)
	run(t, l)()
	if got, _ := lines(t, dir); len(got) != 0 {
		t.Errorf("%d lines are delivered before their interval is over", len(got))
	}
	if !l.Deliver(t.Context(), time.Now().Add(segmentEvery)) {
		t.Error("not delivered")
	}
	text, files := lines(t, dir)
	if len(text) != 200 || len(files) != 1 {
		t.Fatalf("%d lines in %v", len(text), files)
	}
	day := time.Now().UTC()
	if pattern := "logs/flows/AWSLogs/071855492661/globalaccelerator/ap-northeast-1/" + "[0-9]*/[0-9][0-9]/[0-9][0-9]/071855492661_globalaccelerator_" +
		accelerator + "_fl-*_" + "[0-9]*T[0-9]*Z_????????.log.gz"; !match(t, pattern, files[0]) {
		t.Errorf("%s is not %s (%v)", files[0], pattern, day)
	}
	if left, _ := os.ReadDir(spool); len(left) != 0 || l.spooled.Load() != 0 {
		t.Errorf("%d segments and %d bytes are left", len(left), l.spooled.Load())
	}
}

func match(t *testing.T, pattern, s string) bool {
	ok, err := filepath.Match(pattern, s)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// What a killed process left is delivered by the next one: whole records, once in one file, and again
// under the same name if the answer to the first delivery was lost.
func TestRestart(t *testing.T) {
	dir, spool := t.TempDir(), t.TempDir()
	first := newLog(t, Config{Dir: spool, Destination: Directory(dir), Interval: longInterval})
	b := &batch{target: (*first.wanted.Load())[accelerator], since: time.Now()}
	for i := range 3 {
		w := window()
		w.PacketsIn = uint64(i)
		b.records, b.windows = appendWindow(b.records, AWS, from, &w), 1
		first.flushOne(b)
	}
	segments, _ := os.ReadDir(spool)
	name := filepath.Join(spool, segments[0].Name())
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "1.0 0718554926") // killed while it wrote
	f.Close()
	kept, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(spool, "1_x_0_y"+segmentSuffix)
	if err := os.WriteFile(broken, []byte("no header"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		second := newLog(t, Config{Dir: spool, Destination: Directory(dir)})
		if second.spooled.Load() == 0 || !second.Deliver(t.Context(), time.Now()) {
			t.Error("not delivered")
		}
		if text, files := lines(t, dir); len(text) != 6 || len(files) != 1 {
			t.Errorf("%d lines in %v", len(text), files)
		}
		if err := os.WriteFile(name, kept, 0o600); err != nil { // as if it had died before it removed the segment
			t.Fatal(err)
		}
	}
}

// A full spool drops what is new, counts it, and says so in the log once there is room.
func TestFullSpool(t *testing.T) {
	dir, spool := t.TempDir(), t.TempDir()
	l := newLog(t, Config{Dir: spool, Destination: Directory(dir), SpoolMax: 2000, Interval: longInterval})
	b := &batch{target: (*l.wanted.Load())[accelerator], since: time.Now()}
	for range 20 {
		w := window()
		b.records, b.windows = appendWindow(b.records, AWS, from, &w), 1
		l.flushOne(b)
	}
	if b.skipped.IsZero() || l.spool.used > 2000 {
		t.Errorf("%d bytes are spooled", l.spool.used)
	}
	later := time.Now().Add(longInterval)
	l.Deliver(t.Context(), later)
	l.flushOne(b)
	l.Deliver(t.Context(), later)
	text, _ := lines(t, dir)
	if len(text) == 0 || !strings.Contains(text[len(text)-1], " SKIPDATA ") || strings.Count(strings.Join(text, " "), "SKIPDATA") != 1 {
		t.Errorf("%d lines, the last: %s", len(text), text[len(text)-1])
	}
}

// A real S3 server gets the files, also after it was away.
func TestS3(t *testing.T) {
	fake := gofakes3.New(s3mem.New())
	away := true
	var auth string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		auth = r.Header.Get("Authorization")
		fake.Server().ServeHTTP(w, r)
	}))
	defer srv.Close()
	client := srv.Client()
	s3 := &S3{Endpoint: srv.URL, Region: "eu-west-1", Key: "AK", Secret: "SK", Client: client}
	if err := s3.Validate(); err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodPut, srv.URL+"/logs", nil)
	away = false
	res, err := client.Do(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	res.Body.Close()
	away = true
	l := newLog(t, Config{Dir: t.TempDir(), Destination: s3})
	l.Record(window())
	run(t, l)()
	later := time.Now().Add(segmentEvery)
	if l.Deliver(t.Context(), later) {
		t.Error("delivered to a store that is away")
	}
	away = false
	if !l.Deliver(t.Context(), later) {
		t.Fatal("not delivered")
	}
	if !strings.Contains(auth, "Credential=AK/") || !strings.Contains(auth, "/eu-west-1/s3/aws4_request") {
		t.Errorf("authorization: %s", auth)
	}
	list, err := client.Get(srv.URL + "/logs?list-type=2")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(list.Body)
	list.Body.Close()
	_, rest, found := strings.Cut(string(text), "<Key>")
	key, _, _ := strings.Cut(rest, "</Key>")
	if !found || !strings.HasPrefix(key, "flows/AWSLogs/071855492661/globalaccelerator/ap-northeast-1/") {
		t.Fatalf("objects: %s", text)
	}
	object, err := client.Get(srv.URL + "/logs/" + key)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(object.Body)
	object.Body.Close()
	if got := unzip(t, body); len(got) != 2 || !strings.HasPrefix(got[0], "1.0 071855492661 ") {
		t.Errorf("object: %q", got)
	}
	if err := s3.Put(t.Context(), "nothing-like-it", "k", nil); err == nil || !strings.Contains(err.Error(), "NoSuchBucket") {
		t.Errorf("a bucket that is not there: %v", err)
	}
}

func TestTail(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "flows.sock")
	l := newLog(t, Config{Socket: socket})
	stop := run(t, l)
	defer stop()
	var conn net.Conn
	eventually(t, "the socket", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", socket)
		return err == nil
	})
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	eventually(t, "somebody listens", func() bool { return l.Wanted("other") })
	eventually(t, "the reader is known", func() bool {
		l.tails.mu.Lock()
		defer l.tails.mu.Unlock()
		return len(l.tails.readers) == 1
	})
	l.Record(window())
	_ = conn.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	if n, err := conn.Read(buf); err != nil || !bytes.HasPrefix(buf[:n], []byte(`{"account":`)) {
		t.Errorf("%q, %v", buf[:n], err)
	}
	conn.Close()
	eventually(t, "nobody listens", func() bool { return !l.Wanted("other") })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// Nobody waits for a writer that does not come.
func TestFullQueue(t *testing.T) {
	l := newLog(t, Config{})
	for range queueMax + 10 {
		l.Record(window())
	}
	if !l.lost.Load() {
		t.Error("nothing is said of what was dropped")
	}
}

func FuzzSegment(f *testing.F) {
	f.Add([]byte("{\"accelerator\":\"a\",\"account\":\"1\"}\nrecord\ncut"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, records, ok := parseSegment(b)
		if !ok {
			return
		}
		if n := len(records); n > 0 && records[n-1] != '\n' {
			t.Errorf("%q ends in the middle", records)
		}
		objectKey(h, "12_x_0_y.seg")
	})
}
