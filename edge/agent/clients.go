package agent

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// clientsPace spaces reports of clients' networks: all that is known is said each time, so that neither side
// keeps account of what the other has, and the larger it is the more seldom.
type clientsPace struct {
	last []byte
	next time.Time
}

// due returns the report if there is news and it is time for it.
func (p *clientsPace) due(list []model.ClientNetwork, now time.Time) *pb.ClientNetworks {
	if now.Before(p.next) || len(list) == 0 && p.last == nil {
		return nil
	}
	report := model.ClientNetworksToProto(list)
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(report)
	if err != nil || bytes.Equal(raw, p.last) && p.last != nil {
		return nil
	}
	p.last = raw
	p.next = now.Add(max(clientsEvery, time.Duration(len(raw))*time.Second/clientsBytesPerSecond))
	return report
}

// sendClients says what this node measured of clients' networks.
func (s *session) sendClients(p *clientsPace, now time.Time) error {
	if s.cfg.Clients == nil || now.Before(p.next) {
		return nil
	}
	report := p.due(s.cfg.Clients(), now)
	if report == nil {
		return nil
	}
	return s.stream.Send(&pb.NodeMessage{Body: &pb.NodeMessage_Clients{Clients: report}})
}

// clients takes what all nodes measured. What cannot be understood is a newer controller's.
func (s *session) clients(p *pb.ClientNetworks) {
	if s.cfg.OnClients == nil {
		return
	}
	list, err := model.ClientNetworksFromProto(p, model.ClientNetworksKnown)
	if err != nil {
		s.cfg.Log.Warn("clients' networks that the controller tells are not understood", "error", err)
		return
	}
	s.cfg.OnClients(list)
}
