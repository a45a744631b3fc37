package balance

import "time"

const (
	// MembersMax bounds a site's nodes: numbers are a byte in rows, and a list of candidates has seven.
	MembersMax = membersSize - 1

	// DefaultFlowsMax is the room for flows: those of other nodes' rows that pass here, and UDP flows that are
	// here. About 120 bytes each, allocated at once. The least recently used goes: a TCP flow is then looked for
	// again, a UDP flow begins anew if its row has changed its owner within HistoryKept.
	DefaultFlowsMax = 1 << 18

	// HistoryKept is how long the owner of a row before is asked for flows. A flow that has been silent since may be
	// lost when its owner has changed: no idle timeout of ours is longer by default.
	HistoryKept = time.Hour

	// historyMax bounds the tables kept; the oldest goes.
	historyMax = 16

	// settleTime is how long after a change nodes are asked that never owned the row: by then all nodes have the
	// same table.
	settleTime = time.Minute

	flowsFresh = 5 * time.Minute // UDP_FRESH_NS of flow.h: a flow that was silent for longer is a new one
	flowsKept  = time.Minute     // how old a count of them may be: a full table takes 0.3 s to count
	flowsBatch = 4096            // entries a system call; more than a bucket of the kernel's table ever has

	membersSize = 32      // MEMBERS of maps.h
	candidates  = 7       // CANDIDATES of maps.h
	keysMax     = 4       // KEYS of maps.h
	prefixesMax = 1 << 14 // half of addresses: the new beside the old
)

const (
	memberSelf    = 1
	memberUp      = 2
	memberSuspect = 4
	memberDirect  = 8
)

// OverheadIPv4 and OverheadIPv6 are the bytes that encapsulation puts around an IP packet, by the family of the
// network between the nodes: IP, UDP and 16 bytes of GUE.
const (
	OverheadIPv4 = 20 + 8 + 16
	OverheadIPv6 = 40 + 8 + 16
)

const layoutVersion = "v1" // of the maps; the name of their directory of pins
