package world

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func (w *World) startBIRD(r *router) error {
	bird, err := exec.LookPath("bird")
	if err != nil {
		bird = birdPath
	}
	conf := filepath.Join(r.dir, "bird.conf")
	if err := os.WriteFile(conf, []byte(w.birdConf(r)), 0o644); err != nil {
		return err
	}
	return w.daemon(r, "bird", bird, "-f", "-c", conf, "-s", filepath.Join(r.dir, "ctl"),
		"-P", filepath.Join(r.dir, "pid"))
}

func (w *World) birdConf(r *router) string {
	var c strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&c, format+"\n", args...) }
	b := w.Spec.BGP
	p("router id %v;\nlog \"%s/routes.log\" all;\nprotocol device { scan time 1; }", r.id, r.dir)
	merge := ""
	if b.ECMP {
		merge = "merge paths on; scan time 2; " // what the kernel lost of a change is put back soon
	}
	for _, family := range w.families() {
		prefsrc := ""
		if r.source.v4.IsValid() {
			prefsrc = fmt.Sprintf("krt_prefsrc = %v; ", family.of(r.source))
		}
		p("protocol kernel { %s%s { import none; export filter { %saccept; }; }; }", merge, family.name, prefsrc)
	}
	if !b.NoBFD {
		p("protocol bfd { interface \"bgp*\" { interval %d ms; multiplier 3; }; }", bfdMillis)
	}
	p("filter take {")
	for _, prefix := range r.reject {
		p("  if net = %v then reject;", prefix)
	}
	p("  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;\n  accept;\n}") // RFC 8326 4.1
	for _, n := range r.neighbors {
		for _, family := range w.families() {
			p("protocol bgp %s%s {", strings.ReplaceAll(n.name, "-", "_"), family.suffix)
			p("  local %v as %d; neighbor %v as %d;", family.of(n.local), r.ASN, family.of(n.addr), n.asn)
			p("  hold time %d; connect delay time 1; connect retry time 2; error wait time 1, 2;", b.hold())
			p("  graceful restart on; direct;")
			if n.node {
				p("  password \"%s\"; ttl security on; passive;", bgpMD5)
			}
			if !b.NoBFD && w.speaksBFD(n) {
				p("  bfd on;")
			}
			p("  %s { import filter take; export all; next hop self; };\n}", family.name)
		}
	}
	return c.String()
}

// ipFamily is an IP version of routes; a session carries that of its addresses.
type ipFamily struct {
	name   string // BIRD's
	suffix string // of protocols' names
	of     func(cableEnd) netip.Addr
}

// families are those that the world's pools have.
func (w *World) families() []ipFamily {
	all := []ipFamily{{"ipv4", "", func(e cableEnd) netip.Addr { return e.v4 }}}
	if w.Spec.dual() {
		all = append(all, ipFamily{"ipv6", "_6", func(e cableEnd) netip.Addr { return e.v6 }})
	}
	return all
}

// speaksBFD leaves out neighbours that are FRR: its BFD daemon is one more that would have to be run.
func (w *World) speaksBFD(n neighbor) bool {
	other := w.routers[n.name]
	return other == nil || !other.FRR
}
