/* What nodes of a site send each other: IP in Generic UDP Encapsulation (draft-ietf-intarea-gue, version 0) with
 * twelve bytes of private data.
 *
 *	 0                   1                   2                   3
 *	|0 0|C| Hlen=3  |  proto 4 or 41  |         flags = 0           |
 *	|     kind      |     step        |             0               |
 *	|                             key                               |
 *	|                                                               |
 *
 * C (control) marks heartbeats, which the daemon reads. Kinds:
 *
 *	FORWARD  the receiver decides about the flow: it has it, or it looks for who does
 *	ASK      the receiver takes it if the flow is there, and otherwise sends it back
 *	RETURN   it comes back
 *
 * step is how far the deciding node has come in its list of candidates. A node that decides, knows nobody, and is not
 * the owner of the row (it drains, or the sender's table is another) sends a FORWARD of the final stage to the owner,
 * which takes the packet in the end. So step, with the stage as its highest bit, grows with each decision, and no
 * packet can go round: it takes at most 2 * (1 + 2 * (1 + CANDIDATES)) steps.
 *
 * The source port is made from the flow, so that switches and network cards spread flows. There is no UDP checksum:
 * the packet within has its own, and RFC 6935 allows that for tunnels in IPv6. */
#pragma once

#include "maps.h"

#define KIND_NONE 0
#define KIND_FORWARD 1
#define KIND_ASK 2
#define KIND_RETURN 3

#define STEP_FINAL 0x80

#define GUE_CONTROL 0x20
#define GUE_WORDS 3
#define PROTO_IPV4 4
#define PROTO_IPV6 41

struct gue {
	__u8 head;
	__u8 protocol;
	__u16 flags;
	__u8 kind;
	__u8 step;
	__u16 zero;
	__u32 key[2];
};

#define OUTER_IPV4 (sizeof(struct ipv4) + sizeof(struct udp) + sizeof(struct gue))
#define OUTER_IPV6 (sizeof(struct ipv6) + sizeof(struct udp) + sizeof(struct gue))

/* How a packet came here. */
struct arrival {
	__u32 kind;
	__u32 step;
	__u32 from; /* the member that sent it */
	__u32 hash; /* of the flow, once it is known */
};

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Takes the outer headers off a packet whose inner one begins at offset inner. False: it is unchanged. */
static __always_inline bool unwrap(struct xdp_md *ctx, struct packet *p, __u32 inner, bool v6)
{
	__u16 link[(ETH_HEADER + VLAN_TAGS * VLAN_TAG) / 2];
	__u16 *from, *to;

	if (p->link != ETH_HEADER && p->link != ETH_HEADER + VLAN_TAG && p->link != ETH_HEADER + 2 * VLAN_TAG)
		return false;
	for (int i = 0; i < sizeof(link) / 2; i++) { /* what is beyond a shorter header is IP, and not written */
		from = bytes_at(ctx, i * 2, 2);
		if (!from)
			return false;
		link[i] = *from;
	}
	if (inner < p->link || bpf_xdp_adjust_head(ctx, (int)(inner - p->link)))
		return false;
	for (int i = 0; i < sizeof(link) / 2; i++) {
		if (i * 2 + 2 >= p->link)
			break;
		to = bytes_at(ctx, i * 2, 2);
		if (!to)
			return false;
		*to = link[i];
	}
	to = bytes_at(ctx, p->link - 2, 2);
	if (!to)
		return false;
	*to = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return true;
}

/* The headers that lead to a member, in front of a packet that begins with its IP header. */
static __always_inline void write_outer4(void *at, struct member *m, struct settings *s, __u32 length)
{
	struct ipv4 *ip = at;
	__u64 sum = 0;
	__u16 *w = at;

	ip->version_length = 0x45;
	ip->tos = 0;
	ip->length = bpf_htons(length + OUTER_IPV4);
	ip->id = 0;
	ip->fragment = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->sum = 0;
	ip->source = s->address[0];
	ip->destination = m->address[0];
	for (int i = 0; i < sizeof(*ip) / 2; i++)
		sum += w[i];
	ip->sum = fold(sum);
}

static __always_inline void write_outer6(void *at, struct member *m, struct settings *s, __u32 length)
{
	struct ipv6 *ip = at;

	ip->version_class_flow = bpf_htonl(6 << 28);
	ip->length = bpf_htons(length + OUTER_IPV6 - sizeof(*ip));
	ip->next = IPPROTO_UDP;
	ip->hops = 64;
	__builtin_memcpy(ip->source, s->address, 16);
	__builtin_memcpy(ip->destination, m->address, 16);
}

static __always_inline void write_gue(void *at, struct packet *p, struct member *m, struct settings *s,
				      struct choice *c, __u32 length, __u32 hash)
{
	struct udp *u = at;
	struct gue *g = at + sizeof(*u);

	u->source = bpf_htons(0xc000 | (hash & 0x3fff)); /* of the dynamic ports */
	u->destination = m->port;
	u->length = bpf_htons(length + sizeof(*u) + sizeof(*g));
	u->sum = 0;
	g->head = GUE_WORDS;
	g->protocol = p->source.family == AF_INET ? PROTO_IPV4 : PROTO_IPV6;
	g->flags = 0;
	g->kind = c->kind;
	g->step = c->step;
	g->zero = 0;
	__builtin_memcpy(g->key, &s->keys[0], 8);
}

/* Bytes of the IP packet by its own length; what follows in the frame is padding. */
static __always_inline __u32 ip_length(struct packet *p)
{
	return p->l4 + p->left - p->link;
}

/* Wraps the packet for a member and says how it leaves. 0: it can't. */
__noinline int wrap(struct xdp_md *ctx, struct packet *p, struct choice *c, __u32 hash)
{
	__u32 zero = 0, number, length, outer;
	struct settings *s = bpf_map_lookup_elem(&control, &zero);
	struct member *m;
	__u16 *ends;
	void *at;

	if (!p || !c || !s)
		return 0;
	number = c->member;
	m = bpf_map_lookup_elem(&members, &number);
	if (!m)
		return 0;
	length = ip_length(p);
	outer = m->family == AF_INET ? OUTER_IPV4 : OUTER_IPV6;
	if (bpf_xdp_adjust_head(ctx, (int)p->link - (int)(ETH_HEADER + outer)))
		return 0;
	if (m->family == AF_INET) {
		at = bytes_at(ctx, ETH_HEADER, OUTER_IPV4);
		if (!at)
			return 0;
		write_outer4(at, m, s, length);
		write_gue(at + sizeof(struct ipv4), p, m, s, c, length, hash);
	} else {
		at = bytes_at(ctx, ETH_HEADER, OUTER_IPV6);
		if (!at)
			return 0;
		write_outer6(at, m, s, length);
		write_gue(at + sizeof(struct ipv6), p, m, s, c, length, hash);
	}
	ends = bytes_at(ctx, 0, ETH_HEADER);
	if (!ends)
		return 0;
	__builtin_memcpy(ends, m->mac, 6);
	__builtin_memcpy(ends + 3, m->own_mac, 6);
	ends[6] = m->family == AF_INET ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (m->interface == ctx->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(m->interface, 0);
}
