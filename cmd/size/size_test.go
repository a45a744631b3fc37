package size

import "testing"

func TestParse(t *testing.T) {
	for in, want := range map[string]int64{
		"": 0, "1000": 1000, "512MB": 512e6, "512MiB": 512 << 20, "1.5G": 15e8, "4 GiB": 4 << 30, "2k": 2000,
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"x", "-1", "1XB", "1e30", "9999999T", "MB"} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}
