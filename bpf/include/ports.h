/* The tables of package ports: what is said of an address and a port. doc.go there draws them. */
#pragma once

#include "prefix.h"

/* Steps of a binary search over 65,536 ranges, the most that one prefix can have. */
#define SEARCH_STEPS 17

struct extent {
	__u32 start;
	__u32 count;
};

struct range {
	__u16 first;
	__u16 last;
	__u32 value;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16); /* the loader sets it */
	__type(key, struct prefix);
	__type(value, struct extent);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 18); /* the loader sets it */
	__type(key, __u32);
	__type(value, struct range);
} ranges SEC(".maps");

/* Ranges of an extent are sorted and disjoint. */
static __always_inline struct range *find_range(struct extent *e, __u32 port)
{
	__u32 low = e->start;
	__u32 high = e->start + e->count;

	for (int i = 0; i < SEARCH_STEPS; i++) {
		if (low >= high)
			return NULL;
		__u32 middle = low + (high - low) / 2;
		struct range *r = bpf_map_lookup_elem(&ranges, &middle);

		if (!r)
			return NULL;
		if (port < r->first)
			high = middle;
		else if (port > r->last)
			low = middle + 1;
		else
			return r;
	}
	return NULL;
}

