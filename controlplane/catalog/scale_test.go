package catalog

import (
	"fmt"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// BenchmarkAt1000 measures a change and a State among 1,000 accelerators with a listener and two groups
// each.
func BenchmarkAt1000(b *testing.B) {
	ctx := b.Context()
	c := newCatalog(b, newStore(b))
	ok(b)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error { s.AcceleratorsMax = 2000; return nil }))
	ok(b)(c.CreatePool(ctx, anycast("a", "a", "198.18.0.0/16"), Options{}))
	ok(b)(c.CreatePool(ctx, anycast("b", "b", "198.19.0.0/16"), Options{}))
	var g model.EndpointGroup
	for i := range 1000 {
		a := must[model.Accelerator](b)(c.CreateAccelerator(ctx, accelerator(fmt.Sprint("n", i)), Options{}))
		l := must[model.Listener](b)(c.CreateListener(ctx, listener(a.ID, model.TCP, 443, 443), Options{}))
		ok(b)(c.CreateGroup(ctx, group(l.ID, "us", "10.0.0.1", "10.0.0.2"), Options{}))
		g = must[model.EndpointGroup](b)(c.CreateGroup(ctx, group(l.ID, "eu", "10.0.1.1", "10.0.1.2"), Options{}))
	}
	b.Run("change", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			ok(b)(c.UpdateGroup(ctx, g.ID, Options{}, func(g *model.EndpointGroup) error {
				g.TrafficDial = float32(i % 100)
				return nil
			}))
		}
	})
	b.Run("state", func(b *testing.B) {
		for b.Loop() {
			c.mu.RLock()
			c.objects.state("test")
			c.mu.RUnlock()
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := c.ListAccelerators(ctx, PageOptions{Size: 100}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
