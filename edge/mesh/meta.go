package mesh

import (
	"errors"
	"fmt"

	"github.com/nearcast/nearcast/proto/model"
)

// Meta is what a node says about itself to all others. It informs people and hints at what to try;
// nothing is authorised by it.
type Meta struct {
	Edge     bool
	Gateway  bool
	Draining bool // takes no new flows
	Shedding bool // is nearly full: answers name others, if there are any
	// Announcing says that it announces by BGP all that it is to announce, WantsOut that it announces
	// something that it wants to withdraw.
	Announcing, WantsOut bool
	Site                 model.SiteName
	Region               model.RegionName
	Version              string // build version
}

// Metadata on the wire:
//
//	 0       1       2
//	+-------+-------+--------+------+--------+--------+---------+---------+
//	| form  | flags | length | site | length | region | length  | version |
//	+-------+-------+--------+------+--------+--------+---------+---------+
//
// form is 1. Flags: 1 edge, 2 gateway, 4 draining, 8 shedding, 16 announcing, 32 wants out; others are
// ignored. Lengths are one byte. What follows is ignored, so that later versions may append.
const metaForm = 1

const (
	flagEdge = 1 << iota
	flagGateway
	flagDraining
	flagShedding
	flagAnnouncing
	flagWantsOut
)

var errMetaShort = errors.New("metadata ends early")

// appendMeta appends m's wire form, at most metaBytesMax bytes.
func appendMeta(b []byte, m Meta) []byte {
	var flags byte
	if m.Edge {
		flags |= flagEdge
	}
	if m.Gateway {
		flags |= flagGateway
	}
	if m.Draining {
		flags |= flagDraining
	}
	if m.Shedding {
		flags |= flagShedding
	}
	if m.Announcing {
		flags |= flagAnnouncing
	}
	if m.WantsOut {
		flags |= flagWantsOut
	}
	b = append(b, metaForm, flags)
	for _, word := range []string{string(m.Site), string(m.Region), m.Version} {
		word = word[:min(len(word), wordBytesMax)]
		b = append(b, byte(len(word)))
		b = append(b, word...)
	}
	return b
}

// parseMeta reads a wire form, which comes from another node.
func parseMeta(b []byte) (Meta, error) {
	if len(b) > metaBytesMax {
		return Meta{}, fmt.Errorf("metadata of %d bytes, at most %d are allowed", len(b), metaBytesMax)
	}
	if len(b) < 2 {
		return Meta{}, errMetaShort
	}
	if b[0] != metaForm {
		return Meta{}, fmt.Errorf("metadata of form %d, known is %d", b[0], metaForm)
	}
	m := Meta{
		Edge:     b[1]&flagEdge != 0,
		Gateway:  b[1]&flagGateway != 0,
		Draining: b[1]&flagDraining != 0,
		Shedding: b[1]&flagShedding != 0,

		Announcing: b[1]&flagAnnouncing != 0,
		WantsOut:   b[1]&flagWantsOut != 0,
	}
	var words [3]string
	b = b[2:]
	for i := range words {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return Meta{}, errMetaShort
		}
		words[i] = string(b[1 : 1+b[0]])
		b = b[1+b[0]:]
	}
	m.Site, m.Region, m.Version = model.SiteName(words[0]), model.RegionName(words[1]), words[2]
	return m, nil
}
