package handover

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// What the process before can say is read as it was meant, or refused.
func TestNames(t *testing.T) {
	many := make([]string, filesMax)
	for i := range many {
		many[i] = fmt.Sprintf("listen/tcp/[2001:db8::%x]:%d", i, i)
	}
	for _, names := range [][]string{nil, {}, {"lock"}, {"a b", "ü", `"`}, many} {
		line, err := json.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(bytes.NewReader(append(line, "\nready\n"...)))
		line, err = readLine(in, namesLine)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseNames(line); err != nil || !slices.Equal(got, names) {
			t.Errorf("%d names: %d, %v", len(names), len(got), err)
		}
		if word, err := readLine(in, wordLine); err != nil || string(word) != Ready {
			t.Errorf("the word after %d names: %q, %v", len(names), word, err)
		}
	}
	for line, want := range map[string]string{
		`["a","b","a"]`: "another one's", `["a",""]`: "empty", `{"a":1}`: "cannot unmarshal", `["a"`: "unexpected end",
		`["` + strings.Repeat("a", nameMax+1) + `"]`: "longer", `["a",1]`: "cannot unmarshal",
		"[" + strings.Repeat(`"a",`, filesMax) + `"a"]`: "more than",
	} {
		if names, err := parseNames([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %d names, %v", line, len(names), err)
		}
	}
	long := bufio.NewReader(strings.NewReader(strings.Repeat("x", 1<<20)))
	if _, err := readLine(long, wordLine); err == nil || !strings.Contains(err.Error(), "more than 100 bytes") {
		t.Errorf("a word of a megabyte: %v", err)
	}
}

// FuzzConversation reads what another process says: the line with names, then words.
func FuzzConversation(f *testing.F) {
	f.Add([]byte("[\"lock\",\"listen/tcp/192.0.2.1:443\"]\nready\nserving\n"))
	f.Add([]byte("null\ngo"))
	f.Add([]byte("[\"\\ud800\"]\n\n\n"))
	f.Add(append(bytes.Repeat([]byte{'a'}, 9000), '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(b), 16)
		line, err := readLine(in, 8000)
		if err != nil {
			return
		}
		want, rest, _ := bytes.Cut(b, []byte{'\n'})
		if !bytes.Equal(line, want) || len(line) > 8000 {
			t.Fatalf("the line of %d bytes is read as %d bytes", len(want), len(line))
		}
		if names, err := parseNames(line); err == nil {
			again, err := json.Marshal(names)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := parseNames(again); err != nil || !slices.Equal(back, names) {
				t.Errorf("%q is read as %q: %v", again, back, err)
			}
			if len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) || slices.Contains(names, "") {
				t.Errorf("names %q", names)
			}
		}
		for {
			word, err := readLine(in, wordLine)
			if err != nil {
				return
			}
			want, more, ok := bytes.Cut(rest, []byte{'\n'})
			if !ok || !bytes.Equal(word, want) {
				t.Fatalf("the word %q is read as %q", want, word)
			}
			rest = more
		}
	})
}
