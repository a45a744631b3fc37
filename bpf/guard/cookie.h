/* SYN cookies without the network stack.
 *
 * The cookie comes from the kernel and is made for a listening socket: the helper makes one only while that
 * socket's own queue is full (or net.ipv4.tcp_syncookies is 2), and notes in the socket that it did, without
 * which the socket would refuse the client's ACK. (The "raw" helpers of Linux 6.0 make cookies that no
 * socket knows of, so they need a SYN proxy behind them.) What this saves is the way of each SYN through the
 * stack, and of each SYN-ACK back.
 *
 * The answer has one option, the MSS: the kernel's own way of putting more into a time stamp depends on a
 * secret that programs can't have. A flow that began so has no window scaling, and no selective ACKs. */
#pragma once

#include "maps.h"

#define TCP_HEADER_MAX 60
#define TCP_WORDS (TCP_HEADER_MAX / 4)
#define ANSWER_TCP 24 /* header and MSS option */
#define MSS_IPV4 1460
#define MSS_IPV6 1440
#define COOKIES_VALID_NS 60000000000ULL /* after which nobody comes back with one */

/* Looks up the socket that the packet is for. The caller releases it. */
static __always_inline struct bpf_sock *socket_of(struct xdp_md *ctx, struct packet *p)
{
	struct bpf_sock_tuple t = {};

	if (p->source.family == AF_INET) {
		t.ipv4.saddr = p->source.address[0];
		t.ipv4.daddr = p->destination.address[0];
		t.ipv4.sport = bpf_htons(p->source_port);
		t.ipv4.dport = bpf_htons(p->destination_port);
		return bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(t.ipv6.saddr, p->source.address, 16);
	__builtin_memcpy(t.ipv6.daddr, p->destination.address, 16);
	t.ipv6.sport = bpf_htons(p->source_port);
	t.ipv6.dport = bpf_htons(p->destination_port);
	return bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* Copies a TCP header with its options, as helpers take no packet memory of variable length. 0: too short. */
static __always_inline __u32 copy_tcp(struct xdp_md *ctx, struct packet *p, __u32 *to)
{
	struct tcp *t = bytes_at(ctx, p->l4, sizeof(*t));
	__u32 *from, words;

	if (!t)
		return 0;
	words = t->offset >> 4;
	for (__u32 i = 0; i < TCP_WORDS; i++) {
		if (i >= words)
			break;
		from = bytes_at(ctx, p->l4 + i * 4, 4);
		if (!from)
			return 0;
		to[i] = *from;
	}
	return words * 4;
}

static __always_inline __u32 ip_bytes(struct packet *p)
{
	return p->source.family == AF_INET ? sizeof(struct ipv4) : sizeof(struct ipv6);
}

/* The kernel's cookie for a SYN (the low half) and the MSS in it; negative: it makes none. With check: 0 if the
 * packet holds a valid one. */
static __always_inline __s64 cookie_of(struct xdp_md *ctx, struct packet *p, struct bpf_sock *sk, bool check)
{
	__u32 header[TCP_WORDS] = {}, length = copy_tcp(ctx, p, header);
	void *ip;

	if (length < sizeof(struct tcp) || length > TCP_HEADER_MAX)
		return -1;
	if (p->source.family == AF_INET) {
		ip = bytes_at(ctx, p->link, sizeof(struct ipv4));
		if (!ip)
			return -1;
		if (check)
			return bpf_tcp_check_syncookie(sk, ip, sizeof(struct ipv4), (void *)header, length);
		return bpf_tcp_gen_syncookie(sk, ip, sizeof(struct ipv4), (void *)header, length);
	}
	ip = bytes_at(ctx, p->link, sizeof(struct ipv6));
	if (!ip)
		return -1;
	if (check)
		return bpf_tcp_check_syncookie(sk, ip, sizeof(struct ipv6), (void *)header, length);
	return bpf_tcp_gen_syncookie(sk, ip, sizeof(struct ipv6), (void *)header, length);
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Adds up words; their number is a constant wherever it is called. */
static __always_inline __u64 add_words(__u32 *w, int n)
{
	__u64 sum = 0;

	for (int i = 0; i < n; i++)
		sum += w[i];
	return sum;
}

static __always_inline void write_ipv4(struct packet *p, struct ipv4 *ip)
{
	struct ipv4 h = {
		.version_length = 0x45, .length = bpf_htons(sizeof(h) + ANSWER_TCP),
		.fragment = bpf_htons(0x4000), .ttl = 64, .protocol = IPPROTO_TCP,
		.source = p->destination.address[0], .destination = p->source.address[0],
	};

	h.sum = fold(add_words((__u32 *)&h, sizeof(h) / 4));
	*ip = h;
}

static __always_inline void write_ipv6(struct packet *p, struct ipv6 *ip)
{
	ip->version_class_flow = bpf_htonl(6 << 28);
	ip->length = bpf_htons(ANSWER_TCP);
	ip->next = IPPROTO_TCP;
	ip->hops = 64;
	__builtin_memcpy(ip->source, p->destination.address, 16);
	__builtin_memcpy(ip->destination, p->source.address, 16);
}

/* What a client may send at once. The cookie holds what the client takes; this is the other way. */
static __always_inline __u32 segment_for(struct packet *p)
{
	__u32 zero = 0, usual = p->source.family == AF_INET ? MSS_IPV4 : MSS_IPV6;
	struct settings *s = bpf_map_lookup_elem(&control, &zero);

	return s && s->segment && s->segment < usual ? s->segment : usual;
}

static __always_inline void write_tcp(struct packet *p, __u32 *to, __u32 seq, __u32 cookie)
{
	__u32 mss = segment_for(p);
	__u32 w[ANSWER_TCP / 4] = {
		bpf_htonl((__u32)p->destination_port << 16 | p->source_port),
		bpf_htonl(cookie), bpf_htonl(seq + 1),
		bpf_htonl((ANSWER_TCP / 4) << 28 | (SYN | ACK) << 16 | 65535),
		0,
		bpf_htonl(2 << 24 | 4 << 16 | mss),
	};
	__u64 sum = add_words(w, ANSWER_TCP / 4) + add_words(p->source.address, 4) +
		    add_words(p->destination.address, 4) + bpf_htonl(IPPROTO_TCP) + bpf_htonl(ANSWER_TCP);

	((struct tcp *)w)->sum = fold(sum);
	__builtin_memcpy(to, w, ANSWER_TCP);
}

/* Whether the answer may leave by the way on which the frame came. One that another node of the site passed on says
 * that it comes from its own receiver (bpf/balance): the network stack knows the way to its client. */
static __always_inline bool can_answer(struct xdp_md *ctx)
{
	__u16 *ends = bytes_at(ctx, 0, 12);

	return ends && (ends[0] != ends[3] || ends[1] != ends[4] || ends[2] != ends[5]);
}

/* Turns the SYN into a SYN-ACK to its sender. False: the packet is as it was. */
static __always_inline bool answer(struct xdp_md *ctx, struct packet *p, __u32 cookie)
{
	struct tcp *t = bytes_at(ctx, p->l4, sizeof(*t));
	__u16 mac[6], *ends;
	void *l3;
	__u32 seq;

	if (!t)
		return false;
	seq = bpf_ntohl(t->seq);
	if (bpf_xdp_adjust_tail(ctx, (int)(p->link + ip_bytes(p) + ANSWER_TCP) - (int)p->size))
		return false;
	ends = bytes_at(ctx, 0, 12);
	if (!ends)
		return false;
	__builtin_memcpy(mac, ends, 12);
	__builtin_memcpy(ends, mac + 3, 6);
	__builtin_memcpy(ends + 3, mac, 6);
	if (p->source.family == AF_INET) {
		l3 = bytes_at(ctx, p->link, sizeof(struct ipv4) + ANSWER_TCP);
		if (!l3)
			return false;
		write_ipv4(p, l3);
		write_tcp(p, l3 + sizeof(struct ipv4), seq, cookie);
	} else {
		l3 = bytes_at(ctx, p->link, sizeof(struct ipv6) + ANSWER_TCP);
		if (!l3)
			return false;
		write_ipv6(p, l3);
		write_tcp(p, l3 + sizeof(struct ipv6), seq, cookie);
	}
	return true;
}
