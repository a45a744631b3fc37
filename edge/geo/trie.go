package geo

import "net/netip"

// trie finds the longest prefix that holds an address, and the widest network around the address in
// which every address has that same longest prefix. IPv4 and IPv6 are separate.
type trie struct {
	nodes  []trieNode
	v4, v6 int32 // roots; 0: empty, node 0 is never used
}

type trieNode struct {
	child [2]int32
	value int32 // index + 1 of what was inserted; 0: nothing
}

// insert adds a prefix with a value of 0 or more; the same prefix again replaces it.
func (t *trie) insert(p netip.Prefix, value int) {
	if len(t.nodes) == 0 {
		t.nodes = make([]trieNode, 3)
		t.v4, t.v6 = 1, 2
	}
	at := t.root(p.Addr())
	b, base := bits(p.Addr())
	for i := range p.Bits() {
		next := t.nodes[at].child[bit(&b, base+i)]
		if next == 0 {
			next = int32(len(t.nodes))
			t.nodes = append(t.nodes, trieNode{})
			t.nodes[at].child[bit(&b, base+i)] = next
		}
		at = next
	}
	t.nodes[at].value = int32(value) + 1
}

// find returns the value of the longest prefix around a, or -1, and the length of the network in which
// that holds for every address.
func (t *trie) find(a netip.Addr) (value, scope int) {
	at := t.root(a)
	if at == 0 {
		return -1, 0
	}
	b, base := bits(a)
	best, depth, width := int32(0), 0, 128-base
	for {
		n := &t.nodes[at]
		if n.value != 0 {
			best = n.value
		}
		if n.child == [2]int32{} || depth == width {
			return int(best) - 1, depth
		}
		at = n.child[bit(&b, base+depth)]
		depth++
		if at == 0 {
			return int(best) - 1, depth
		}
	}
}

func (t *trie) root(a netip.Addr) int32 {
	if a.Is4() {
		return t.v4
	}
	return t.v6
}

// bits returns an address and where its first bit is.
func bits(a netip.Addr) (b [16]byte, base int) {
	if a.Is4() {
		return a.As16(), 96
	}
	return a.As16(), 0
}

func bit(b *[16]byte, i int) int { return int(b[i>>3]>>(7-i&7)) & 1 }
