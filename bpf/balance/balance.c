//go:build ignore

/* Which node of a site a packet is for, and how it gets there.
 *
 *	from a node of the site: outer headers off -> how it came: FORWARD, ASK or RETURN
 *	not for an accelerated address: pass; no flow (ping): pass
 *	SYN            -> the owner of the flow's row
 *	the flow is here (socket; for UDP the table of flows) -> pass
 *	where it was last known to be, else the owner of its row -> FORWARD
 *	the owner that does not have it -> ASK the nodes that may, one after the other; they take or RETURN it
 *	nobody has it  -> the owner takes it
 *
 * What this node takes goes on to the guard, if there is one, as if it had just arrived. */
#include "toobig.h"

char LICENSE[] SEC("license") = "Apache-2.0";

#define ORPHAN_NS 5000000000LL /* without a word of the daemon: this node takes nothing new */
#define ASKS_A_SECOND 50000     /* and CPU, that are not answered by the table of flows */
#define ANSWERS_A_SECOND 1000   /* and CPU: packets that are too big */

#define ALLOW_ASK 0
#define ALLOW_ANSWER 1

/* Whether one more of what is rare may be done in this second. */
static __always_inline bool may(__u32 what, __u64 now, __u64 at_most)
{
	struct allowance *a = bpf_map_lookup_elem(&allowances, &what);
	__u64 second = now >> 30;

	if (!a)
		return false;
	if (a->second != second) {
		a->second = second;
		a->used = 0;
	}
	return a->used++ < at_most;
}

static __always_inline __u32 flags_of(__u32 number)
{
	struct member *m = number ? bpf_map_lookup_elem(&members, &number) : NULL;

	return m ? m->flags : 0;
}

/* Whether a member can be sent a flow's packet, for it to be asked or to be the one. */
static __always_inline bool can_have(__u32 number, __u8 protocol)
{
	__u32 flags = flags_of(number);

	if (flags & MEMBER_SELF)
		return false;
	return flags & MEMBER_UP || (flags & MEMBER_SUSPECT && protocol == IPPROTO_TCP);
}

/* The next node to ask, from a step on: 1 is where the flow was last known to be, 2 and on the row's candidates. */
static __always_inline bool next_candidate(struct subject *s, struct settings *c, struct row *r, struct choice *out,
					   __u32 step, __u64 now)
{
	struct place *at;
	__u32 most = r->recent;
	__u8 final = step & STEP_FINAL;

	step &= ~STEP_FINAL;
	if (step <= 1) {
		at = place_of(&s->flow, now);
		if (at && at->member < MEMBERS && can_have(at->member, s->flow.protocol)) {
			out->member = at->member;
			out->step = 2 | final;
			return true;
		}
	}
	/* UDP flows begin without a sign, so that nodes which were never their row's owner are not asked. */
	if (s->flow.protocol == IPPROTO_TCP && now < c->unsettled_ns)
		most = CANDIDATES;
	for (__u32 i = 0; i < CANDIDATES; i++) {
		if (i > most || i + 2 < step || !can_have(r->members[i], s->flow.protocol))
			continue;
		if (!may(ALLOW_ASK, now, ASKS_A_SECOND))
			return false;
		out->member = r->members[i];
		out->step = (i + 3) | final;
		return true;
	}
	return false;
}

/* Whose row it is. A node without its daemon leaves its own rows to the next one. */
static __always_inline __u32 owner_of(struct row *r, struct settings *c, __u64 now)
{
	__u32 owner = r->members[0];

	if (owner != c->self || within(c->alive_ns, now, ORPHAN_NS))
		return owner;
	for (int i = 1; i < CANDIDATES; i++)
		if (flags_of(r->members[i]) & MEMBER_UP)
			return r->members[i];
	return owner;
}

/* Nobody was found who has the flow: it is the owner's of the row, which is nearly always this node. */
static __always_inline __u32 give(struct subject *s, struct settings *c, struct choice *out, struct arrival *a,
				  __u32 owner, __u64 now)
{
	if (owner && owner != c->self && !(a->step & STEP_FINAL) && flags_of(owner) & MEMBER_UP) {
		out->kind = KIND_FORWARD;
		out->member = owner;
		out->step = STEP_FINAL;
		return SENT_FORWARD;
	}
	if (!s->error && s->flow.protocol == IPPROTO_UDP)
		put_place(&s->flow, c, c->self, now, ENTRY_OWN);
	if (s->syn && !bpf_map_delete_elem(&flows, &s->flow))
		count_one(&entries, ENTRY_REMOVED);
	if (a->kind == KIND_RETURN)
		return LOCAL_RETURNED;
	return a->kind == KIND_FORWARD ? LOCAL_FORWARDED : LOCAL_OWN;
}

/* The node that decides: it has the flow, or looks for who does. */
static __always_inline __u32 decide(struct subject *s, struct settings *c, struct row *r, struct choice *out,
				    struct arrival *a, __u64 now)
{
	__u32 step = a->kind == KIND_RETURN ? a->step : a->step | 1;

	if (!s->syn && next_candidate(s, c, r, out, step, now)) {
		out->kind = KIND_ASK;
		if (!s->error)
			put_place(&s->flow, c, out->member, now, ENTRY_ASK);
		return SENT_ASK;
	}
	return give(s, c, out, a, owner_of(r, c, now), now);
}

static __always_inline __u32 forward(struct subject *s, struct settings *c, struct choice *out, __u32 to, __u64 now)
{
	out->kind = KIND_FORWARD;
	out->member = to;
	if (s->error)
		return SENT_FORWARD;
	/* A SYN makes no entry, so that a flood of them can't empty the table, but it corrects one. */
	if (!s->syn || bpf_map_lookup_elem(&flows, &s->flow))
		put_place(&s->flow, c, to, now, ENTRY_FORWARD);
	return SENT_FORWARD;
}

/* A packet that comes from outside. */
static __always_inline __u32 enter(struct subject *s, struct settings *c, struct row *r, struct choice *out,
				   struct arrival *a, __u64 now)
{
	__u32 owner = owner_of(r, c, now);
	struct place *at;

	if (owner == c->self || !owner)
		return decide(s, c, r, out, a, now);
	if (r->members[0] == c->self)
		out->step = STEP_FINAL; /* this node's, without its daemon: the others still take it for the owner */
	at = s->syn ? NULL : place_of(&s->flow, now);
	if (at && at->member < MEMBERS && can_have(at->member, s->flow.protocol))
		return forward(s, c, out, at->member, now);
	return forward(s, c, out, owner, now);
}

/* A fragment without ports goes where the first one went, if that is a step on. */
static __always_inline __u32 follow(struct subject *s, struct arrival *a, struct choice *out)
{
	struct choice *first = bpf_map_lookup_elem(&firsts, &s->fragments);

	if (a->kind == KIND_ASK) {
		if (first && !first->kind)
			return LOCAL_ASKED;
		out->kind = KIND_RETURN;
		out->member = a->from;
		out->step = a->step;
		return SENT_RETURN;
	}
	if (!first)
		return DROP_FRAGMENT;
	if (!first->kind)
		return a->kind == KIND_NONE ? LOCAL_OWN : a->kind == KIND_FORWARD ? LOCAL_FORWARDED : LOCAL_RETURNED;
	if (first->kind == KIND_RETURN || (a->kind != KIND_NONE && first->step <= a->step))
		return DROP_FRAGMENT;
	*out = *first;
	return first->kind == KIND_ASK ? SENT_ASK : SENT_FORWARD;
}

static __always_inline bool is_here(struct xdp_md *ctx, struct subject *s, struct settings *c, __u64 now)
{
	struct place *at;

	if (s->flow.protocol == IPPROTO_TCP)
		return has_socket(ctx, &s->flow);
	/* A daemon that is gone, or began anew, knows nothing of them. */
	at = within(c->alive_ns, now, ORPHAN_NS) ? place_of(&s->flow, now) : NULL;
	if (!at || at->member != c->self || at->epoch != c->epoch)
		return false;
	if (!s->error && !within(at->seen_ns, now, SEEN_EVERY_NS))
		at->seen_ns = now;
	return true;
}

/* Finds the node for a packet of a flow. */
static __always_inline __u32 place(struct xdp_md *ctx, struct subject *s, struct arrival *a, struct choice *out)
{
	__u32 zero = 0, at;
	struct settings *c = bpf_map_lookup_elem(&control, &zero);
	__u64 now = bpf_ktime_get_ns();
	struct row *r;

	if (!c || !c->self)
		return LOCAL_OWN;
	at = (c->half & 1) * ROWS + s->hash % ROWS;
	r = bpf_map_lookup_elem(&rows, &at);
	if (!r)
		return LOCAL_OWN;
	if (!s->syn && is_here(ctx, s, c, now))
		return a->kind == KIND_NONE ? LOCAL_OWN : a->kind == KIND_FORWARD ? LOCAL_FORWARDED : LOCAL_ASKED;
	switch (a->kind) {
	case KIND_NONE:
		return enter(s, c, r, out, a, now);
	case KIND_ASK:
		out->kind = KIND_RETURN;
		out->member = a->from;
		out->step = a->step;
		return SENT_RETURN;
	}
	return decide(s, c, r, out, a, now);
}

/* The way back of what another node passed on is not over that node, which has no business with answers. The guard
 * answers no frame that says it comes from its own receiver. */
static __always_inline bool hide_sender(struct xdp_md *ctx)
{
	__u16 *ends = bytes_at(ctx, 0, 12);

	if (!ends)
		return false;
	__builtin_memcpy(ends + 3, ends, 6);
	return true;
}

/* A packet for the port of the site's own, on the address of this node. 1: it was one of a flow's, and is as its
 * sender sent it; 0: reason is set. */
static __always_inline int arrive(struct xdp_md *ctx, struct packet *p, struct settings *c, struct arrival *a,
				  __u32 *reason)
{
	struct gue *g = bytes_at(ctx, p->l4 + sizeof(struct udp), sizeof(*g));
	__u8 *head = bytes_at(ctx, p->l4 + sizeof(struct udp), 1);
	struct address from = {.family = p->source.family};
	bool known = false, v6;
	__u32 *number, inner;
	__u64 key;

	*reason = LOCAL_HEARTBEAT;
	if (head && (*head & ~0x1f) == GUE_CONTROL)
		return 0;
	*reason = DROP_STRAY;
	if (!g || p->left < sizeof(struct udp) + sizeof(*g) || p->fragment || g->head != GUE_WORDS || g->flags ||
	    (g->protocol != PROTO_IPV4 && g->protocol != PROTO_IPV6) || g->kind < KIND_FORWARD || g->kind > KIND_RETURN)
		return 0;
	__builtin_memcpy(&key, g->key, 8);
	for (int i = 0; i < KEYS; i++)
		known |= c->keys[i] && c->keys[i] == key;
	__builtin_memcpy(from.words, p->source.address, 16);
	number = bpf_map_lookup_elem(&peers, &from);
	if (!known || !number)
		return 0;
	a->kind = g->kind;
	a->step = g->step;
	a->from = *number;
	v6 = g->protocol == PROTO_IPV6;
	inner = p->l4 + sizeof(struct udp) + sizeof(*g);
	if (!unwrap(ctx, p, inner, v6))
		return 0;
	return !(flags_of(a->from) & MEMBER_DIRECT) || hide_sender(ctx);
}

static __always_inline bool for_the_site(struct xdp_md *ctx, struct packet *p, struct settings *c)
{
	struct udp *u;

	if (p->malformed || p->protocol != IPPROTO_UDP || p->no_ports || p->source.family != c->family || !c->port)
		return false;
	if (p->destination.address[0] != c->address[0] || p->destination.address[1] != c->address[1] ||
	    p->destination.address[2] != c->address[2] || p->destination.address[3] != c->address[3])
		return false;
	u = bytes_at(ctx, p->l4, sizeof(*u));
	return u && p->left >= sizeof(*u) && u->destination == c->port;
}

/* Reads the packet, and takes off what a node of the site has put around it. False: reason is set. */
static __always_inline bool read(struct xdp_md *ctx, struct packet *p, struct arrival *a, __u32 *reason)
{
	__u32 zero = 0;
	struct settings *c = bpf_map_lookup_elem(&control, &zero);

	*reason = LOCAL_FOREIGN;
	if (!parse(ctx, p) || !c)
		return false;
	if (!for_the_site(ctx, p, c))
		return true;
	if (!arrive(ctx, p, c, a, reason))
		return false;
	*reason = DROP_STRAY;
	__builtin_memset(p, 0, sizeof(*p));
	return parse(ctx, p);
}

/* Judges a packet that was read. */
__noinline int judge(struct xdp_md *ctx, struct packet *p, struct arrival *a, struct choice *out)
{
	struct subject s = {};
	__u32 why;

	if (!p || !a || !out)
		return LOCAL_FOREIGN;
	if (!bpf_map_lookup_elem(&addresses, &p->destination))
		return a->kind ? DROP_STRAY : LOCAL_FOREIGN;
	if (!read_subject(ctx, p, &s))
		return a->kind ? DROP_STRAY : LOCAL_OTHER;
	why = s.later ? follow(&s, a, out) : place(ctx, &s, a, out);
	if (s.first) {
		struct choice made = *out;

		if (why < SENT_FORWARD)
			made.kind = KIND_NONE;
		bpf_map_update_elem(&firsts, &s.fragments, &made, BPF_ANY);
	}
	a->hash = s.hash;
	return why;
}

static __always_inline bool fits(struct packet *p, struct choice *c)
{
	__u32 number = c->member;
	struct member *m = bpf_map_lookup_elem(&members, &number);

	return m && ip_length(p) + (m->family == AF_INET ? OUTER_IPV4 : OUTER_IPV6) <= m->mtu;
}

static __always_inline bool reachable(struct choice *c)
{
	__u32 number = c->member;
	struct member *m = bpf_map_lookup_elem(&members, &number);

	return m && m->interface;
}

static __always_inline void count(__u32 why, __u32 size)
{
	struct count *n = bpf_map_lookup_elem(&counts, &why);

	if (n) {
		n->packets++;
		n->bytes += size;
	}
}

SEC("xdp")
int balance(struct xdp_md *ctx)
{
	struct packet p = {};
	struct arrival a = {};
	struct choice to = {};
	__u32 why, size = ctx->data_end - ctx->data;
	int leaves;

	if (read(ctx, &p, &a, &why))
		why = judge(ctx, &p, &a, &to);
	if (why >= SENT_FORWARD && why <= SENT_RETURN) {
		if (!reachable(&to)) {
			why = a.kind == KIND_ASK ? DROP_STRAY : LOCAL_UNREACHABLE;
		} else if (!fits(&p, &to)) {
			why = DROP_TOO_BIG;
			if (!a.kind && may(ALLOW_ANSWER, bpf_ktime_get_ns(), ANSWERS_A_SECOND) && too_big(ctx, &p, &to)) {
				count(ANSWERED_TOO_BIG, size);
				return XDP_TX;
			}
		} else {
			leaves = wrap(ctx, &p, &to, a.hash);
			if (!leaves)
				why = DROP_STRAY;
			count(why, size);
			return leaves ? leaves : XDP_DROP;
		}
	}
	count(why, size);
	if (why >= DROP_STRAY)
		return XDP_DROP;
	bpf_tail_call(ctx, &next, 0);
	return XDP_PASS; /* there is no guard */
}
