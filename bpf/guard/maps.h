/* The guard's maps, and what is in them. doc.go draws them. */
#pragma once

#include "packet.h"
#include "ports.h"

/* The order is that of reasons in counters.go. */
enum reason {
	PASS_FOREIGN,   /* not for an accelerated address, or not IP, or too short to tell */
	PASS_LISTENER,  /* a listener wants it */
	PASS_OTHER,     /* accelerated address, but no listener's; the address is not exclusive */
	ANSWERED,       /* the program itself answered a SYN with a cookie */
	DROP_MALFORMED, /* lengths or flags that no sender means */
	DROP_SPOOFED,   /* a source address that can't be one */
	DROP_FRAGMENT,  /* the address or the listener takes no fragments */
	DROP_NOBODY,    /* exclusive address, and no listener wants it */
	DROP_DENIED,    /* the source is on a list the listener denies, or on none it allows */
	DROP_SOURCE,    /* the source is beyond its rate */
	DROP_LISTENER,  /* the listener is beyond its rate */
	DROP_COOKIE,    /* in a flood: an ACK that belongs to nothing and holds no valid cookie */
	DROP_COUNTRY,   /* the source's country is one the listener denies, or none it allows */
	REASONS,
};

#define ADDRESS_EXCLUSIVE 1
#define ADDRESS_NO_FRAGMENTS 2

#define LISTENER_NO_FRAGMENTS 1
#define LISTENER_COUNTRIES 2      /* refused says something */
#define LISTENER_ONLY_COUNTRIES 4 /* it allows countries: its allowed list is not the only way in */

/* A rate as the generic cell rate algorithm has it: a token every cost_ns, and burst_ns of them saved up. */
struct rate {
	__u64 cost_ns; /* 0: no limit */
	__u64 burst_ns;
};

#define LIST_WORDS 4

/* The lists that a source is on, a bit each, and the number of its country; 0: of none. */
struct membership {
	__u64 lists[LIST_WORDS];
	__u32 country;
	__u32 zero;
};

#define COUNTRY_WORDS 4

struct listener {
	__u16 allow; /* 1 + the list that a source has to be on; 0: all may */
	__u16 deny;  /* 1 + the list that a source must not be on; 0: none */
	__u32 flags;
	struct rate source;
	struct rate total;
	struct rate flood; /* SYNs beyond it are answered with cookies */
	__u64 refused[COUNTRY_WORDS]; /* a bit for each country, by number, whose sources are dropped */
};

/* What a listener remembers. Two CPUs may let one packet too many pass between them: cheaper than a lock. */
struct state {
	__u64 total;      /* theoretical arrival times */
	__u64 flood;
	__u64 cookies_ns; /* when the last cookie was handed out */
};

struct source {
	__u32 listener;
	__u32 family;
	__u64 address; /* IPv4 address, or the /64 of an IPv6 one, in network order */
};

struct settings {
	__u32 sample_every; /* dropped packets an event; 0: none */
	__u32 segment;      /* the most that the answers with cookies let clients send; 0: an Ethernet's */
};

struct event {
	__u64 time_ns;
	__u32 reason;
	__u32 length;
	__u32 source[4];
	__u32 destination[4];
	__u16 source_port; /* host order */
	__u16 destination_port;
	__u8 family;
	__u8 protocol;
	__u16 zero;
};

struct count {
	__u64 packets;
	__u64 bytes;
};

/* All accelerated prefixes, with protocol 0. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16); /* the loader sets it */
	__type(key, struct prefix);
	__type(value, __u32);
} addresses SEC(".maps");

/* The source lists: one array, all of which is replaced at once when a list changes. Its lines are as large as a
 * CPU's cache lines, and each holds one of what follows, or a membership. */
#define LINE_BYTES 64

#define NODE_KEYS 8
#define LEAF_KEYS 5
#define TREE_LEVELS 8 /* of nodes: enough for 258 million borders */

/* Each key is the border before its child, less 1; what is not used is the largest number. */
struct node {
	__u64 keys[NODE_KEYS];
};

struct leaf {
	__u64 keys[LEAF_KEYS];
	__u32 values[LEAF_KEYS + 1];
};

/* The head of a tree. */
struct tree {
	__u32 levels;                /* of nodes above the leaves */
	__u32 base[TREE_LEVELS + 1]; /* first line of each level; of the leaves the last one */
};

#define HEAD_IPV4 0 /* lines of the two trees' heads */
#define HEAD_IPV6 1

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP); /* mapped: lies on a page's start; arrays differ in length */
		__uint(max_entries, 1); /* as many as the lists need */
		__uint(key_size, sizeof(__u32));
		__uint(value_size, LINE_BYTES);
	});
} lists SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 14); /* the loader sets it */
	__type(key, __u32);
	__type(value, struct listener);
} listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 14); /* the loader sets it */
	__type(key, __u32);
	__type(value, struct state);
} states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 18); /* the loader sets it */
	__type(key, struct source);
	__type(value, __u64);
} sources SEC(".maps");

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
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

struct event *unused_event __attribute__((unused)); /* their types are wanted in Go, and no map names them */
struct membership *unused_membership __attribute__((unused));
