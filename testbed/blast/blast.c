//go:build ignore

/* Frames made and counted by the kernel: faster than what is measured with them.
 *
 *	send     run with live frames, writes each frame anew and redirects it into one end of a cable
 *	sink     at the end that frames were sent from: counts what comes back, and throws it away
 *	arrived  on a socket: counts what reached it, and throws it away */
#include "../../bpf/include/packet.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define FRAME_MAX 96
#define SPREAD 0x9E3779B1 /* odd, so that it only changes the order of networks */

/* Frames differ in source address, source port and (TCP) sequence number. */
struct stream {
	__u32 interface; /* that frames leave by */
	__u32 networks;  /* sources are in so many, Network() of which there are */
	__u32 hosts;     /* bits of a source that vary within its network */
	__u32 length;
	__u32 tcp;
	__u32 v6;
	__u32 ip_sum;    /* of the headers without what differs */
	__u32 l4_sum;
	__u32 frame[FRAME_MAX / 4];
};

const volatile struct stream stream;

enum what {
	CAME_BACK,
	SYN_ACK, /* of those that came back */
	ARRIVED,
	COUNTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline __u16 checksum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	return sum ? sum : 0xffff; /* zero would mean that there is none */
}

/* The transport header: source port, sequence number, sum. */
static __always_inline void write_l4(__u16 *l4, __u64 sum, __u32 random)
{
	__u16 port = bpf_htons(random | 1024);

	l4[0] = port;
	sum += port;
	if (!stream.tcp) {
		((struct udp *)l4)->sum = checksum(sum);
		return;
	}
	((struct tcp *)l4)->seq = random;
	((struct tcp *)l4)->sum = checksum(sum + random);
}

SEC("xdp")
int send(struct xdp_md *ctx)
{
	__u32 random = bpf_get_prandom_u32(), other = mix32(random ^ 0x5bd1e995);
	__u32 network = ((__u64)random * stream.networks) >> 32;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (stream.length > FRAME_MAX || data + stream.length > end)
		return XDP_ABORTED;
	for (int i = 0; i < FRAME_MAX / 4; i++)
		if (i * 4 + 4 <= stream.length)
			((__u32 *)data)[i] = stream.frame[i];
	network = network * SPREAD & ((1 << 19) - 1);
	if (!stream.v6) {
		struct ipv4 *ip = data + ETH_HEADER;

		if ((void *)ip + sizeof(*ip) + sizeof(struct tcp) > end && stream.tcp)
			return XDP_ABORTED;
		if ((void *)ip + sizeof(*ip) + sizeof(struct udp) > end)
			return XDP_ABORTED;
		ip->source = bpf_htonl(1 << 29 | network << 10 | (other & stream.hosts));
		ip->sum = checksum((__u64)stream.ip_sum + ip->source);
		write_l4((void *)(ip + 1), (__u64)stream.l4_sum + ip->source, other);
	} else {
		struct ipv6 *ip = data + ETH_HEADER;

		if ((void *)ip + sizeof(*ip) + sizeof(struct tcp) > end)
			return XDP_ABORTED;
		ip->source[0] = bpf_htonl(0x2a << 24 | network);
		ip->source[1] = bpf_htonl(other & stream.hosts);
		write_l4((void *)(ip + 1), (__u64)stream.l4_sum + ip->source[0] + ip->source[1], other);
	}
	return bpf_redirect(stream.interface, 0);
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__u16 *type = bytes_at(ctx, ETH_HEADER - 2, 2);
	__u32 l4 = ETH_HEADER;
	__u8 *flags;

	count_one(&counts, CAME_BACK);
	if (!type)
		return XDP_DROP;
	if (*type == bpf_htons(ETH_P_IP))
		l4 += sizeof(struct ipv4);
	else
		l4 += sizeof(struct ipv6);
	flags = bytes_at(ctx, l4 + 13, 1);
	if (flags && (*flags & (SYN | ACK | RST)) == (SYN | ACK))
		count_one(&counts, SYN_ACK);
	return XDP_DROP;
}

SEC("socket")
int arrived(struct __sk_buff *skb)
{
	count_one(&counts, ARRIVED);
	return 0;
}
