package world

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
)

// Row is one line of the demonstration's table: medians of what one city saw.
type Row struct {
	City, What          string
	Direct, Accelerated time.Duration
	// Floor is what physics leaves: r (client to edge) + R (client to endpoint) for the first byte of a
	// new connection, plus the bytes' own time on the access link.
	Floor time.Duration
}

// job is one kind of measurement.
type job struct {
	what        string
	direct, via netip.AddrPort
	measure     func(ctx context.Context, dial load.Dial, addr netip.AddrPort) (time.Duration, error)
	floor       func(r, R time.Duration, rate Rate) time.Duration
	ways        time.Duration // how many times the client's packets have to get to the edge before it is done
}

// attemptTimeout bounds one measurement; a loss of the first packet costs whole seconds.
const attemptTimeout = 30 * time.Second

func jobs(endpoint, accelerated netip.Addr) []job {
	fetch := func(size int64) func(context.Context, load.Dial, netip.AddrPort) (time.Duration, error) {
		return func(ctx context.Context, dial load.Dial, addr netip.AddrPort) (time.Duration, error) {
			t, err := load.Fetch(ctx, dial, addr, size)
			return t.Total, err
		}
	}
	transfer := func(size int64) func(r, R time.Duration, rate Rate) time.Duration {
		return func(r, R time.Duration, rate Rate) time.Duration {
			d := r + R
			if rate > 0 {
				d += time.Duration(float64(size*8) / float64(rate) * float64(time.Second))
			}
			return d
		}
	}
	at := netip.AddrPortFrom
	var all []job
	for _, d := range []struct {
		what string
		size int64
	}{{"HTTP, 1 KB", 1000}, {"HTTP, 100 KB", 100_000}, {"HTTP, 1 MB", 1_000_000}} {
		all = append(all, job{d.what, at(endpoint, load.PortHTTP), at(accelerated, ListenHTTP), fetch(d.size),
			transfer(d.size), 2})
	}
	return append(all,
		job{"TLS handshake", at(endpoint, load.PortTLS), at(accelerated, ListenTLS),
			func(ctx context.Context, dial load.Dial, addr netip.AddrPort) (time.Duration, error) {
				t, err := load.FetchTLS(ctx, dial, addr, 1)
				return t.Handshake, err
			},
			func(r, R time.Duration, _ Rate) time.Duration { return r + R }, 2},
		job{"UDP echo", at(endpoint, load.PortUDP), at(accelerated, load.PortUDP),
			func(ctx context.Context, dial load.Dial, addr netip.AddrPort) (time.Duration, error) {
				return load.EchoDatagram(ctx, dial, addr, []byte("how far is it?"), 2*time.Second)
			},
			func(_, R time.Duration, _ Rate) time.Duration { return R }, 1},
	)
}

// Compare measures everything from every city, directly and through the accelerator in turn, so that
// whatever else the machine does meets both alike.
func (w *World) Compare(ctx context.Context, app *App, rounds int, say func(string, ...any)) ([]Row, error) {
	var rows []Row
	for _, city := range w.Spec.Cities {
		r, _ := w.Spec.rtt(city.Name, city.Site)
		R, _ := w.Spec.rtt(city.Name, w.Spec.Regions[0].At)
		for _, j := range jobs(w.EndpointAddr(app.Home, 0), app.Address(city.Name)) {
			var direct, accelerated []time.Duration
			for range rounds {
				for _, side := range []struct {
					addr netip.AddrPort
					into *[]time.Duration
				}{{j.direct, &direct}, {j.via, &accelerated}} {
					one, cancel := context.WithTimeout(ctx, attemptTimeout)
					d, err := j.measure(one, w.Dial(city.Name), side.addr)
					cancel()
					if err != nil {
						return rows, fmt.Errorf("%s, %s, %v: %w", city.Name, j.what, side.addr, err)
					}
					*side.into = append(*side.into, d)
				}
			}
			row := Row{City: city.Name, What: j.what, Direct: load.Median(direct),
				Accelerated: load.Median(accelerated), Floor: j.floor(r, R, city.Access.Rate)}
			if w.Spec.BGP != nil { // the routers' cables to the edge have no delay
				row.Floor -= j.ways * r / 2
			}
			rows = append(rows, row)
			say("%-8s  %-14s %s direct, %s accelerated", row.City, row.What, millis(row.Direct), millis(row.Accelerated))
		}
	}
	return rows, nil
}

// WriteTable prints rows for a person.
func WriteTable(out io.Writer, rows []Row) {
	tw := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "city\twhat\tdirect\taccelerated\tfaster\tfloor\tabove floor\t")
	last := ""
	for _, r := range rows {
		if last != "" && last != r.City {
			fmt.Fprintln(tw, strings.Repeat("\t", 7))
		}
		last = r.City
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%.1f×\t%s\t%+.0f %%\t\n", r.City, r.What, millis(r.Direct), millis(r.Accelerated),
			float64(r.Direct)/float64(r.Accelerated), millis(r.Floor), 100*(float64(r.Accelerated)/float64(r.Floor)-1))
	}
	tw.Flush()
}

func millis(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d)/1e6) }
