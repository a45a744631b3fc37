package balance

import "fmt"

// Reason says what became of a packet, and why. The order is the program's.
type Reason uint32

// The reasons.
const (
	LocalForeign     Reason = iota // not for a balanced address, not IP, or too short to tell
	LocalOther                     // a balanced address, but no flow: ping, other protocols, unreadable
	LocalOwn                       // this node's
	LocalForwarded                 // another node sent it here, and this node took it
	LocalAsked                     // another node asked for it, and the flow is here
	LocalReturned                  // nobody who was asked has the flow, so it is this node's
	LocalUnreachable               // another node's, but the way there is not known
	LocalHeartbeat                 // what nodes of a site tell each other
	SentForward                    // to the node whose row it is
	SentAsk                        // to a node that may have the flow from before
	SentReturn                     // back to the node that asked: the flow is not here
	DropStray                      // encapsulated, but not by a node of the site
	DropTooBig                     // for the network between the nodes
	DropFragment                   // a later fragment whose first one did not come this way
	AnsweredTooBig                 // too big, and its sender was told so
	reasons
)

var reasonNames = [reasons]string{"foreign", "other", "own", "forwarded", "asked", "returned", "unreachable",
	"heartbeat", "forward", "ask", "return", "stray", "too_big", "fragment", "told_too_big"}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Verdict is what was done: local (taken by this node), sent (to another one), drop.
func (r Reason) Verdict() string {
	switch {
	case r < SentForward:
		return "local"
	case r < DropStray:
		return "sent"
	}
	return "drop"
}

// Count is how many packets had a reason, and their bytes as they arrived.
type Count struct{ Packets, Bytes uint64 }

// Counts returns the packets of every reason since Load.
func (b *Balancer) Counts() (map[Reason]Count, error) {
	out := make(map[Reason]Count, reasons)
	for r := range reasons {
		var perCPU []balanceCount
		if err := b.objs.Counts.Lookup(uint32(r), &perCPU); err != nil {
			return nil, fmt.Errorf("read counter %v: %w", r, err)
		}
		var sum Count
		for _, c := range perCPU {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		out[r] = sum
	}
	return out, nil
}
