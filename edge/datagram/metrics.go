package datagram

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// dropReason is why something was dropped.
type dropReason int

// Reasons. Those of sending count messages, those of receiving packets (incomplete: messages).
const (
	dropDown       dropReason = iota // send: the channel is down
	dropTooLarge                     // send: larger than a message may be
	dropFull                         // send: the kernel's buffer is full
	dropPathMTU                      // send: the device's MTU became smaller than the packet
	dropPath                         // send: the network refused the packet
	dropExhausted                    // send: the epoch's packet numbers are used up
	dropReceive                      // receive: the socket reported an error
	dropMalformed                    // receive: not a packet of this protocol
	dropUnknown                      // receive: no channel has the key
	dropForged                       // receive: not sealed with the key
	dropReplayed                     // receive: came before, or far too late
	dropIncomplete                   // receive: pieces of a message did not come in time, or too many at once
	dropReasons
)

var dropNames = [dropReasons]string{
	"down", "too_large", "full", "path_mtu", "path", "exhausted",
	"receive_error", "malformed", "unknown_key", "forged", "replayed", "incomplete",
}

// counters of a transport.
type counters struct {
	sentMessages, sentPackets, sentBytes             atomic.Uint64
	receivedMessages, receivedPackets, receivedBytes atomic.Uint64
	moves                                            atomic.Uint64
	dropped                                          [dropReasons]atomic.Uint64
}

func (c *counters) drop(why dropReason, n int) {
	if n > 0 {
		c.dropped[why].Add(uint64(n))
	}
}

// collector tells Prometheus about a transport.
type collector struct{ t *Transport }

const namePrefix = "nearcast_datagram_"

var (
	descMessages = prometheus.NewDesc(namePrefix+"messages_total",
		"Datagram messages given to the kernel (sent) or handed over (received).", []string{"direction"}, nil)
	descPackets = prometheus.NewDesc(namePrefix+"packets_total",
		"Sealed packets given to the kernel (sent) or found authentic (received).", []string{"direction"}, nil)
	descBytes = prometheus.NewDesc(namePrefix+"bytes_total",
		"UDP payload bytes of those packets.", []string{"direction"}, nil)
	descDropped = prometheus.NewDesc(namePrefix+"dropped_total",
		"Messages not sent, packets not taken and messages never completed, by reason.", []string{"reason"}, nil)
	descMoves = prometheus.NewDesc(namePrefix+"lane_moves_total",
		"Times that a lane of a peer was first heard, or came from a new address.", nil, nil)
	descKernel = prometheus.NewDesc(namePrefix+"kernel_dropped_total",
		"Packets that the kernel dropped because a socket's receive buffer was full.", nil, nil)
	descAssembly = prometheus.NewDesc(namePrefix+"assembly_bytes",
		"Memory held by incomplete messages.", nil, nil)
	descChannels = prometheus.NewDesc(namePrefix+"channels",
		"Channels by state.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (m collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descMessages, descPackets, descBytes, descDropped, descMoves, descKernel, descAssembly, descChannels,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m collector) Collect(ch chan<- prometheus.Metric) {
	c := &m.t.counters
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	count(descMessages, c.sentMessages.Load(), "sent")
	count(descMessages, c.receivedMessages.Load(), "received")
	count(descPackets, c.sentPackets.Load(), "sent")
	count(descPackets, c.receivedPackets.Load(), "received")
	count(descBytes, c.sentBytes.Load(), "sent")
	count(descBytes, c.receivedBytes.Load(), "received")
	for why := range dropReasons {
		count(descDropped, c.dropped[why].Load(), dropNames[why])
	}
	count(descMoves, c.moves.Load())
	count(descKernel, m.t.kernelDrops())
	gauge(descAssembly, m.t.blocks.used.Load())
	var up, down int64
	for _, ch := range *m.t.channels.Load() {
		if ch.Up() {
			up++
		} else {
			down++
		}
	}
	gauge(descChannels, up, "up")
	gauge(descChannels, down, "down")
}
