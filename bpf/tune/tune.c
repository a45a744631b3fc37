//go:build ignore

/* What a TCP connection of a marked socket starts with, and what its end teaches about the client's network.
 *
 *	established -> leg of the socket (inherited from its listener) -> congestion control of the leg
 *	            -> client network -> learned window, if it is fresh and the path looks like the same one
 *	retransmit  -> was it of the first flight, and too much of it? -> halve the network's window at once
 *	every RTT   -> best delivery so far
 *	closed      -> learn; one sample in so many to user space
 *
 * Values of the networks map are written by several CPUs without a lock: they are estimates, each field is
 * written whole, and a lost update is one connection's opinion lost. doc.go has the reasoning. */
#include "nearcast.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define LEGS 4
#define WINDOW_DEFAULT 10 /* what the kernel starts with (RFC 6928) */
#define SOL_SOCKET 1
#define SO_MAX_PACING_RATE 47
#define SOL_TCP 6
#define TCP_CONGESTION 13

enum counter {
	COUNT_CONNECTIONS,  /* of marked sockets */
	COUNT_RAISED,       /* started with a learned window */
	COUNT_UNKNOWN,      /* the network was not known, or too long ago */
	COUNT_PATH_CHANGED, /* known, but the handshake took much longer than it should */
	COUNT_CROWDED,      /* known, but other connections were using the window up at this moment */
	COUNT_OVERSHOT,     /* lost too much of a raised first flight: the window was halved */
	COUNT_LEARNED,      /* connections that taught something */
	COUNT_SAMPLES_LOST, /* the ring to user space was full */
	COUNTERS,
};

struct policy {
	char congestion[16];   /* empty: the system's */
	__u32 window_max;      /* segments; up to WINDOW_DEFAULT: windows are not raised */
	__u32 sample_every;    /* connections a sample; 0: none */
	__u64 half_life_ns;    /* after so long without news a window counts half */
};

struct network {
	__u32 window;     /* segments that it may be sent at once */
	__u32 rtt_us;     /* smallest of the last connection that taught us */
	__u32 level;      /* leaky bucket: segments recently allowed to be sent at once ... */
	__u32 overshot;   /* times that a raised first flight lost too much */
	__u64 level_ns;   /* ... as of then */
	__u64 updated_ns; /* last evidence */
	__u64 learned;    /* connections that taught */
};

struct flow {
	__u64 network;  /* key */
	__u64 began_ns;
	__u32 leg;
	__u32 window;     /* given; 0: the kernel's */
	__u32 first_seq;  /* sequence number of the first byte */
	__u32 lost;       /* segments of the first flight sent again */
	__u32 best;       /* segments a smallest RTT, the best delivery rate seen */
	__u32 published;  /* best at the last time we learned from it */
	__u32 rtt_us;     /* smallest */
	__u32 overshot;   /* not 0: the network's window was halved for it */
	__u32 segment;    /* bytes */
	__u32 paced;      /* not 0: the first flight's pacing is still on */
};

struct sample {
	__u64 network;
	__u64 duration_ns;
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 leg;
	__u32 window;
	__u32 learned_window;
	__u32 rtt_us;
	__u32 rtt_smoothed_us;
	__u32 delivered;
	__u32 retransmitted;
	__u32 best;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LEGS);
	__type(key, __u32);
	__type(value, struct policy);
} policies SEC(".maps");

/* Which leg a socket is. User space writes it for a listener, and the sockets it accepts inherit it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, __u32);
	__type(value, __u32);
} legs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 17); /* the loader sets it */
	__type(key, __u64);
	__type(value, struct network);
} networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} samples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* The names of bpf2go's Go types. */
struct sample *unused_sample __attribute__((unused));

static __always_inline __u32 min32(__u32 a, __u32 b) { return a < b ? a : b; }
static __always_inline __u32 max32(__u32 a, __u32 b) { return a > b ? a : b; }

/* The client's /24 or /48, with the IP version in the top byte. */
static __always_inline __u64 network_of(struct bpf_sock_ops *ctx)
{
	if (ctx->family == AF_INET)
		return 4ULL << 56 | bpf_ntohl(ctx->remote_ip4) >> 8;
	/* A socket of both families knows an IPv4 client by its mapped address. */
	if (ctx->remote_ip6[0] == 0 && ctx->remote_ip6[1] == 0 && ctx->remote_ip6[2] == bpf_htonl(0xffff))
		return 4ULL << 56 | bpf_ntohl(ctx->remote_ip6[3]) >> 8;
	return 6ULL << 56 | (__u64)bpf_ntohl(ctx->remote_ip6[0]) << 16 | bpf_ntohl(ctx->remote_ip6[1]) >> 16;
}

/* What a network's window is worth now. */
static __always_inline __u32 aged_window(struct network *n, struct policy *p, __u64 now)
{
	__u64 age = now > n->updated_ns ? now - n->updated_ns : 0;
	__u64 halvings = p->half_life_ns ? age / p->half_life_ns : 0;

	if (halvings > 20)
		return 0;
	return min32(n->window >> halvings, p->window_max);
}

/* Takes what may be sent at once from the network's bucket, which refills by a window an RTT: many connections
 * that open together share one window instead of each sending all of it. */
static __always_inline __u32 take(struct network *n, __u32 window, __u64 now)
{
	__u64 passed_us = now > n->level_ns ? (now - n->level_ns) / 1000 : 0;
	__u32 rtt_us = max32(n->rtt_us, 1000);
	__u32 level = n->level, drained, left;

	drained = passed_us >= 100ULL * rtt_us ? window * 100 : (__u32)(passed_us * window / rtt_us);
	level = level > drained ? level - drained : 0;
	left = window > level ? window - level : 0;
	if (left < WINDOW_DEFAULT)
		left = WINDOW_DEFAULT;
	n->level = level + left;
	n->level_ns = now;
	return left;
}

static __always_inline void raise_window(struct bpf_sock_ops *ctx, struct policy *p, struct flow *f, __u64 now)
{
	struct network *n = bpf_map_lookup_elem(&networks, &f->network);
	__u32 window, rtt_us = ctx->srtt_us >> 3;
	__u64 rate;
	int value;

	if (!n || (window = aged_window(n, p, now)) <= WINDOW_DEFAULT) {
		count_one(&counters, COUNT_UNKNOWN);
		return;
	}
	/* A handshake that took far longer than this network's packets do: another path, or a full queue. */
	if (rtt_us > 2 * n->rtt_us + 10000) {
		count_one(&counters, COUNT_PATH_CHANGED);
		return;
	}
	window = take(n, window, now);
	if (window <= WINDOW_DEFAULT) {
		count_one(&counters, COUNT_CROWDED);
		return;
	}
	value = window;
	if (bpf_setsockopt(ctx, SOL_TCP, TCP_BPF_IW, &value, sizeof(value)))
		return; /* data has been sent already (fast open): nothing to raise */
	f->window = window;
	count_one(&counters, COUNT_RAISED);

	/* The first flight leaves evenly in half an RTT: a burst at the speed of our own link would overrun
	 * queues that the same number of packets at twice the path's speed does not. */
	rate = 2ULL * window * f->segment * 1000000 / max32(rtt_us, 1000);
	value = rate > 0x7fffffff ? 0x7fffffff : (int)rate;
	if (!bpf_setsockopt(ctx, SOL_SOCKET, SO_MAX_PACING_RATE, &value, sizeof(value)))
		f->paced = 1;
}

static __always_inline void unpace(struct bpf_sock_ops *ctx, struct flow *f)
{
	int unlimited = -1;

	if (!f->paced)
		return;
	f->paced = 0;
	bpf_setsockopt(ctx, SOL_SOCKET, SO_MAX_PACING_RATE, &unlimited, sizeof(unlimited));
}

static __always_inline void established(struct bpf_sock_ops *ctx, struct bpf_sock *sk, bool passive)
{
	__u32 *leg = bpf_sk_storage_get(&legs, sk, NULL, 0);
	struct policy *p;
	struct flow *f;
	__u32 l;

	if (!leg)
		return; /* not one of ours */
	l = *leg;
	p = bpf_map_lookup_elem(&policies, &l);
	if (!p)
		return;
	if (bpf_sk_storage_get(&flows, sk, NULL, 0))
		return; /* the program of another process has already done it */
	f = bpf_sk_storage_get(&flows, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!f)
		return; /* no memory: the connection does without us */
	count_one(&counters, COUNT_CONNECTIONS);
	f->leg = l;
	f->network = network_of(ctx);
	f->began_ns = bpf_ktime_get_ns();
	f->first_seq = ctx->snd_nxt;
	f->segment = max32(ctx->mss_cache, 500);
	f->rtt_us = max32(ctx->srtt_us >> 3, 1);
	if (passive && p->window_max > WINDOW_DEFAULT)
		raise_window(ctx, p, f, f->began_ns);
	/* After the window: BBR takes its first rate from it. */
	if (p->congestion[0])
		bpf_setsockopt(ctx, SOL_TCP, TCP_CONGESTION, p->congestion, sizeof(p->congestion));
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* More than an eighth of the first flight was lost: that is no random loss, it was too much at once. */
static __always_inline void retransmitted(struct bpf_sock_ops *ctx, struct flow *f)
{
	__u32 given = max32(f->window, WINDOW_DEFAULT);
	struct network *n;

	if (ctx->args[0] - f->first_seq >= given * f->segment)
		return; /* of a later flight */
	f->lost += ctx->args[1];
	if (f->overshot || f->lost * 8 <= given)
		return;
	f->overshot = 1;
	n = bpf_map_lookup_elem(&networks, &f->network);
	if (!n)
		return;
	n->window = max32(min32(n->window, given) / 2, WINDOW_DEFAULT);
	n->updated_ns = bpf_ktime_get_ns();
	if (f->window) {
		n->overshot++;
		count_one(&counters, COUNT_OVERSHOT);
	}
}

/* Puts what the connection has shown into its network's entry. */
static __always_inline void learn(struct flow *f, struct policy *p, __u32 delivered)
{
	__u32 given = max32(f->window, WINDOW_DEFAULT), evidence = f->best, window;
	struct network *n, fresh = {};
	__u64 now;

	if (f->overshot || f->leg >= LEGS)
		return; /* it has taught its lesson */
	/* A short connection can't show a rate, but that its first flight passed. */
	if (delivered < 2 * given)
		evidence = max32(min32(evidence, given), min32(given, delivered));
	/* Slow start would double a window that passed. */
	window = max32(min32(2 * evidence, p->window_max), WINDOW_DEFAULT);
	now = bpf_ktime_get_ns();
	n = bpf_map_lookup_elem(&networks, &f->network);
	if (!n) {
		if (window <= WINDOW_DEFAULT)
			return; /* nothing worth an entry */
		fresh.window = window;
		fresh.rtt_us = f->rtt_us;
		fresh.updated_ns = now;
		fresh.learned = 1;
		bpf_map_update_elem(&networks, &f->network, &fresh, BPF_NOEXIST);
		return;
	}
	__u32 old = aged_window(n, p, now);
	if (window >= old) {
		n->window = window;
	} else if (delivered >= 2 * given) {
		n->window = (3 * old + window) / 4; /* slower members of the network count, but slowly */
	} else if (delivered >= given) {
		n->window = old;
	} else {
		return; /* too short to say anything about an ageing entry */
	}
	n->rtt_us = n->rtt_us ? (3 * n->rtt_us + f->rtt_us) / 4 : f->rtt_us;
	n->updated_ns = now;
	n->learned++;
}

/* The segments that the path carries in its smallest RTT, by the kernel's own rate sample. */
static __always_inline void observe(struct bpf_sock_ops *ctx, struct flow *f)
{
	__u32 interval_us = ctx->rate_interval_us, best;
	__u32 rtt_us = ctx->srtt_us >> 3;

	/* The kernel's minimum is not in the context; the smallest smoothed RTT is near to it. */
	if (rtt_us && rtt_us < f->rtt_us)
		f->rtt_us = rtt_us;
	if (!interval_us)
		return;
	best = (__u32)((__u64)ctx->rate_delivered * f->rtt_us / interval_us);
	if (best > f->best)
		f->best = best;
}

static __always_inline void closed(struct bpf_sock_ops *ctx, struct flow *f, struct policy *p, __u32 delivered)
{
	struct network *n;
	struct sample *s;

	learn(f, p, delivered);
	count_one(&counters, COUNT_LEARNED);
	if (!p->sample_every || bpf_get_prandom_u32() % p->sample_every)
		return;
	s = bpf_ringbuf_reserve(&samples, sizeof(*s), 0);
	if (!s) {
		count_one(&counters, COUNT_SAMPLES_LOST);
		return;
	}
	n = bpf_map_lookup_elem(&networks, &f->network);
	s->network = f->network;
	s->duration_ns = bpf_ktime_get_ns() - f->began_ns;
	s->bytes_acked = ctx->bytes_acked;
	s->bytes_received = ctx->bytes_received;
	s->leg = f->leg;
	s->window = f->window;
	s->learned_window = n ? n->window : 0;
	s->rtt_us = f->rtt_us;
	s->rtt_smoothed_us = ctx->srtt_us >> 3;
	s->delivered = delivered;
	s->retransmitted = ctx->total_retrans;
	s->best = f->best;
	bpf_ringbuf_submit(s, 0);
}

SEC("sockops")
int tune(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct bpf_tcp_sock *tp;
	struct policy *p;
	struct flow *f;
	__u32 leg;

	if (!sk || !ctx->is_fullsock)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(ctx, sk, true);
		return 1;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(ctx, sk, false);
		return 1;
	case BPF_SOCK_OPS_RETRANS_CB:
	case BPF_SOCK_OPS_RTT_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}
	f = bpf_sk_storage_get(&flows, sk, NULL, 0);
	if (!f)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_RETRANS_CB) {
		retransmitted(ctx, f);
		return 1;
	}
	tp = bpf_tcp_sock(sk);
	leg = f->leg;
	p = bpf_map_lookup_elem(&policies, &leg);
	if (!tp || !p)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_RTT_CB) {
		observe(ctx, f);
		if (tp->delivered > max32(f->window, WINDOW_DEFAULT))
			unpace(ctx, f);
		/* Connections that live for hours should not keep what they know till the end. */
		if (f->best > 2 * max32(f->published, WINDOW_DEFAULT)) {
			f->published = f->best;
			learn(f, p, tp->delivered);
		}
		return 1;
	}
	if (ctx->args[1] == BPF_TCP_CLOSE) {
		observe(ctx, f);
		closed(ctx, f, p, tp->delivered);
	}
	return 1;
}
