/* The balancer's maps, and what is in them. doc.go draws them. */
#pragma once

#include "packet.h"

/* The order is that of reasons in counters.go. */
enum reason {
	LOCAL_FOREIGN,     /* not for an accelerated address, not IP, or too short to tell */
	LOCAL_OTHER,       /* accelerated address, but no flow: ping, other protocols, unreadable */
	LOCAL_OWN,         /* this node's */
	LOCAL_FORWARDED,   /* another node sent it here, and this node took it */
	LOCAL_ASKED,       /* another node asked for it, and the flow is here */
	LOCAL_RETURNED,    /* nobody who was asked has the flow, so it is this node's */
	LOCAL_UNREACHABLE, /* another node's, but the way there is not known */
	LOCAL_HEARTBEAT,   /* what nodes of a site tell each other */
	SENT_FORWARD,      /* to the node whose row it is */
	SENT_ASK,          /* to a node that may have the flow from before */
	SENT_RETURN,       /* back to the node that asked: the flow is not here */
	DROP_STRAY,        /* encapsulated, but not by a node of the site, or not what one would send */
	DROP_TOO_BIG,      /* for the network between the nodes */
	DROP_FRAGMENT,     /* a later fragment whose first one did not come this way */
	ANSWERED_TOO_BIG,  /* the same, and its sender was told so */
	REASONS,
};

#define MEMBERS 32 /* numbers of nodes; 0 is nobody */
#define ROWS 65537
#define CANDIDATES 7
#define KEYS 4

#define MEMBER_SELF 1
#define MEMBER_UP 2      /* answers; it may be the owner of rows or be asked */
#define MEMBER_DIRECT 8  /* no router between: what it sends comes from its own MAC address */
#define MEMBER_SUSPECT 4 /* has not answered for a moment: asked for TCP flows only, which it alone can have */

struct member {
	__u32 address[4]; /* on the network between the nodes */
	__u8 mac[6];      /* of it, or of the router on the way */
	__u8 own_mac[6];
	__u32 interface;
	__u16 mtu;
	__u16 port; /* network order */
	__u8 family;
	__u8 flags;
	__u16 zero;
};

/* Who may have the flows of a row: first its owner, then up to recent that were it, then all others. */
struct row {
	__u8 members[CANDIDATES];
	__u8 recent;
};

struct address {
	__u32 family;
	__u32 words[4];
};

struct flow {
	__u8 protocol;
	__u8 family;
	__u16 zero;
	__u16 client_port; /* host order */
	__u16 service_port;
	__u32 client[4];
	__u32 service[4];
};

/* Where a flow is. For UDP this is how its own node knows of it; for TCP the socket is. */
struct place {
	__u64 seen_ns;
	__u32 member;
	__u32 epoch; /* of the daemon that served it, if it is this node's */
};

/* Why the table of flows gets an entry. The order is that of kinds in flows.go. */
enum entry {
	ENTRY_FORWARD, /* another node's flow, whose packets come here */
	ENTRY_ASK,     /* a flow that another node was asked for */
	ENTRY_OWN,     /* a UDP flow of this node */
	ENTRIES,
};

#define ENTRY_REFUSED ENTRIES       /* and the kind: the kernel had no room, or was busy with the table */
#define ENTRY_REMOVED (2 * ENTRIES) /* a SYN began the flow anew */

struct fragments {
	__u32 source[4];
	__u32 destination[4];
	__u32 id;
	__u8 protocol;
	__u8 family;
	__u16 zero;
};

/* What became of a packet's first fragment. */
struct choice {
	__u8 kind; /* of encapsulation; 0: taken here */
	__u8 member;
	__u8 step;
	__u8 zero;
};

struct settings {
	__u64 alive_ns;     /* when the daemon last said that it runs */
	__u64 unsettled_ns; /* until when views of the site may differ */
	__u64 keys[KEYS];   /* that encapsulated packets carry; the first is sent */
	__u32 half;         /* of rows that is in use */
	__u32 self;         /* this node's number; 0: no table yet */
	__u32 address[4];
	__u32 family;
	__u16 port; /* network order */
	__u16 zero;
	__u32 epoch; /* another one with each daemon that does not take over from one before */
	__u32 zero2;
};

struct count {
	__u64 packets;
	__u64 bytes;
};

struct allowance {
	__u64 second;
	__u64 used;
};

/* Accelerated prefixes that are balanced, with protocol 0. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 15);
	__type(key, struct prefix);
	__type(value, __u32);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MEMBERS);
	__type(key, __u32);
	__type(value, struct member);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MEMBERS);
	__type(key, struct address);
	__type(value, __u32);
} peers SEC(".maps");

/* Two tables: one in use, one to write. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * ROWS);
	__type(key, __u32);
	__type(value, struct row);
} rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 18);
	__type(key, struct flow);
	__type(value, struct place);
} flows SEC(".maps");

/* What became of entries of flows. Those that the kernel evicts are no event: the loader counts what is left. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ENTRY_REMOVED + 1);
	__type(key, __u32);
	__type(value, __u64);
} entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 13);
	__type(key, struct fragments);
	__type(value, struct choice);
} firsts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct allowance);
} allowances SEC(".maps");

/* The program that looks at what this node takes: the guard, or nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");
