package countries

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Database says what the newest country database of the cluster has: nil if no controller ever had one. It is not
// known before the store has been read.
func (k *Keeper) Database() (d *model.CountryDatabase, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stored.database, k.stored.ready
}

// Status says whose lists nodes are told, nil if there is nothing to say, and what is not as it should be, in
// words.
func (k *Keeper) Status(now time.Time) (*v1.CountryStatus, []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var problems []string
	for _, err := range []error{k.fault, k.full} {
		if err != nil {
			problems = append(problems, fmt.Sprintf("controller %s: %v", k.id, err))
		}
	}
	d := k.stored.database
	if d == nil && len(k.named) == 0 {
		return nil, problems
	}
	st := &v1.CountryStatus{}
	if d != nil {
		st.Database = model.CountryDatabaseToProto(d)
		st.Database.Networks = nil // 250 numbers that nobody asked for
	}
	var missing []string
	for _, code := range k.named {
		use := &v1.CountryUse{Country: string(code)}
		if h, there := k.stored.heads[code]; there {
			use.Networks, use.Source = uint32(h.networks), model.CountrySourceToProto(h.source)
		} else if k.stored.ready {
			missing = append(missing, string(code))
		}
		st.Used = append(st.Used, use)
	}
	if len(missing) > 0 {
		why := "its controller has not written it yet, or is away"
		if d == nil {
			why = "no controller has a country database (--country-database)"
		}
		problems = append(problems, fmt.Sprintf("no list of the networks of %s, which listeners name, and so nobody is "+
			"dropped by it: %s", strings.Join(missing, ", "), why))
	}
	if d != nil && len(k.named) > 0 && now.Sub(d.Built) > staleAfter {
		problems = append(problems, fmt.Sprintf("the country database (%s, controller %s) is %d days old", d.Type,
			d.Controller, int(now.Sub(d.Built).Hours()/24)))
	}
	return st, problems
}

type metrics struct {
	faults  prometheus.Counter
	compile prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, k *Keeper) (*metrics, error) {
	m := &metrics{
		faults: prometheus.NewCounter(prometheus.CounterOpts{Name: "nearcast_countries_load_errors_total",
			Help: "Times that this controller's country database could not be loaded."}),
		compile: prometheus.NewGauge(prometheus.GaugeOpts{Name: "nearcast_countries_compile_seconds",
			Help: "How long the last loading of this controller's country database took."}),
	}
	if r == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "nearcast_countries_" + name, Help: help},
			func() float64 {
				k.mu.Lock()
				defer k.mu.Unlock()
				return f()
			})
	}
	for _, c := range []prometheus.Collector{m.faults, m.compile,
		gauge("database_age_seconds", "Age of the cluster's newest country database; 0 without one.",
			func() float64 {
				if k.stored.database == nil {
					return 0
				}
				return time.Since(k.stored.database.Built).Seconds()
			}),
		gauge("lists", "Countries whose networks are stored.", func() float64 { return float64(len(k.stored.heads)) }),
		gauge("missing", "Countries that listeners name and whose networks are not stored.", func() float64 {
			n := 0
			for _, code := range k.named {
				if _, there := k.stored.heads[code]; !there {
					n++
				}
			}
			return float64(n)
		}),
		gauge("networks", "Networks of the countries that listeners name.", func() float64 {
			n := 0
			for _, code := range k.named {
				n += k.stored.heads[code].networks
			}
			return float64(n)
		}),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
