/* What is known of a packet: Ethernet, up to two VLAN tags, IPv4 or IPv6 with its extension headers. */
#pragma once

#include "prefix.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define ETH_HEADER 14
#define VLAN_TAG 4
#define VLAN_TAGS 2
#define EXTENSION_HEADERS 6 /* of IPv6, that are walked over; more is malformed */

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_DSTOPTS 60

#define OFFSET_MAX 0x3fff /* of a header; what lies further is out of reach */

/* Parts of this are functions of their own for the verifier, which then looks at each only once. Pointers into the
 * packet don't survive that, so headers are known by their offsets. */
struct packet {
	__u32 size; /* bytes of the frame */
	__u32 link; /* bytes before the IP header */
	__u32 l4;   /* offset of what is behind it */
	__u32 left; /* bytes from l4 to the end of the IP packet, by its own length */
	struct prefix source;
	struct prefix destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 fragment;  /* of several */
	__u8 no_ports;  /* not the first one */
	__u8 malformed;
	__u8 options;   /* of IPv4, or extension headers of IPv6 */
	__u8 fresh;     /* asks for something new: SYN, or UDP */
	__u16 zero;
};

struct ipv4 {
	__u8 version_length;
	__u8 tos;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 sum;
	__u32 source;
	__u32 destination;
};

struct ipv6 {
	__u32 version_class_flow;
	__u16 length;
	__u8 next;
	__u8 hops;
	__u32 source[4];
	__u32 destination[4];
};

struct tcp {
	__u16 source;
	__u16 destination;
	__u32 seq;
	__u32 ack;
	__u8 offset;
	__u8 flags;
	__u16 window;
	__u16 sum;
	__u16 urgent;
};

struct udp {
	__u16 source;
	__u16 destination;
	__u16 length;
	__u16 sum;
};

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define ACK 0x10

/* The length bytes at an offset, or NULL if they are not there. */
static __always_inline void *bytes_at(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (offset > OFFSET_MAX || data + offset + length > end)
		return NULL;
	return data + offset;
}

/* Reads the IPv4 header. 0: too short to know the destination. */
__noinline int parse_ipv4(struct xdp_md *ctx, struct packet *p)
{
	struct ipv4 *ip;
	__u32 header, length;
	__u16 fragment;

	if (!p)
		return 0;
	ip = bytes_at(ctx, p->link, sizeof(*ip));
	if (!ip)
		return 0;
	p->source.family = p->destination.family = AF_INET;
	p->source.bits = p->destination.bits = 32 + 32;
	p->source.address[0] = ip->source;
	p->destination.address[0] = ip->destination;
	p->protocol = ip->protocol;
	header = (ip->version_length & 15) * 4;
	length = bpf_ntohs(ip->length);
	if (ip->version_length >> 4 != 4 || header < sizeof(*ip) || length < header || length > p->size - p->link) {
		p->malformed = true;
		return 1;
	}
	fragment = bpf_ntohs(ip->fragment);
	p->fragment = (fragment & 0x3fff) != 0; /* more fragments, or an offset */
	p->no_ports = (fragment & 0x1fff) != 0;
	p->options = header > sizeof(*ip);
	p->l4 = p->link + header;
	p->left = length - header;
	return 1;
}

static __always_inline bool is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT;
}

/* Walks over one extension header. 1: it was one, 0: there is none or the last one is behind us. */
__noinline int walk(struct xdp_md *ctx, struct packet *p)
{
	__u32 length = 8;
	__u16 bits;
	__u8 *h;

	if (!p || !is_extension(p->protocol))
		return 0;
	h = bytes_at(ctx, p->l4, 8);
	if (!h || p->left < 8) {
		p->malformed = true;
		return 0;
	}
	if (p->protocol == IPPROTO_FRAGMENT) {
		bits = h[2] << 8 | h[3];
		p->fragment |= (bits & 0xfff9) != 0;
		p->no_ports |= (bits & 0xfff8) != 0;
	} else {
		length += h[1] * 8;
	}
	if (length > p->left) {
		p->malformed = true;
		return 0;
	}
	p->options = true;
	p->protocol = h[0];
	p->l4 += length;
	p->left -= length;
	return !p->no_ports; /* what follows in a later fragment is no header */
}

/* Reads the IPv6 header and what extends it. 0: too short to know the destination. */
__noinline int parse_ipv6(struct xdp_md *ctx, struct packet *p)
{
	struct ipv6 *ip;
	__u32 length;

	if (!p)
		return 0;
	ip = bytes_at(ctx, p->link, sizeof(*ip));
	if (!ip)
		return 0;
	p->source.family = p->destination.family = AF_INET6;
	p->source.bits = p->destination.bits = 32 + 128;
	__builtin_memcpy(p->source.address, ip->source, 16);
	__builtin_memcpy(p->destination.address, ip->destination, 16);
	p->protocol = ip->next;
	length = bpf_ntohs(ip->length);
	p->l4 = p->link + sizeof(*ip);
	p->left = length;
	if (bpf_ntohl(ip->version_class_flow) >> 28 != 6 || length > p->size - p->l4) {
		p->malformed = true;
		return 1;
	}
	for (int i = 0; i < EXTENSION_HEADERS; i++)
		if (!walk(ctx, p))
			break;
	if (!p->no_ports && is_extension(p->protocol))
		p->malformed = true; /* still not at the end */
	return 1;
}

/* Finds the IP header behind VLAN tags and reads it. False: not IP, or too short. */
static __always_inline bool parse(struct xdp_md *ctx, struct packet *p)
{
	__u16 *type;

	p->size = ctx->data_end - ctx->data;
	p->link = ETH_HEADER;
	for (int i = 0; i <= VLAN_TAGS; i++, p->link += VLAN_TAG) {
		type = bytes_at(ctx, p->link - 2, 2);
		if (!type)
			return false;
		switch (bpf_ntohs(*type)) {
		case ETH_P_IP:
			return parse_ipv4(ctx, p);
		case ETH_P_IPV6:
			return parse_ipv6(ctx, p);
		case ETH_P_8021Q:
		case ETH_P_8021AD:
			continue;
		}
		return false;
	}
	return false;
}

/* Reads ports and checks what must be true of every TCP or UDP packet. */
static __always_inline bool parse_ports(struct xdp_md *ctx, struct packet *p)
{
	if (p->protocol == IPPROTO_TCP) {
		struct tcp *t = bytes_at(ctx, p->l4, sizeof(*t));
		__u32 header;

		if (!t || p->left < sizeof(*t))
			return false;
		p->source_port = bpf_ntohs(t->source);
		p->destination_port = bpf_ntohs(t->destination);
		header = (t->offset >> 4) * 4;
		if (header < sizeof(*t) || header > p->left)
			return false;
		/* Scanners send these; no TCP does. */
		if (!(t->flags & (SYN | RST | ACK)) || (t->flags & SYN && t->flags & (FIN | RST)))
			return false;
		p->fresh = (t->flags & (SYN | ACK)) == SYN;
	} else {
		struct udp *u = bytes_at(ctx, p->l4, sizeof(*u));
		__u32 length;

		if (!u || p->left < sizeof(*u))
			return false;
		p->source_port = bpf_ntohs(u->source);
		p->destination_port = bpf_ntohs(u->destination);
		length = bpf_ntohs(u->length);
		/* The first fragment has a part of what its length says. */
		if (length < sizeof(*u) || (length > p->left && !p->fragment))
			return false;
		p->fresh = true;
	}
	return p->source_port && p->destination_port; /* nobody can answer port 0 */
}

/* Addresses that no packet from outside may come from. */
static __always_inline bool spoofed(struct packet *p)
{
	__u32 *a = p->source.address;

	if (p->source.family == AF_INET) {
		__u32 first = bpf_ntohl(a[0]) >> 24;

		/* "This" network, loopback, multicast, reserved and broadcast; and from itself to itself (land). */
		return first == 0 || first == 127 || first >= 224 || a[0] == p->destination.address[0];
	}
	if ((bpf_ntohl(a[0]) >> 24) == 0xff)
		return true;
	if (a[0] == 0 && a[1] == 0 && (a[2] == 0 || a[2] == bpf_htonl(0xffff)))
		return true; /* unspecified, loopback, IPv4-compatible and IPv4-mapped */
	return a[0] == p->destination.address[0] && a[1] == p->destination.address[1] &&
	       a[2] == p->destination.address[2] && a[3] == p->destination.address[3];
}
