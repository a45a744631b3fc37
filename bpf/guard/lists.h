/* Which lists a source is on: a search tree in one array, that tree.go there compiles and draws. */
#pragma once

#include "maps.h"

/* The value of a leaf is the line of a membership, 0 for none, or that of the tree of a /64, with this bit. */
#define NESTED (1u << 31)

/* The value of the border that is last at or before x, in the tree whose head is in a line. Keys are looked at in order,
 * up to the first one that is not below: counting all of them without a jump took half as long again. */
static __noinline __u32 search(void *lines, __u32 head, __u64 x)
{
	struct tree *t = bpf_map_lookup_elem(lines, &head);
	struct leaf *leaf;
	__u32 n = 0;
	__u32 at;

	if (!t)
		return 0;
	at = t->base[0];
#pragma unroll
	for (int i = 0; i < TREE_LEVELS; i++) {
		struct node *node;
		__u32 child = 0;

		if (i >= t->levels)
			break;
		node = bpf_map_lookup_elem(lines, &at);
		if (!node)
			return 0;
#pragma unroll
		for (int k = 0; k < NODE_KEYS; k++)
			if (node->keys[k] < x)
				child = k + 1;
			else
				break;
		n = n * (NODE_KEYS + 1) + child;
		at = t->base[i + 1] + n;
	}
	leaf = bpf_map_lookup_elem(lines, &at);
	if (!leaf)
		return 0;
	n = 0;
#pragma unroll
	for (int k = 0; k < LEAF_KEYS; k++)
		if (leaf->keys[k] < x)
			n = k + 1;
		else
			break;
	return leaf->values[n];
}

static __always_inline __u64 half(__u32 *words)
{
	return (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

static __always_inline struct membership *membership_of(struct prefix *source)
{
	void *lines;
	__u32 at = 0;

	lines = bpf_map_lookup_elem(&lists, &at);
	if (!lines)
		return NULL;
	at = search(lines, source->family == AF_INET ? HEAD_IPV4 : HEAD_IPV6, half(source->address));
	if (at & NESTED)
		at = search(lines, at & ~NESTED, half(source->address + 2));
	return at ? bpf_map_lookup_elem(lines, &at) : NULL;
}
