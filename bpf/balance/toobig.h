/* The answer to a packet that does not fit the network between the nodes: how large it may be. */
#pragma once

#include "flow.h"

#define ERROR_HEADER 8
#define QUOTED 8 /* bytes quoted of what is behind the IP header: the ports */
#define ERROR_IPV4 (sizeof(struct ipv4) + ERROR_HEADER)
#define ERROR_IPV6 (sizeof(struct ipv6) + ERROR_HEADER)
#define ICMPV6_TOO_BIG 2
#define ICMP_FRAGMENTATION_NEEDED 4

struct icmp_error {
	__u8 type;
	__u8 code;
	__u16 sum;
	__u32 mtu; /* of ICMP: its lower half */
};

static __always_inline __u64 sum_words(void *at, int bytes)
{
	__u32 *w = at;
	__u64 sum = 0;

	for (int i = 0; i < bytes / 4; i++)
		sum += w[i];
	return sum;
}

/* Makes room in front of the quoted packet, and turns the link header round. */
static __always_inline bool turn(struct xdp_md *ctx, struct packet *p, __u32 room, __u32 quoted)
{
	__u16 old[ETH_HEADER / 2], *at;

	if (bpf_xdp_adjust_tail(ctx, (int)(ETH_HEADER + quoted) - (int)p->size) || bpf_xdp_adjust_head(ctx, -(int)room))
		return false;
	at = bytes_at(ctx, room, ETH_HEADER);
	if (!at)
		return false;
	__builtin_memcpy(old, at, ETH_HEADER);
	at = bytes_at(ctx, 0, ETH_HEADER);
	if (!at)
		return false;
	__builtin_memcpy(at, old + 3, 6);
	__builtin_memcpy(at + 3, old, 6);
	at[6] = old[6];
	return true;
}

static __always_inline bool too_big4(struct xdp_md *ctx, struct packet *p, __u32 mtu)
{
	struct ipv4 *ip;
	struct icmp_error *e;

	if (!turn(ctx, p, ERROR_IPV4, sizeof(*ip) + QUOTED))
		return false;
	ip = bytes_at(ctx, ETH_HEADER, ERROR_IPV4 + sizeof(*ip) + QUOTED);
	if (!ip)
		return false;
	e = (void *)(ip + 1);
	ip->version_length = 0x45;
	ip->tos = 0;
	ip->length = bpf_htons(ERROR_IPV4 + sizeof(*ip) + QUOTED);
	ip->id = 0;
	ip->fragment = 0;
	ip->ttl = 64;
	ip->protocol = IPPROTO_ICMP;
	ip->sum = 0;
	ip->source = p->destination.address[0];
	ip->destination = p->source.address[0];
	ip->sum = fold(sum_words(ip, sizeof(*ip)));
	e->type = ICMP_UNREACHABLE;
	e->code = ICMP_FRAGMENTATION_NEEDED;
	e->sum = 0;
	e->mtu = bpf_htonl(mtu);
	e->sum = fold(sum_words(e, ERROR_HEADER + sizeof(*ip) + QUOTED));
	return true;
}

static __always_inline bool too_big6(struct xdp_md *ctx, struct packet *p, __u32 mtu)
{
	struct ipv6 *ip;
	struct icmp_error *e;
	__u32 length = ERROR_HEADER + sizeof(*ip) + QUOTED;

	if (!turn(ctx, p, ERROR_IPV6, sizeof(*ip) + QUOTED))
		return false;
	ip = bytes_at(ctx, ETH_HEADER, ERROR_IPV6 + sizeof(*ip) + QUOTED);
	if (!ip)
		return false;
	e = (void *)(ip + 1);
	ip->version_class_flow = bpf_htonl(6 << 28);
	ip->length = bpf_htons(length);
	ip->next = IPPROTO_ICMPV6;
	ip->hops = 64;
	__builtin_memcpy(ip->source, p->destination.address, 16);
	__builtin_memcpy(ip->destination, p->source.address, 16);
	e->type = ICMPV6_TOO_BIG;
	e->code = 0;
	e->sum = 0;
	e->mtu = bpf_htonl(mtu);
	e->sum = fold(sum_words(ip->source, 32) + bpf_htonl(length) + bpf_htonl(IPPROTO_ICMPV6) +
		      sum_words(e, ERROR_HEADER + sizeof(*ip) + QUOTED));
	return true;
}

/* Turns a packet that came from outside into the answer that it is too big for a member. 0: it can't be. */
__noinline int too_big(struct xdp_md *ctx, struct packet *p, struct choice *c)
{
	__u32 number, mtu;
	struct member *m;

	if (!p || !c || p->link != ETH_HEADER || p->options || p->fragment ||
	    (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP))
		return 0;
	number = c->member;
	m = bpf_map_lookup_elem(&members, &number);
	if (!m)
		return 0;
	mtu = m->mtu - (m->family == AF_INET ? OUTER_IPV4 : OUTER_IPV6);
	return p->source.family == AF_INET ? too_big4(ctx, p, mtu) : too_big6(ctx, p, mtu);
}
