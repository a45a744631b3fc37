//go:build ignore

/* Which packets for accelerated addresses are dropped before the network stack has any work with them.
 *
 *	Ethernet, up to two VLAN tags -> IPv4, or IPv6 and its extension headers
 *	  -> not for an accelerated address: pass; so does what can't be read that far
 *	  -> malformed? fragment? -> is there a listener? -> source lists of the listener
 *	  -> new TCP flow or UDP packet: tokens of the source, then of the listener
 *	  -> a SYN beyond the flood threshold: a cookie, if the socket's queue is full
 *
 * Every drop has a reason and a counter. doc.go draws the maps. */
#include "cookie.h"
#include "lists.h"

/* The kernel's cookies are for programs under the GPL only. This file and the headers that it includes are offered
 * under Apache-2.0 OR GPL-2.0-only; the rest of Nearcast is Apache-2.0. */
char LICENSE[] SEC("license") = "GPL";

/* Takes a token at the time now. *arrival is when the next one would be there if none were saved up. */
static __always_inline bool take(__u64 *arrival, struct rate *r, __u64 now)
{
	__u64 due = *arrival > now ? *arrival : now;

	if (due - now > r->burst_ns)
		return false;
	*arrival = due + r->cost_ns;
	return true;
}

static __always_inline bool source_may(struct packet *p, __u32 index, struct listener *l, __u64 now)
{
	struct source key = {.listener = index, .family = p->source.family};
	__u64 *arrival, first = now + l->source.cost_ns;

	key.address = p->source.address[0];
	if (p->source.family == AF_INET6)
		key.address |= (__u64)p->source.address[1] << 32;
	arrival = bpf_map_lookup_elem(&sources, &key);
	if (arrival)
		return take(arrival, &l->source, now);
	bpf_map_update_elem(&sources, &key, &first, BPF_ANY);
	return true;
}

/* A SYN beyond the threshold. With a queue that isn't full the socket takes it itself. */
__noinline int flooded(struct xdp_md *ctx, struct packet *p)
{
	struct bpf_sock *sk;
	__s64 cookie = -1;

	if (!p || p->options || p->fragment || !can_answer(ctx))
		return PASS_LISTENER; /* rare, and not worth the code; or the stack's to answer */
	sk = socket_of(ctx, p);
	if (!sk)
		return PASS_LISTENER;
	if (sk->state == BPF_TCP_LISTEN)
		cookie = cookie_of(ctx, p, sk, false);
	bpf_sk_release(sk);
	if (cookie <= 0)
		return PASS_LISTENER;
	return answer(ctx, p, (__u32)cookie) ? ANSWERED : PASS_LISTENER;
}

/* A TCP packet that asks for nothing new, while cookies are out: it is one's return, or a flow's, or a flood's. */
__noinline int returned(struct xdp_md *ctx, struct packet *p)
{
	struct bpf_sock *sk;
	bool good = true;

	if (!p || p->options || p->fragment)
		return PASS_LISTENER;
	sk = socket_of(ctx, p);
	if (!sk)
		return PASS_LISTENER;
	if (sk->state == BPF_TCP_LISTEN)
		good = cookie_of(ctx, p, sk, true) == 0;
	bpf_sk_release(sk);
	return good ? PASS_LISTENER : DROP_COOKIE;
}

static __always_inline bool on_list(struct membership *m, __u16 number)
{
	__u32 bit = number - 1;

	return m && m->lists[bit / 64 % LIST_WORDS] >> bit % 64 & 1;
}

/* What a listener's lists say to a source. Those of networks come first: who names a network means it. */
static __always_inline int ask_lists(struct packet *p, struct listener *l)
{
	struct membership *m = membership_of(&p->source);
	__u32 country = m ? m->country : 0;

	if (l->deny && on_list(m, l->deny))
		return DROP_DENIED;
	if (l->allow && on_list(m, l->allow))
		return PASS_LISTENER;
	if (l->flags & LISTENER_COUNTRIES && l->refused[country / 64 % COUNTRY_WORDS] >> country % 64 & 1)
		return DROP_COUNTRY;
	if (l->allow && !(l->flags & LISTENER_ONLY_COUNTRIES))
		return DROP_DENIED;
	return PASS_LISTENER;
}

/* What a listener says to a packet that is for it. */
static __always_inline int ask_listener(struct xdp_md *ctx, struct packet *p, __u32 index)
{
	struct listener *l = bpf_map_lookup_elem(&listeners, &index);
	struct state *s = bpf_map_lookup_elem(&states, &index);
	__u64 now;
	int why;

	if (!l || !s)
		return PASS_LISTENER;
	if (p->fragment && l->flags & LISTENER_NO_FRAGMENTS)
		return DROP_FRAGMENT;
	if (l->allow | l->deny || l->flags & LISTENER_COUNTRIES) {
		why = ask_lists(p, l);
		if (why != PASS_LISTENER)
			return why;
	}
	if (!(l->source.cost_ns | l->total.cost_ns | l->flood.cost_ns))
		return PASS_LISTENER;
	if (!p->fresh && !s->cookies_ns)
		return PASS_LISTENER;
	now = bpf_ktime_get_ns();
	if (!p->fresh)
		return now - s->cookies_ns < COOKIES_VALID_NS ? returned(ctx, p) : PASS_LISTENER;
	if (l->source.cost_ns && !source_may(p, index, l, now))
		return DROP_SOURCE;
	if (l->total.cost_ns && !take(&s->total, &l->total, now))
		return DROP_LISTENER;
	if (!l->flood.cost_ns || p->protocol != IPPROTO_TCP || take(&s->flood, &l->flood, now))
		return PASS_LISTENER;
	why = flooded(ctx, p);
	if (why == ANSWERED)
		s->cookies_ns = now;
	return why;
}

/* What no listener wants, on an address where nothing else lives. A listener that is gone leaves flows. */
__noinline int unwanted(struct xdp_md *ctx, struct packet *p)
{
	struct bpf_sock *sk;
	bool flow;

	if (!p || p->protocol != IPPROTO_TCP || p->fresh)
		return DROP_NOBODY;
	sk = socket_of(ctx, p);
	if (!sk)
		return DROP_NOBODY;
	flow = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return flow ? PASS_OTHER : DROP_NOBODY;
}

__noinline int judge(struct xdp_md *ctx, struct packet *p)
{
	__u32 *address;
	struct prefix key;
	struct extent *e;
	struct range *r;

	if (!p)
		return PASS_FOREIGN;
	address = bpf_map_lookup_elem(&addresses, &p->destination);
	if (!address)
		return PASS_FOREIGN;
	if (p->malformed)
		return DROP_MALFORMED;
	if (spoofed(p))
		return DROP_SPOOFED;
	if (p->fragment && *address & ADDRESS_NO_FRAGMENTS)
		return DROP_FRAGMENT;
	if (p->no_ports)
		return PASS_OTHER;
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		return PASS_OTHER; /* path MTU discovery lives from it, and the kernel limits its answers itself */
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return *address & ADDRESS_EXCLUSIVE ? DROP_NOBODY : PASS_OTHER;
	if (!parse_ports(ctx, p))
		return DROP_MALFORMED;
	key = p->destination;
	key.protocol = p->protocol;
	e = bpf_map_lookup_elem(&prefixes, &key);
	r = e ? find_range(e, p->destination_port) : NULL;
	if (r)
		return ask_listener(ctx, p, r->value);
	return *address & ADDRESS_EXCLUSIVE ? unwanted(ctx, p) : PASS_OTHER;
}

static __always_inline void report(struct packet *p, enum reason why)
{
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&control, &zero);
	struct event *e;

	if (!s || !s->sample_every || bpf_get_prandom_u32() % s->sample_every)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return; /* events are samples: one more is missing */
	e->time_ns = bpf_ktime_get_ns();
	e->reason = why;
	e->length = p->size;
	__builtin_memcpy(e->source, p->source.address, 16);
	__builtin_memcpy(e->destination, p->destination.address, 16);
	e->source_port = p->source_port;
	e->destination_port = p->destination_port;
	e->family = p->source.family;
	e->protocol = p->protocol;
	e->zero = 0;
	bpf_ringbuf_submit(e, 0);
}

SEC("xdp")
int guard(struct xdp_md *ctx)
{
	struct packet p = {};
	__u32 why = PASS_FOREIGN;
	struct count *n;

	if (parse(ctx, &p))
		why = judge(ctx, &p);
	n = bpf_map_lookup_elem(&counts, &why);
	if (n) {
		n->packets++;
		n->bytes += p.size;
	}
	if (why < ANSWERED)
		return XDP_PASS;
	if (why == ANSWERED)
		return XDP_TX;
	report(&p, why);
	return XDP_DROP;
}
