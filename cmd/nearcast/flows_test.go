package main

import (
	"strings"
	"testing"
)

func TestTailedText(t *testing.T) {
	r := tailed{Client: "192.0.2.1:5", Accelerated: "198.51.100.1:443", Endpoint: "10.0.0.1:8443", Protocol: "TCP",
		Packets: 3, Bytes: 180, Action: "ACCEPT", Direction: "INGRESS"}
	if got, want := r.text(), "192.0.2.1:5 → 198.51.100.1:443 → 10.0.0.1:8443  3 packets  180 bytes"; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q in it", got, want)
	}
	r = tailed{Missed: 7}
	if !strings.Contains(r.text(), "7 batches missed") {
		t.Error(r.text())
	}
}
