//go:build ignore

/* Which of the node's few sockets gets a connection or datagram that no connected socket owns.
 *
 * The kernel asks this program after its table of connected sockets and before its listening ones:
 *
 *	(protocol, family, address) -> prefixes: longest match -> extent of ranges
 *	port                        -> binary search in the extent -> slot
 *	slot                        -> group of sockets of the live generation -> one of them by hash
 *
 * No prefix or no range: the kernel goes on as if this program were not there. doc.go draws the maps. */
#include "nearcast.h"
#include "ports.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define GENERATIONS 8  /* sockets of this many hand-overs are kept side by side; a power of two */
#define SLOTS 16       /* different uses of sockets that rules can name */
#define GROUPS (4 * SLOTS)
#define GROUP_SOCKETS 64 /* sockets of one slot, protocol and family */

enum counter {
	COUNT_SELECTED,  /* given to a socket of the live generation */
	COUNT_HELD,      /* datagrams given to an earlier generation, which holds their flow */
	COUNT_NO_SOCKET, /* wanted by a rule, but there was no socket: refused */
	COUNT_UNFIT,     /* the socket did not fit protocol or family: refused */
	COUNTERS,
};

enum steer {
	STEER_HASH,    /* by hash of the remote address and port */
	STEER_CPU,     /* by the CPU that works on the packet */
	STEER_TCP_CPU, /* TCP by CPU, UDP by hash */
};

struct group {
	__u32 generation; /* these sockets are of it; another one's: nobody is here */
	__u32 count;
};

struct switches {
	__u32 live;    /* generation that new connections go to: 0..255, so that one byte changes */
	__u32 steer;   /* one of enum steer */
	__u32 holding; /* not 0: look into held */
};

struct flow {
	__u8 family;
	__u8 zero;
	__u16 remote_port; /* network order */
	__u16 local_port;  /* host order */
	__u16 zero2;
	__u32 remote[4];
	__u32 local[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct switches);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATIONS * GROUPS);
	__type(key, __u32);
	__type(value, struct group);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, GENERATIONS * GROUPS * GROUP_SOCKETS);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16); /* the loader sets it */
	__type(key, struct flow);
	__type(value, __u32);
} held SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline __u32 spread(struct bpf_sk_lookup *ctx, __u32 steer)
{
	__u32 h;

	if (steer == STEER_CPU || (steer == STEER_TCP_CPU && ctx->protocol == IPPROTO_TCP))
		return bpf_get_smp_processor_id();
	if (ctx->family == AF_INET)
		h = ctx->remote_ip4;
	else
		h = mix32(ctx->remote_ip6[0] ^ mix32(ctx->remote_ip6[1])) ^
		    mix32(ctx->remote_ip6[2] ^ mix32(ctx->remote_ip6[3] + 1));
	return mix32(h ^ ((__u32)ctx->remote_port << 16) ^ ctx->local_port);
}

/* Gives the connection or datagram to a socket of the group, and says whether there was one. */
static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 generation, __u32 index, __u32 hash,
				  __u32 what)
{
	__u32 at = (generation % GENERATIONS) * GROUPS + index;
	struct group *g = bpf_map_lookup_elem(&groups, &at);
	struct bpf_sock *sk;
	__u32 socket;
	long err;

	if (!g || g->count == 0 || g->generation != generation)
		return 0;
	socket = at * GROUP_SOCKETS + (hash % g->count) % GROUP_SOCKETS;
	sk = bpf_map_lookup_elem(&sockets, &socket);
	if (!sk) {
		/* This socket of the group is closed, so its process is going or gone. Another one will do. */
		socket = at * GROUP_SOCKETS;
		sk = bpf_map_lookup_elem(&sockets, &socket);
		if (!sk)
			return 0;
	}
	/* The socket is chosen: the kernel must not choose again in the socket's SO_REUSEPORT group, which may
	 * hold sockets of another process. */
	err = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	count_one(&counters, err ? COUNT_UNFIT : what);
	return err ? -1 : 1;
}

/* The generation that holds this datagram's flow: the live one, unless an earlier process still serves it. */
static __always_inline __u32 holder(struct bpf_sk_lookup *ctx, struct prefix *local, struct switches *c)
{
	struct flow f = {
		.family = ctx->family,
		.remote_port = ctx->remote_port,
		.local_port = ctx->local_port,
	};
	__u32 *generation;

	__builtin_memcpy(f.local, local->address, sizeof(f.local));
	if (ctx->family == AF_INET) {
		f.remote[0] = ctx->remote_ip4;
	} else {
		f.remote[0] = ctx->remote_ip6[0];
		f.remote[1] = ctx->remote_ip6[1];
		f.remote[2] = ctx->remote_ip6[2];
		f.remote[3] = ctx->remote_ip6[3];
	}
	generation = bpf_map_lookup_elem(&held, &f);
	return generation ? *generation : c->live;
}

SEC("sk_lookup")
int dispatch(struct bpf_sk_lookup *ctx)
{
	struct prefix key = {.protocol = ctx->protocol, .family = ctx->family};
	struct switches *c;
	struct extent *e;
	struct range *r;
	__u32 zero = 0, index, hash, generation;
	int done;

	if (ctx->family == AF_INET) {
		key.bits = 32 + 32;
		key.address[0] = ctx->local_ip4;
	} else {
		key.bits = 32 + 128;
		key.address[0] = ctx->local_ip6[0];
		key.address[1] = ctx->local_ip6[1];
		key.address[2] = ctx->local_ip6[2];
		key.address[3] = ctx->local_ip6[3];
	}
	e = bpf_map_lookup_elem(&prefixes, &key);
	if (!e)
		return SK_PASS; /* not an accelerated address */
	r = find_range(e, ctx->local_port);
	if (!r)
		return SK_PASS; /* no listener: the machine's own services on this address go on */
	c = bpf_map_lookup_elem(&control, &zero);
	if (!c)
		return SK_PASS; /* can't happen: the array has one element */

	index = (r->value % SLOTS) * 4 + (ctx->protocol == IPPROTO_UDP ? 2 : 0) + (ctx->family == AF_INET6);
	hash = spread(ctx, c->steer);
	if (c->holding && ctx->protocol == IPPROTO_UDP) {
		generation = holder(ctx, &key, c);
		if (generation != c->live && assign(ctx, generation, index, hash, COUNT_HELD) > 0)
			return SK_PASS;
	}
	done = assign(ctx, c->live, index, hash, COUNT_SELECTED);
	if (done > 0)
		return SK_PASS;
	if (done == 0)
		count_one(&counters, COUNT_NO_SOCKET);
	/* A listener wants this, and nobody is there to take it: the daemon is being restarted, or a socket of
	 * the wrong kind was put in. To pass would let a service on a wildcard address answer for the
	 * accelerator. Dropped, the kernel refuses it as if nobody listened. */
	return SK_DROP;
}
