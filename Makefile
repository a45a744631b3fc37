# Nearcast. `make demo` shows it, `make test` proves it; the rest is for people who change it.
SHELL := /bin/bash
BIN   := bin
TOOLS := .cache/tools
BINARIES := nearcast nearcast-edge nearcast-controller nearcast-lab
VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
export GOTOOLCHAIN ?= local

BUF_VERSION := v1.75.0
PROTOC_GEN_GO_VERSION := v1.36.12
PROTOC_GEN_GO_GRPC_VERSION := v1.6.2
BPF2GO_VERSION := v0.22.0
# One compiler makes the committed kernel objects, so that the same source gives the same bytes.
export BPF2GO_CC ?= clang-14
export BPF2GO_CFLAGS := -O2 -g -Wall -Werror -I../include \
	-idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

.PHONY: all build demo demo-bgp test test-unit test-root bench bench-dispatch bench-dns bench-guard profile generate generate-bpf check-generated deps deps-demo deps-demo-bgp deps-bench clean help

all: build

help: ## say what the targets do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

build: ## build the four binaries into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION)' -o $(BIN)/ $(addprefix ./cmd/,$(BINARIES))

deps: ## install the Debian packages that test needs (root)
	@./testbed/deps.sh

deps-demo: ## ... those that demo needs (root)
	@./testbed/deps.sh demo

deps-demo-bgp: ## ... those that demo-bgp needs (root)
	@./testbed/deps.sh demo-bgp

deps-bench: ## ... and those of the peers that bench measures against (root)
	@./testbed/deps.sh bench

demo: deps-demo build ## show real connections getting faster, in a world of network namespaces (root)
	@$(BIN)/nearcast-lab demo

demo-bgp: deps-demo-bgp build ## ... with real routers (BIRD) that bring clients to the nearest site, one of which goes (root)
	@$(BIN)/nearcast-lab demo --bgp

test: deps build test-unit test-root ## everything: unit, fuzz seeds, race, netns worlds (root)

test-unit: ## what needs no root
	go vet ./...
	go test -race -timeout 20m $$(go list ./... | grep -v -e /testbed/scenario)
	go test -run 'Speaker|Announcer|IdleFlowsAreSmall' ./edge/announce ./edge/relay # what the race detector disturbs

test-root: build ## the worlds: scenario tests that start the built binaries (root)
	NEARCAST_REQUIRE_ROOT=1 NEARCAST_BIN=$(CURDIR)/$(BIN) go test -v -count=1 -timeout 60m ./testbed/scenario/...

bench: deps-bench build ## measure beside the peers; results as JSON in bench-results/ (root)
	@$(BIN)/nearcast-lab bench

bench-dispatch: deps-bench build ## the kernel's dispatcher beside plain sockets and the packet filter, in one run (root)
	@$(BIN)/nearcast-lab bench dispatch

bench-dns: deps-bench ## DNS beside gdnsd and a stock server of the DNS library, in one run (two CPUs)
	NEARCAST_BENCH_DNS=1 go test -v -count=1 -run 'TestBeside$$' ./edge/dns

bench-guard: deps-bench build ## guard beside nftables, and clients in a flood of SYNs, in one run (root, two CPUs)
	@$(BIN)/nearcast-lab bench guard

profile: deps-bench build ## the raw benchmark with CPU and allocation profiles, in bench-results/ (root); ONLY=UDP: one kind
	@$(BIN)/nearcast-lab bench raw --profile --only '$(ONLY)'

$(TOOLS)/buf:
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
$(TOOLS)/protoc-gen-go:
	GOBIN=$(CURDIR)/$(TOOLS) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
$(TOOLS)/protoc-gen-go-grpc:
	GOBIN=$(CURDIR)/$(TOOLS) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GO_GRPC_VERSION)
$(TOOLS)/bpf2go:
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/cilium/ebpf/cmd/bpf2go@$(BPF2GO_VERSION)

generate-bpf: $(TOOLS)/bpf2go ## remake the committed kernel objects (needs clang-14, llvm-14, libbpf-dev)
	PATH="$(CURDIR)/$(TOOLS):$$PATH" go generate ./bpf/... ./testbed/blast

generate: generate-bpf $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## remake the committed generated files
	cd proto && PATH="$(CURDIR)/$(TOOLS):$$PATH" buf lint && PATH="$(CURDIR)/$(TOOLS):$$PATH" buf generate

check-generated: generate ## fail if generated files are stale
	git diff --exit-code -- '*.pb.go' '*_bpfel.go' '*_bpfel.o'

clean: ## remove what was built
	rm -rf $(BIN) .cache bench-results
