/* Which flow a packet belongs to, and whether this node has it. */
#pragma once

#include <linux/errno.h>

#include "encap.h"

#define UDP_FRESH_NS 300000000000LL /* after which a UDP flow that has been silent is a new one */
#define SEEN_EVERY_NS 1000000000LL  /* how exactly that is known */

#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMPV6_ERRORS 4 /* types 1 to 4: unreachable, too big, time exceeded, parameter problem */
#define ICMP_HEADER 8

/* What is to be known of a packet to find its node. */
struct subject {
	struct flow flow;
	__u32 hash;
	__u8 syn;   /* asks for a new TCP flow */
	__u8 error; /* an ICMP error about the flow, not a part of it */
	__u8 later; /* a fragment that is not the first one; there are no ports */
	__u8 first; /* the first of several fragments */
	struct fragments fragments;
};

static __always_inline void set_ends(struct flow *f, __u32 *client, __u32 *service)
{
	__builtin_memcpy(f->client, client, 16);
	__builtin_memcpy(f->service, service, 16);
}

/* All that is behind an ICMP error's header is a packet that this site sent: its source is the service. */
static __always_inline bool error_subject(struct xdp_md *ctx, struct packet *p, struct subject *s)
{
	__u8 *type = bytes_at(ctx, p->l4, ICMP_HEADER);
	__u32 at = p->l4 + ICMP_HEADER, header;
	__u16 *ports;

	if (!type || p->left < ICMP_HEADER || p->fragment)
		return false;
	if (p->source.family == AF_INET) {
		struct ipv4 *ip = bytes_at(ctx, at, sizeof(*ip));

		if (*type != ICMP_UNREACHABLE && *type != ICMP_TIME_EXCEEDED && *type != ICMP_PARAMETER)
			return false;
		if (!ip || ip->version_length >> 4 != 4 || bpf_ntohs(ip->fragment) & 0x1fff)
			return false;
		header = (ip->version_length & 15) * 4;
		if (header < sizeof(*ip) || ip->source != p->destination.address[0])
			return false;
		s->flow.protocol = ip->protocol;
		s->flow.client[0] = ip->destination;
		s->flow.service[0] = ip->source;
	} else {
		struct ipv6 *ip = bytes_at(ctx, at, sizeof(*ip));

		if (*type < 1 || *type > ICMPV6_ERRORS || !ip || bpf_ntohl(ip->version_class_flow) >> 28 != 6)
			return false;
		header = sizeof(*ip);
		s->flow.protocol = ip->next; /* this site sends no extension headers */
		set_ends(&s->flow, ip->destination, ip->source);
	}
	if (s->flow.protocol != IPPROTO_TCP && s->flow.protocol != IPPROTO_UDP)
		return false;
	ports = bytes_at(ctx, at + header, 4);
	if (!ports || p->left < ICMP_HEADER + header + 4)
		return false;
	s->flow.service_port = bpf_ntohs(ports[0]);
	s->flow.client_port = bpf_ntohs(ports[1]);
	s->error = true;
	return true;
}

static __always_inline __u32 mix_ends(struct flow *f)
{
	__u32 h = f->protocol;

	for (int i = 0; i < 4; i++)
		h = mix32(h ^ f->client[i]) ^ mix32(f->service[i] + i);
	return mix32(h ^ (__u32)f->client_port << 16 ^ f->service_port);
}

static __always_inline void name_fragments(struct xdp_md *ctx, struct packet *p, struct subject *s)
{
	__builtin_memcpy(s->fragments.source, p->source.address, 16);
	__builtin_memcpy(s->fragments.destination, p->destination.address, 16);
	s->fragments.protocol = p->protocol;
	s->fragments.family = p->source.family;
	if (p->source.family == AF_INET) {
		struct ipv4 *ip = bytes_at(ctx, p->link, sizeof(*ip));

		if (ip)
			s->fragments.id = ip->id;
	} else {
		/* The fragment header is the last extension header of a later fragment, and nearly always of a
		 * first one. If something is between, the fragments don't find together, and are dropped. */
		__u32 *id = p->l4 >= 4 ? bytes_at(ctx, p->l4 - 4, 4) : NULL;

		if (id)
			s->fragments.id = *id;
	}
}

/* Reads what a packet is about. 0: no flow that has a node. */
__noinline int read_subject(struct xdp_md *ctx, struct packet *p, struct subject *s)
{
	if (!p || !s || p->malformed)
		return 0;
	s->flow.family = p->source.family;
	if (p->protocol == (p->source.family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		if (!error_subject(ctx, p, s))
			return 0;
		s->hash = mix_ends(&s->flow);
		return 1;
	}
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return 0;
	if (p->fragment)
		name_fragments(ctx, p, s);
	if (p->no_ports) {
		s->later = true;
		return 1;
	}
	s->first = p->fragment;
	s->flow.protocol = p->protocol;
	set_ends(&s->flow, p->source.address, p->destination.address);
	if (p->protocol == IPPROTO_TCP) {
		struct tcp *t = bytes_at(ctx, p->l4, sizeof(*t));

		if (!t || p->left < sizeof(*t))
			return 0;
		s->flow.client_port = bpf_ntohs(t->source);
		s->flow.service_port = bpf_ntohs(t->destination);
		s->syn = (t->flags & (SYN | ACK | RST)) == SYN;
	} else {
		struct udp *u = bytes_at(ctx, p->l4, sizeof(*u));

		if (!u || p->left < sizeof(*u))
			return 0;
		s->flow.client_port = bpf_ntohs(u->source);
		s->flow.service_port = bpf_ntohs(u->destination);
	}
	s->hash = mix_ends(&s->flow);
	return 1;
}

/* Whether a socket of this machine has the TCP flow, be it only in its handshake. */
static __always_inline bool has_socket(struct xdp_md *ctx, struct flow *f)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	bool has;

	if (f->family == AF_INET) {
		t.ipv4.saddr = f->client[0];
		t.ipv4.daddr = f->service[0];
		t.ipv4.sport = bpf_htons(f->client_port);
		t.ipv4.dport = bpf_htons(f->service_port);
		sk = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(t.ipv6.saddr, f->client, 16);
		__builtin_memcpy(t.ipv6.daddr, f->service, 16);
		t.ipv6.sport = bpf_htons(f->client_port);
		t.ipv6.dport = bpf_htons(f->service_port);
		sk = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return false;
	has = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return has;
}

/* Whether less than ns have passed at now since then. Another CPU, or the daemon, may have written then after this CPU
 * looked at its clock: that is no age of centuries. */
static __always_inline bool within(__u64 then, __u64 now, __s64 ns)
{
	return (__s64)(now - then) < ns;
}

/* The place where a flow was last known to be, if that still holds. */
static __always_inline struct place *place_of(struct flow *f, __u64 now)
{
	struct place *at = bpf_map_lookup_elem(&flows, f);

	if (at && f->protocol == IPPROTO_UDP && !within(at->seen_ns, now, UDP_FRESH_NS))
		return NULL;
	return at;
}

/* Notes where a flow is. */
static __always_inline void put_place(struct flow *f, struct settings *c, __u32 member, __u64 now, enum entry kind)
{
	struct place *at = bpf_map_lookup_elem(&flows, f);
	struct place made = {.seen_ns = now, .member = member, .epoch = c->epoch};

	if (!at) {
		long err = bpf_map_update_elem(&flows, f, &made, BPF_NOEXIST);

		if (err != -EEXIST) /* or another CPU was first */
			count_one(&entries, err ? ENTRY_REFUSED + kind : kind);
		return;
	}
	if (at->member != member || at->epoch != c->epoch) {
		at->member = member;
		at->epoch = c->epoch;
	}
	if (!within(at->seen_ns, now, SEEN_EVERY_NS))
		at->seen_ns = now;
}
