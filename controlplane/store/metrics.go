package store

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// metrics counts what this process does with the store.
type metrics struct {
	operations *prometheus.CounterVec
	conflicts  prometheus.Counter
	relists    prometheus.Counter
	freed      prometheus.Counter
	refused    atomic.Bool                           // the last write was refused because the store is full
	member     atomic.Pointer[etcdserver.EtcdServer] // nil with an external store and before it is ready
}

func newMetrics(reg prometheus.Registerer, quota int64) (*metrics, error) {
	m := &metrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_store_operations_total",
			Help: "Operations on the store by kind and whether the store answered.",
		}, []string{"operation", "outcome"}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_store_conflicts_total",
			Help: "Transactions that were not made because somebody else had written first.",
		}),
		relists: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_store_watch_relists_total",
			Help: "Times that a watch listed everything again, by timer or after it broke.",
		}),
		freed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_store_freed_total",
			Help: "Times that the embedded member was full, was given room again and takes writes again.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	collectors := []prometheus.Collector{m.operations, m.conflicts, m.relists, m.freed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_store_size_bytes",
			Help: "Size of the embedded member's database file; writes end at nearcast_store_quota_bytes.",
		}, m.size),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_store_quota_bytes",
			Help: "Size of the embedded member's database file at which it takes no more writes.",
		}, func() float64 { return float64(quota) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_store_used_bytes",
			Help: "Bytes in use of the embedded member's database file: what would be left after defragmentation.",
		}, m.used),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_store_full",
			Help: "1 while the store is full and refuses changes (etcd's NOSPACE alarm), else 0.",
		}, m.full),
	}
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) watchMember(s *etcdserver.EtcdServer) { m.member.Store(s) }

func (m *metrics) size() float64 {
	if s := m.member.Load(); s != nil {
		return float64(s.Backend().Size())
	}
	return 0
}

func (m *metrics) used() float64 {
	if s := m.member.Load(); s != nil {
		return float64(s.Backend().SizeInUse())
	}
	return 0
}

// full is 1 while a member has its alarm on. An external store shows it by refusing a write.
func (m *metrics) full() float64 {
	full := m.refused.Load()
	if s := m.member.Load(); s != nil {
		full = anyFull(s)
	}
	if full {
		return 1
	}
	return 0
}

func (m *metrics) count(operation string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.operations.WithLabelValues(operation, outcome).Inc()
}
