package dns

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/nearcast/nearcast/proto/model"
)

// TestBeside measures this server beside gdnsd and a stock server of the DNS library with the same database, in
// one run: CPU time a query at a fixed rate, and by it queries a second and core; then how long answers take at half
// of each server's own peak, and how many are lost at 80 % of it. NEARCAST_BENCH_DNS=1 runs it
// (make bench-dns); it asserts nothing. Servers run on CPU 0, dnsperf on CPU 1.
func TestBeside(t *testing.T) {
	switch os.Getenv("NEARCAST_BENCH_DNS") {
	case "ours":
		benchOurs(t)
		return
	case "stock":
		benchStock(t)
		return
	case "1":
	default:
		t.Skip("NEARCAST_BENCH_DNS is not 1")
	}
	for _, tool := range []string{"dnsperf", "gdnsd", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	_, database := scattered(10_000)
	path := filepath.Join(t.TempDir(), "city.mmdb")
	writeFile(t, path, string(database))
	ours, theirs := child(t, "ours", path), gdnsdChild(t, path)
	stock := child(t, "stock", path)
	const ecs = "8:000118001503e8" // 21.3.232.0/24
	type row struct {
		load, server string
		at           served
		args         []string
		name         string
	}
	geoName, plain := "geo.nearcast.internal A\n", "www.example.com A\n"
	rows := []row{}
	servers := []struct {
		name string
		served
	}{{"nearcast", ours}, {"gdnsd", theirs}, {"stock miekg/dns", stock}}
	for _, s := range servers {
		rows = append(rows, row{"UDP geo + ECS, 80,000/s offered", s.name, s.served, []string{"-e", "-E", ecs, "-Q", "80000"}, geoName},
			row{closedLoop, s.name, s.served, []string{"-e", "-E", ecs}, geoName},
			row{"TCP, 20 connections, closed loop", s.name, s.served, []string{"-e", "-E", ecs, "-m", "tcp", "-c", "20"}, geoName})
	}
	rows = append(rows, row{"UDP static, 60,000/s offered", "nearcast", ours, []string{"-e", "-Q", "60000"}, plain},
		row{"UDP static signed, 60,000/s offered", "nearcast", ours, []string{"-e", "-D", "-Q", "60000"}, plain})
	fmt.Printf("%-36s %-16s %9s %9s %9s %11s %8s\n", "load", "server", "q/s", "lost", "latency", "CPU/query", "q/s/core")
	peak := map[string]float64{} // of the closed loop over UDP, by server
	for _, r := range rows {
		before := cpuTime(t, r.at.pid)
		said := dnsperf(t, r.at, r.name, append([]string{"-q", "200", "-t", "2"}, r.args...)...)
		perQuery := (cpuTime(t, r.at.pid) - before).Seconds() * 1e6 / said.number(t, "Queries completed")
		rate := said.number(t, "Queries per second")
		if r.load == closedLoop {
			peak[r.server] = rate
		}
		fmt.Printf("%-36s %-16s %9.0f %9.0f %7.2fms %9.2fus %8.0fk\n", r.load, r.server, rate,
			said.number(t, "Queries lost"), said.number(t, `Average Latency \(s\)`)*1000, perQuery, 1000/perQuery)
	}
	fmt.Printf("\n%-36s %-16s %9s %9s %9s %9s %9s\n", "load", "server", "offered", "answered", "lost", "p50", "p99")
	for _, share := range []float64{0.5, 0.8} {
		for _, s := range servers {
			atShare(t, s.name, s.served, share, peak[s.name], geoName, "-e", "-E", ecs)
		}
	}
}

const closedLoop = "UDP geo + ECS, closed loop"

// atShare offers a server a share of what it got done in a closed loop, whatever it answers, and prints how many
// answers never came, and how long answers took to a second, slow asker meanwhile: one that prints each is too slow
// itself for the whole load. That asker shares its CPU with the loader, which is in its times.
func atShare(t *testing.T, name string, at served, share, peak float64, names string, args ...string) {
	t.Helper()
	offered := share * peak
	load := startPerf(t, at, names, append([]string{"-q", "500", "-t", "1", "-Q", itoa(int(offered))}, args...)...)
	asker := startPerf(t, at, names, append([]string{"-v", "-t", "1", "-Q", "500"}, args...)...)
	said, took := load(), asker().latencies()
	if len(took) == 0 {
		t.Fatal("dnsperf printed no query")
	}
	slices.Sort(took)
	at99 := took[len(took)*99/100]
	fmt.Printf("%-36s %-16s %9.0f %9.0f %9.0f %7.2fms %7.2fms\n", fmt.Sprintf("UDP geo + ECS, %.0f %% of its peak", share*100),
		name, offered, said.number(t, "Queries per second"), said.number(t, "Queries lost"),
		took[len(took)/2]*1000, at99*1000)
}

// perfOutput is what dnsperf printed.
type perfOutput []byte

// dnsperf runs for benchSeconds on CPU 1.
func dnsperf(t *testing.T, at served, names string, args ...string) perfOutput {
	t.Helper()
	return startPerf(t, at, names, args...)()
}

// startPerf is dnsperf whose end is waited for by what it returns. Its output goes by a file: a pipe's reader would
// need the server's CPU.
func startPerf(t *testing.T, at served, names string, args ...string) (wait func() perfOutput) {
	t.Helper()
	queries, output := filepath.Join(t.TempDir(), "names"), filepath.Join(t.TempDir(), "output")
	writeFile(t, queries, names)
	f, err := os.Create(output)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "taskset", append([]string{"-c", "1", "dnsperf", "-s", at.addr.Addr().String(),
		"-p", itoa(int(at.addr.Port())), "-d", queries, "-l", benchSeconds}, args...)...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() perfOutput {
		t.Helper()
		defer f.Close()
		err := cmd.Wait()
		text, readErr := os.ReadFile(output)
		if err != nil || readErr != nil {
			t.Fatalf("dnsperf: %v, %v\n%s", err, readErr, text[max(0, len(text)-2000):])
		}
		return text
	}
}

// number is one of the statistics at the end.
func (o perfOutput) number(t *testing.T, label string) float64 {
	t.Helper()
	m := regexp.MustCompile(label + `:\s+([0-9.]+)`).FindSubmatch(o[max(0, len(o)-4000):])
	if m == nil {
		t.Fatalf("dnsperf says no %s:\n%s", label, o[max(0, len(o)-2000):])
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// latencies are those of all answers, in seconds: lines like "> NOERROR name A 0.000123".
func (o perfOutput) latencies() (all []float64) {
	for line := range strings.Lines(string(o)) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != ">" || words[1] != "NOERROR" {
			continue
		}
		if v, err := strconv.ParseFloat(words[len(words)-1], 64); err == nil {
			all = append(all, v)
		}
	}
	return all
}

const benchSeconds = "3"

// served is a server in another process.
type served struct {
	pid  int
	addr netip.AddrPort
}

// child runs this test binary as a server, on CPU 0.
func child(t *testing.T, kind, database string) served {
	t.Helper()
	cmd := exec.Command("taskset", "-c", "0", os.Args[0], "-test.run", "TestBeside$", "-test.timeout", "10m")
	cmd.Env = append(os.Environ(), "NEARCAST_BENCH_DNS="+kind, "NEARCAST_BENCH_DB="+database, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // it ends with its stdin
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	addr, err := netip.ParseAddrPort(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return served{cmd.Process.Pid, addr}
}

func gdnsdChild(t *testing.T, database string) served {
	at := gdnsd(t, database)
	out, err := exec.Command("sh", "-c", "ss -Hlunp sport = :"+itoa(int(at.Port()))).Output()
	m := regexp.MustCompile(`pid=(\d+)`).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("gdnsd's process: %v %s", err, out)
	}
	pid, _ := strconv.Atoi(string(m[1]))
	if out, err := exec.Command("taskset", "-a", "-p", "-c", "0", string(m[1])).CombinedOutput(); err != nil {
		t.Fatalf("taskset: %v %s", err, out)
	}
	return served{pid, at}
}

// cpuTime is what a process has used, by /proc (ticks of 10 ms).
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	user, _ := strconv.Atoi(fields[12])
	system, _ := strconv.Atoi(fields[13])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// benchOurs serves until stdin ends: the database's name, and a signed zone.
func benchOurs(t *testing.T) {
	z := fleet(t, model.ECDSAP256SHA256).Zones[0]
	z.Aliases = nil
	s := proximity(t, os.Getenv("NEARCAST_BENCH_DB"), z)
	if path := os.Getenv("NEARCAST_BENCH_PROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			t.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Println(s.Addrs()[0])
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// benchStock serves the same by the DNS library's own server, as its documentation shows it.
func benchStock(t *testing.T) {
	raw, err := os.ReadFile(os.Getenv("NEARCAST_BENCH_DB"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := maxminddb.OpenBytes(raw)
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Authoritative = true
		client := w.RemoteAddr().String()
		host, _, _ := net.SplitHostPort(client)
		addr, _ := netip.ParseAddr(host)
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(1232, false)
			for _, e := range o.Option {
				if s, ok := e.(*dns.EDNS0_SUBNET); ok {
					addr, _ = netip.AddrFromSlice(s.Address)
					addr = addr.Unmap()
					s.SourceScope = 20
					m.IsEdns0().Option = append(m.IsEdns0().Option, s)
				}
			}
		}
		var rec struct {
			Location struct {
				Latitude  float64 `maxminddb:"latitude"`
				Longitude float64 `maxminddb:"longitude"`
			} `maxminddb:"location"`
		}
		_ = db.Lookup(addr).Decode(&rec)
		best, least := 0, 1e18
		for i, s := range differentialSites {
			d := (s.Latitude-rec.Location.Latitude)*(s.Latitude-rec.Location.Latitude) +
				(s.Longitude-rec.Location.Longitude)*(s.Longitude-rec.Location.Longitude)
			if d < least {
				best, least = i, d
			}
		}
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30},
			A: siteAddress(best).AsSlice()}}
		_ = w.WriteMsg(m)
	})
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, s := range []*dns.Server{{PacketConn: udp, UDPSize: 4096}, {Listener: tcp, MaxTCPQueries: -1}} {
		s.Handler = handler
		go func() { _ = s.ActivateAndServe() }()
		defer func() { _ = s.ShutdownContext(ctx) }()
	}
	fmt.Println(udp.LocalAddr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// BenchmarkKinds is the work of one answer alone, without sockets, for clients all over a database.
func BenchmarkKinds(b *testing.B) {
	networks, database := scattered(10_000)
	path := filepath.Join(b.TempDir(), "city.mmdb")
	writeFile(b, path, string(database))
	s := proximity(b, path)
	signed := &Server{cfg: Config{Loops: 1, Rate: -1}}
	signed.Set(state(b, fleet(b, model.ECDSAP256SHA256)))
	rng := rand.New(rand.NewPCG(1, 2))
	var geoQueries [][]byte
	for range 1024 {
		m := new(dns.Msg)
		m.SetQuestion("geo.nearcast.internal.", dns.TypeA)
		l := networks[rng.IntN(len(networks))]
		subnet(netip.PrefixFrom(l.net.Addr(), l.net.Bits()+4).String())(m)
		raw, err := m.Pack()
		if err != nil {
			b.Fatal(err)
		}
		geoQueries = append(geoQueries, raw)
	}
	static := func(do bool) [][]byte {
		m := new(dns.Msg)
		m.SetQuestion("www.example.com.", dns.TypeA)
		m.SetEdns0(1232, do)
		raw, _ := m.Pack()
		return [][]byte{raw}
	}
	for _, c := range []struct {
		name    string
		server  *Server
		queries [][]byte
	}{{"geo", s, geoQueries}, {"static", signed, static(false)}, {"signed", signed, static(true)}} {
		b.Run(c.name, func(b *testing.B) {
			a := c.server.newAnswerer(new(counters))
			now := time.Now()
			a.now = func() time.Time { return now }
			from, out := netip.MustParseAddr("192.0.2.1"), []byte(nil)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				out = a.answer(out[:0], c.queries[i%len(c.queries)], from, overUDP)
			}
		})
	}
}
