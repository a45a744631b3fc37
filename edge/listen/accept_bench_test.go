package listen

import (
	"net"
	"net/netip"
	"testing"
)

// BenchmarkAccept is what the loop of one accepting socket takes for a connection, which bounds the connections that
// all CPUs together can be given by it.
func BenchmarkAccept(b *testing.B) {
	s := &Set{metrics: &metrics{}, cfg: Config{}}
	l, err := s.listenTCP(netip.MustParseAddrPort("127.0.0.1:0"))
	must(b, err)
	defer l.Close()
	const waiting = 100
	for b.Loop() {
		b.StopTimer()
		var clients []net.Conn
		for range waiting {
			c, err := net.Dial("tcp", l.Addr().String())
			must(b, err)
			must(b, c.(*net.TCPConn).SetLinger(0))
			clients = append(clients, c)
		}
		b.StartTimer()
		accepted := make([]*net.TCPConn, waiting)
		for i := range accepted {
			accepted[i], err = l.AcceptTCP()
			must(b, err)
		}
		b.StopTimer()
		for i := range accepted {
			clients[i].Close()
			accepted[i].Close()
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/waiting, "ns/connection")
}
