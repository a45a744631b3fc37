package world

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestShippedWorldsAreValid(t *testing.T) {
	names := Shipped()
	if len(names) == 0 {
		t.Fatal("no shipped worlds")
	}
	for _, name := range names {
		spec, err := Load(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		seen := map[netip.Addr]string{}
		for _, h := range spec.plan() {
			for _, a := range []netip.Addr{h.V4, h.V6} {
				if other := seen[a]; other != "" {
					t.Errorf("%s: %s and %s are both %v", name, h.Name, other, a)
				}
				seen[a] = h.Name
			}
		}
	}
}

func TestSpecErrorsNameWhatIsWrong(t *testing.T) {
	cases := map[string]string{
		"name: x\nsights: []": "world file: error unmarshaling JSON: while decoding JSON: json: unknown field \"sights\"",
		"name: much-too-long\ncontrollers: {at: a, count: 1}":                     "name: 1–8 characters, as it begins the namespaces' names\ncontrollers.at: no place \"a\"",
		"name: x\ncities: [{name: a, access: {rate: fast}}]":                      "world file: error unmarshaling JSON: while decoding JSON: rate \"fast\": write it like 100mbit",
		"name: x\ncities: [{name: a}, {name: b}]\ncontrollers: {at: a, count: 0}": "rtt: none between a and b\ncities.a.site: no site \"\"\ncities.b.site: no site \"\"\ncontrollers.count: at least 1",
	}
	for text, want := range cases {
		if _, err := Parse([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}

// TestBareWorld raises only the network and the endpoints and looks whether distance and bytes are
// as the file says.
func TestBareWorld(t *testing.T) {
	netns.RequireRoot(t, "network namespaces")
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "../../cmd/nearcast-lab")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	spec, err := Load("demo")
	if err != nil {
		t.Fatal(err)
	}
	spec.Name = fmt.Sprintf("b%d", os.Getpid()) // its own, also beside another run on this machine
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	w, err := Raise(ctx, spec, Options{Bin: bin, Dir: t.TempDir(), Say: t.Logf, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range spec.Cities {
		rtt, _ := spec.rtt(c.Name, "fra")
		at := netip.AddrPortFrom(w.EndpointAddr("eu-fra-1", 1), load.PortHTTP)
		got, err := load.Fetch(ctx, w.Dial(c.Name), at, 10_000)
		if err != nil || got.Server != "eu-fra-1-app-2" {
			t.Errorf("%s: %+v, %v", c.Name, got, err)
		}
		t.Logf("%s: round trip %v, connected after %v, first byte after %v", c.Name, rtt, got.Connect, got.FirstByte)
		if got.Connect < rtt-time.Millisecond || got.FirstByte < 2*rtt-2*time.Millisecond {
			t.Errorf("%s: faster than the distance allows", c.Name)
		}
	}
}
