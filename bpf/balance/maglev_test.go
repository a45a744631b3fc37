package balance

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func shares(n int) []Share {
	all := make([]Share, n)
	for i := range all {
		all[i] = Share{Name: fmt.Sprintf("node-%d", i), Weight: 100}
	}
	return all
}

// slowTable is Maglev as the paper writes it: permutations written out, preference lists walked by index.
func slowTable(shares []Share) []string {
	sorted := slices.Clone(shares)
	slices.SortFunc(sorted, func(a, b Share) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	permutations := make([][]int, len(sorted))
	greatest := 0
	for i, s := range sorted {
		offset, skip := nameHash(s.Name)
		for j := range uint64(Rows) {
			permutations[i] = append(permutations[i], int((offset%Rows+j*(skip%(Rows-1)+1))%Rows))
		}
		greatest = max(greatest, s.Weight)
	}
	entry := make([]string, Rows)
	next, credit := make([]int, len(sorted)), make([]int, len(sorted))
	for n := 0; n < Rows; {
		for i, s := range sorted {
			credit[i] += s.Weight
			if credit[i] < greatest || n == Rows {
				continue
			}
			credit[i] -= greatest
			for entry[permutations[i][next[i]]] != "" {
				next[i]++
			}
			entry[permutations[i][next[i]]] = s.Name
			n++
		}
	}
	return entry
}

func names(table []uint8, shares []Share) []string {
	all := make([]string, len(table))
	for row, i := range table {
		all[row] = shares[i].Name
	}
	return all
}

// The table is the paper's, whatever the order of its members.
func TestTableIsThePapers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 5, 8, 31} {
		all := shares(n)
		for i := range all {
			if n > 3 {
				all[i].Weight = 1 + rnd.IntN(200)
			}
		}
		want := slowTable(all)
		for range 3 {
			rnd.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
			if !slices.Equal(names(Table(all), all), want) {
				t.Fatalf("%d members, shuffled: another table", n)
			}
		}
	}
	if Table(nil) != nil {
		t.Error("a table of nobody")
	}
}

// Everybody has rows in proportion to the weight, to within one per cent of its share.
func TestEven(t *testing.T) {
	for n := 1; n <= 31; n++ {
		all := shares(n)
		sum := 0
		for i := range all {
			all[i].Weight = []int{100, 50, 200}[i%3]
			sum += all[i].Weight
		}
		rows := make([]int, n)
		for _, i := range Table(all) {
			rows[i]++
		}
		for i, got := range rows {
			want := float64(Rows) * float64(all[i].Weight) / float64(sum)
			if math.Abs(float64(got)-want) > want/100+1 {
				t.Errorf("%d members: %s of weight %d has %d rows, want %.0f", n, all[i].Name, all[i].Weight, got, want)
			}
		}
	}
}

// When one of N goes, at most 1/N + 1 % of the rows move; the same when one comes.
func TestDisruption(t *testing.T) {
	worst := 0.0
	for _, n := range []int{2, 3, 4, 5, 8, 16} {
		all := shares(n)
		before := names(Table(all), all)
		for gone := range n {
			left := slices.Delete(slices.Clone(all), gone, gone+1)
			moved := 0
			for row, name := range names(Table(left), left) {
				if name != before[row] {
					moved++
				}
			}
			extra := float64(moved)/Rows - 1/float64(n)
			worst = max(worst, extra)
			if extra > 0.01 {
				t.Errorf("%d members, %s goes: %.2f %% of the rows move, %.2f %% more than its own", n, all[gone].Name,
					100*float64(moved)/Rows, 100*extra)
			}
		}
	}
	t.Logf("at most %.2f %% more than the share of the member that goes", 100*worst)
}

// In a site of different weights hardly more moves than the share of the one that goes: what moves besides is rows of
// those that stay, between one another.
func TestWeightedDisruption(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	worst := 0.0
	for range 8 {
		all := shares(2 + rnd.IntN(12))
		sum := 0
		for i := range all {
			all[i].Weight = 10 + rnd.IntN(191)
			sum += all[i].Weight
		}
		before := slowTable(all)
		gone := rnd.IntN(len(all))
		after := slowTable(slices.Delete(slices.Clone(all), gone, gone+1))
		if fast := slices.Delete(slices.Clone(all), gone, gone+1); !slices.Equal(names(Table(fast), fast), after) {
			t.Fatal("another table than the slow one")
		}
		moved, own := 0, 0
		for row := range before {
			switch {
			case before[row] == all[gone].Name:
				own++
			case before[row] != after[row]:
				moved++
			}
		}
		if share := float64(all[gone].Weight) / float64(sum); math.Abs(float64(own)/Rows-share) > share/100+0.001 {
			t.Errorf("%+v, %s goes: it has %.2f %% of the rows, want %.2f %%", all, all[gone].Name, 100*float64(own)/Rows, 100*share)
		}
		extra := float64(moved) / Rows
		worst = max(worst, extra)
		if extra > 0.01 {
			t.Errorf("%+v, %s goes: %.2f %% of the rows move between those that stay", all, all[gone].Name, 100*extra)
		}
	}
	t.Logf("at most %.2f %% of the rows move between those that stay", 100*worst)
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{3, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := shares(n)
			for b.Loop() {
				Table(all)
			}
		})
	}
}
