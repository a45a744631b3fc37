/* What all of Nearcast's kernel programs share: types, helpers and the few constants of protocols.
 *
 * Only the kernel's stable UAPI structures are used, so the compiled objects need no relocation against a
 * running kernel's types and load the same from 5.15 on. */
#pragma once

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

typedef _Bool bool;
#define true 1
#define false 0

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#ifndef IPPROTO_TCP
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#endif

/* Mixes 32 bits so that every input bit reaches every output bit (the finalizer of MurmurHash3). */
static __always_inline __u32 mix32(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	h ^= h >> 16;
	return h;
}

/* Adds one to a counter of a per-CPU array. */
static __always_inline void count_one(void *map, __u32 index)
{
	__u64 *n = bpf_map_lookup_elem(map, &index);

	if (n)
		(*n)++;
}
