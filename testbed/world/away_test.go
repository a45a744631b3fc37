package world

import "testing"

func TestASPath(t *testing.T) {
	for text, want := range map[string]string{
		"BIRD 2.0.12 ready.\nTable master4:\n198.51.100.0/28 unicast [rt_sin 01:02:03.004] * (100) [AS64500i]\n" +
			"\tvia 172.31.5.1 on bgp5\n\tType: BGP univ\n\tBGP.origin: IGP\n\tBGP.as_path: 64603 64500\n": "64603 64500",
		"BIRD 2.0.12 ready.\nNetwork not found\n": "",
	} {
		if got := asPath(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestSumMetric(t *testing.T) {
	const text = "# HELP taken_total what was taken\ntaken_total{proto=\"tcp\"} 3\ntaken_total{proto=\"a b\"} 4e1\n" +
		"taken_total_more 100\ntaken 7\n"
	if got := sumMetric(text, "taken_total"); got != 43 {
		t.Errorf("with labels: %v", got)
	}
	if got := sumMetric(text, "taken"); got != 7 {
		t.Errorf("without: %v", got)
	}
}
