package tidy

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rooms is the statement of policy. Each line reads "package: the local packages it may import".
// An entry in a lower line may only name entries in higher lines, so the graph cannot grow a cycle.
// Do not change this table to fix a build; change the code, or argue for the new arrow in the commit.
const rooms = `
proto/nearcast/v1:
proto/wire:
proto/identity:
proto/model:             proto/nearcast/v1
proto/zonefile:          proto/model

bpf/ports:
bpf/dispatch:            bpf/ports
bpf/tune:
bpf/xdp:
bpf/guard:               bpf/ports bpf/xdp
bpf/balance:             bpf/ports bpf/xdp

edge/flow:
edge/handover:
edge/pace:
edge/udpio:              edge/pace
edge/datagram:           proto/wire edge/udpio
edge/steer:              proto/model edge/flow
edge/meter:              proto/model edge/steer
edge/clients:            proto/model
edge/listen:             proto/model edge/flow edge/udpio bpf/dispatch
edge/kernel:             proto/model bpf/dispatch bpf/tune bpf/xdp bpf/guard bpf/balance
edge/site:               proto/model bpf/balance
edge/flowlog:            proto/model edge/meter
edge/backbone:           proto/model proto/wire proto/identity edge/datagram
edge/proxyproto:
edge/pump:               proto/wire edge/backbone
edge/overload:
edge/gateway:            proto/model proto/wire edge/flow edge/udpio edge/steer edge/backbone edge/proxyproto edge/overload edge/pump
edge/relay:              proto/model proto/wire edge/flow edge/udpio edge/steer edge/listen edge/backbone edge/proxyproto edge/overload edge/pump edge/gateway edge/meter edge/clients
edge/probe:              proto/model
edge/mesh:               proto/model
edge/zone:               proto/model proto/zonefile
edge/geo:                proto/model
edge/dnssec:             proto/model proto/zonefile edge/zone
edge/dns:                edge/udpio edge/zone edge/geo edge/dnssec
edge/bfd:
edge/announce:           proto/model proto/nearcast/v1 edge/bfd
edge/agent:              proto/model proto/nearcast/v1 proto/identity
edge:                    proto/* bpf/xdp edge/*

controlplane/store:
controlplane/byoip:
controlplane/catalog:    proto/model proto/zonefile proto/nearcast/v1 controlplane/store controlplane/byoip
controlplane/countries:  proto/model proto/nearcast/v1 controlplane/store controlplane/catalog
controlplane/health:     proto/model
controlplane/gains:      proto/model
controlplane/snapshot:   proto/model controlplane/catalog controlplane/health
controlplane/access:     proto/model proto/nearcast/v1 proto/identity controlplane/store controlplane/catalog
controlplane/enroll:     proto/model proto/nearcast/v1 proto/identity controlplane/store controlplane/catalog
controlplane/fleet:      proto/model proto/nearcast/v1 proto/identity controlplane/store controlplane/catalog controlplane/countries controlplane/health controlplane/gains controlplane/snapshot controlplane/access controlplane/enroll
controlplane/admin:      proto/model proto/zonefile proto/nearcast/v1 proto/identity controlplane/store controlplane/catalog controlplane/countries controlplane/byoip controlplane/health controlplane/gains controlplane/access controlplane/fleet controlplane/enroll
controlplane/series:     proto/model proto/nearcast/v1 controlplane/store
controlplane/awsapi:     proto/model proto/nearcast/v1 proto/identity controlplane/catalog controlplane/byoip controlplane/access controlplane/series
controlplane:            proto/* controlplane/*

cmd/size:
cmd/nearcast-edge:       cmd/size edge edge/kernel edge/handover proto/* edge/flowlog bpf/xdp
cmd/nearcast-controller: cmd/size controlplane proto/*
cmd/nearcast/manifest:   proto/model proto/nearcast/v1
cmd/nearcast/measure:
cmd/nearcast/plot:
cmd/nearcast/gainreport: proto/nearcast/v1 cmd/nearcast/manifest cmd/nearcast/plot
cmd/nearcast:            proto/* cmd/nearcast/manifest cmd/nearcast/measure cmd/nearcast/gainreport

testbed/netns:
testbed/leak:
testbed/wan:             testbed/netns
testbed/load:
testbed/blast:           testbed/netns
testbed/mmdb:
testbed/clock:
testbed/world:           proto/* testbed/clock testbed/netns testbed/wan testbed/load
testbed/bench:           proto/model bpf/dispatch bpf/guard edge/flow edge/udpio edge/listen testbed/netns testbed/wan testbed/load testbed/world testbed/blast
testbed/tidy:
testbed/scenario:
cmd/nearcast-lab:        testbed/*
`

func TestRooms(t *testing.T) {
	const module = "github.com/nearcast/nearcast/"
	allowed := map[string][]string{}
	for line := range strings.Lines(rooms) {
		room, imports, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		for _, im := range strings.Fields(imports) {
			if prefix, star := strings.CutSuffix(im, "/*"); star {
				for known := range allowed {
					if strings.HasPrefix(known, prefix+"/") {
						allowed[room] = append(allowed[room], known)
					}
				}
				continue
			}
			if _, known := allowed[im]; !known {
				t.Fatalf("%s names %s, which is not above it", room, im)
			}
			allowed[room] = append(allowed[room], im)
		}
		if allowed[room] == nil {
			allowed[room] = []string{}
		}
	}

	seen := 0
	for room, imports := range localImports(t, "../..", module) {
		may, known := allowed[room]
		if !known {
			t.Errorf("%s has no line in rooms: say what it may import", room)
			continue
		}
		seen++
		for _, im := range imports {
			if !slices.Contains(may, im) {
				t.Errorf("%s imports %s, which rooms does not allow", room, im)
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("rooms has %d lines and the tree %d of those packages", len(allowed), seen)
	}
}

// localImports maps each package under root to the local packages its non-test files import.
// It reads the files itself rather than asking "go list": the test cache notices a file that the
// test opened, and would serve a stale pass for one that only a child process read.
func localImports(t *testing.T, root, module string) map[string][]string {
	imports := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		room := filepath.ToSlash(rel)
		imports[room] = append(imports[room], []string{}...)
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			if local, ok := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module); ok {
				imports[room] = append(imports[room], local)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imports
}
