package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/cmd/nearcast/gainreport"
	"github.com/nearcast/nearcast/cmd/nearcast/measure"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) probeCommand() *cobra.Command {
	var (
		m               = measure.Config{Dial: c.dial}
		region, network string
		report          bool
	)
	cmd := &cobra.Command{
		Use: "probe ADDR", Short: "Measure what acceleration gives at this place: first byte and throughput both ways",
		Long: `Measure, from this machine, an application at its accelerated address ADDR (host:port, or a URL) and at
its own address (--direct): the TCP handshake, the first byte of an HTTP answer, and throughput. Every round
makes new connections both ways, in turns; the table shows medians. It needs no context unless it reports.

With --report the controllers keep what was measured directly, for "nearcast gains": how far the region is
for clients of this network without acceleration. That cannot be seen from accelerated traffic.`,
		Example: "  nearcast probe 203.0.113.10:80 --direct 198.51.100.20:80\n" +
			"  nearcast probe https://app.example.com/files/10mb --direct 198.51.100.20:443 --rounds 15 -o json\n" +
			"  nearcast probe 203.0.113.10:80 --direct 198.51.100.20:80 --report --region eu-fra-1",
		Args: exactly("ADDR"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if m.URL, err = probeURL(args[0]); err != nil {
				return err
			}
			if m.Direct, err = c.probeDirect(m.URL, m.Direct); err != nil {
				return err
			}
			switch {
			case m.Rounds < 1 || m.Rounds > 1000:
				return usagef("--rounds is %d; use 1 to 1000", m.Rounds)
			case m.Bytes < 1 || m.Upload < 0:
				return usagef("--bytes must be at least 1, and --upload not negative")
			case report && region == "":
				return usagef("--report needs --region: to which region the direct address belongs")
			}
			m.Timeout = c.flags.timeout
			r, err := measure.Run(cmd.Context(), m)
			if err != nil {
				return err
			}
			if err := c.showProbe(r); err != nil || !report {
				return err
			}
			return c.reportProbe(cmd.Context(), r, region, network)
		},
	}
	f := cmd.Flags()
	f.StringVar(&m.Direct, "direct", "", "`host:port` of the same application without acceleration")
	f.StringVar(&m.Host, "host", "", "`name` for the Host header and TLS (default that of ADDR)")
	f.IntVar(&m.Rounds, "rounds", 7, "measurements of each way")
	f.Int64Var(&m.Bytes, "bytes", 16<<20, "most `bytes` read of an answer")
	f.Int64Var(&m.Upload, "upload", 0, "`bytes` that each round also posts, to measure the way up")
	f.BoolVar(&report, "report", false, "have the controllers keep the direct figures")
	f.StringVar(&region, "region", "", "`region` that the direct address belongs to, for --report")
	f.StringVar(&network, "network", "", "client `network` that this machine stands for (default its own /24 or /48)")
	mustComplete(cmd, "region", c.completeRegions())
	return need(cmd, "direct")
}

// probeURL reads ADDR.
func probeURL(addr string) (*url.URL, error) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usagef("ADDR is host:port, or a URL of http or https, not %q", addr)
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u, nil
}

// probeDirect checks the direct address, and gives it the port of ADDR if it has none.
func (c *cli) probeDirect(u *url.URL, direct string) (string, error) {
	if _, _, err := net.SplitHostPort(direct); err == nil {
		return direct, nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	host := strings.Trim(direct, "[]")
	if host == "" || strings.ContainsAny(host, "/ ") {
		return "", usagef("--direct is host:port, not %q", direct)
	}
	return net.JoinHostPort(host, port), nil
}

func (c *cli) showProbe(r measure.Result) error {
	if c.flags.output != "table" {
		return c.data(r)
	}
	type row struct {
		name string
		way  *measure.Way
	}
	type col = column[row]
	rows := []row{{"direct", &r.Direct}, {"accelerated", &r.Accelerated}}
	err := showRecords(c, "ways", rows, col{"WAY", func(r row) string { return r.name }},
		col{"ADDRESS", func(r row) string { return r.way.Address }},
		col{"ROUNDS", func(r row) string { return fmt.Sprintf("%d", r.way.Rounds) }},
		col{"CONNECT", func(r row) string { return gainreport.Milliseconds(r.way.Connect) }},
		col{"FIRST BYTE", func(r row) string { return gainreport.Milliseconds(r.way.FirstByte) }},
		col{"TOTAL", func(r row) string { return gainreport.Milliseconds(r.way.Total) }},
		col{"DOWN", func(r row) string { return gainreport.Throughput(r.way.Down) }},
		col{"UP", func(r row) string { return gainreport.Throughput(r.way.Up) }})
	if err != nil {
		return err
	}
	for _, w := range rows {
		if w.way.Failed > 0 {
			c.note("%s: %d of %d rounds failed: %s", w.name, w.way.Failed, w.way.Failed+w.way.Rounds, w.way.Error)
		}
	}
	_, err = fmt.Fprintln(c.stdout, "\n"+r.Verdict)
	return err
}

func (c *cli) reportProbe(ctx context.Context, r measure.Result, region, network string) error {
	if r.Direct.Rounds == 0 {
		return fmt.Errorf("nothing is reported: the direct way does not answer: %s", r.Direct.Error)
	}
	if network == "" {
		local, err := netip.ParseAddrPort(r.Direct.Local)
		if err != nil || local.Addr().IsPrivate() || local.Addr().IsLoopback() || local.Addr().IsLinkLocalUnicast() {
			return usagef("this machine's address %s is not the one that edges see; give --network", r.Direct.Local)
		}
		network = model.ClientNetworkOf(local.Addr()).String()
	}
	s, err := c.admin()
	if err != nil {
		return err
	}
	d := r.Direct
	_, err = s.SetDirectPath(ctx, &pb.SetDirectPathRequest{Path: &pb.DirectPath{
		Network: network, Region: region, Rtt: durationpb.New(d.Connect), FirstByte: durationpb.New(d.FirstByte),
		Down: uint64(d.Down), Up: uint64(d.Up), Source: pb.DirectSource_DIRECT_SOURCE_PROBE,
	}})
	if err == nil {
		c.note("reported: %s is %s from %s without acceleration", region, gainreport.Milliseconds(d.Connect), network)
	}
	return err
}
