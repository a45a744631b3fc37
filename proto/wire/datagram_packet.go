package wire

import (
	"encoding/binary"
)

// The packets of a tunnel's datagram channel. Each is one UDP datagram:
//
//	 0                               8      9                      16
//	+-------------------------------+------+----------------------+----------------------+---------+
//	|            key id             | lane |    packet number     |  frames (encrypted)  | tag  16 |
//	+-------------------------------+------+----------------------+----------------------+---------+
//
// The key id names a key: one direction of one epoch of one channel. Keys come from the secret that
// the tunnel's TLS session exports for the epoch (KEY frame): HKDF-SHA256(secret, no salt, info),
// where info is one of these strings and the epoch in 4 bytes:
//
//	"nearcast datagram 1 initiator key"   16 bytes   AES-128-GCM key, from the edge to the gateway
//	"nearcast datagram 1 initiator iv"    12
//	"nearcast datagram 1 initiator id"     8         key id
//	"nearcast datagram 1 responder key"   …          the same from the gateway to the edge
//
// The nonce is the iv, exclusive-or the header's last eight bytes at its end. The header is the
// additional data. Packet numbers begin at 0 for each lane and key, and end at 2^32 - 1; epochs are
// changed long before. A receiver takes a number once, and none that is far behind the latest.
//
// A lane is one 4-tuple between the two nodes. The edge has one socket a lane; the gateway answers
// on a lane to where its latest authentic packet came from. Lanes are on different network paths
// and in different receive queues, so that one path or one core does not bound a tunnel; a flow
// keeps to a lane, so that it stays in order. Nothing is ever sent in answer to a packet that is
// not authentic.
//
// Frames, one after the other to the end of the packet:
//
//	+------+
//	| 0x00 | …                                     PADDING: the rest of the packet
//	+------+
//	+------+----------+---------
//	| 0x01 | length 2 | message                    DATA: a whole datagram message
//	+------+----------+---------
//	+------+------+---------+---------+---------+-------
//	| 0x02 | id 4 | total 3 | chunk 2 | index 1 | bytes    FRAGMENT: a piece of a longer message
//	+------+------+---------+---------+---------+-------
//	+------+---------+--------+---------+------------+------------+
//	| 0x03 | stamp 8 | echo 8 | delay 4 | expected 4 | received 4 |   PING: answer at once
//	+------+---------+--------+---------+------------+------------+
//	  0x04                                                            PONG: the same, in answer
//
// FRAGMENT: a message of total bytes is cut into pieces of chunk bytes, the last one shorter; this
// is the piece with the given index. id numbers the fragmented messages of a lane.
//
// PING and PONG: stamp is the sender's clock in nanoseconds, never 0. echo is the latest stamp that
// came from the other side on this lane (in a PONG: that of the PING answered), 0 if none did, and
// delay the microseconds since. expected and received count the packets of this lane: those the
// other side must have sent by the numbers seen, and those that came. Both wrap. A PING with
// PADDING asks whether packets of this size pass.
//
// A frame of an unknown type ends the packet: what follows is ignored.
const (
	// PacketHeaderBytes precede the encrypted frames, PacketTagBytes follow them.
	PacketHeaderBytes = 16
	PacketTagBytes    = 16

	// PacketNumberMax is the last packet number of a lane under one key.
	PacketNumberMax = 1<<32 - 1

	// LanesMax bounds the lanes of a channel; they are numbered from 0.
	LanesMax = 8

	// FragmentChunkMin bounds the number of a message's pieces: no more than 130.
	FragmentChunkMin = 512

	// Bytes of the frames, before the message or piece they carry.
	PacketDataBytes     = 1 + 2
	PacketFragmentBytes = 1 + 4 + 3 + 2 + 1
	PacketPingBytes     = 1 + 8 + 8 + 4 + 4 + 4

	packetNumberMask = 1<<56 - 1
)

// PacketHeader is the part of a packet in the clear.
type PacketHeader struct {
	Key    uint64
	Lane   uint8
	Number uint64 // at most PacketNumberMax
}

// Put writes the header into the first PacketHeaderBytes of b.
func (h PacketHeader) Put(b []byte) {
	binary.BigEndian.PutUint64(b, h.Key)
	binary.BigEndian.PutUint64(b[8:], h.word())
}

// word is the last eight bytes of the header: the lane and the packet number.
func (h PacketHeader) word() uint64 { return uint64(h.Lane)<<56 | h.Number&packetNumberMask }

// Nonce writes the nonce of the packet, for an iv of 12 bytes.
func (h PacketHeader) Nonce(nonce, iv *[12]byte) {
	*nonce = *iv
	tail := nonce[4:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^h.word())
}

// ParsePacketHeader reads the header of a packet. ok is false if the packet is too short to be
// sealed, or says what no sender of this version says.
func ParsePacketHeader(p []byte) (h PacketHeader, ok bool) {
	if len(p) < PacketHeaderBytes+PacketTagBytes {
		return PacketHeader{}, false
	}
	word := binary.BigEndian.Uint64(p[8:])
	h = PacketHeader{Key: binary.BigEndian.Uint64(p), Lane: uint8(word >> 56), Number: word & packetNumberMask}
	return h, h.Lane < LanesMax && h.Number <= PacketNumberMax
}

// PacketFrameType is the first byte of a frame inside a packet.
type PacketFrameType uint8

// The frames of packets.
const (
	PacketPadding  PacketFrameType = 0
	PacketData     PacketFrameType = 1
	PacketFragment PacketFrameType = 2
	PacketPing     PacketFrameType = 3
	PacketPong     PacketFrameType = 4
)

// PacketFrame is one decoded frame; Type says which fields mean something.
type PacketFrame struct {
	Type PacketFrameType

	Message []byte // DATA: the message; FRAGMENT: the piece; aliases the packet

	// FRAGMENT
	ID    uint32
	Total int // bytes of the whole message
	Chunk int // bytes of each piece but the last
	Index int // of this piece

	Probe PacketProbe // PING, PONG
}

// PacketProbe is what PING and PONG say.
type PacketProbe struct {
	Stamp    uint64
	Echo     uint64
	Delay    uint32 // µs
	Expected uint32
	Received uint32
}

// Pieces is the number of pieces of a FRAGMENT's message.
func (f *PacketFrame) Pieces() int { return (f.Total + f.Chunk - 1) / f.Chunk }

// AppendPacketData appends a DATA frame. The message has at most 65,535 bytes, and in practice what
// fits a packet.
func AppendPacketData(b, message []byte) []byte {
	b = append(b, byte(PacketData), byte(len(message)>>8), byte(len(message)))
	return append(b, message...)
}

// AppendPacketFragment appends a FRAGMENT frame with the index-th piece of message.
func AppendPacketFragment(b []byte, id uint32, message []byte, chunk, index int) []byte {
	total := len(message)
	b = binary.BigEndian.AppendUint32(append(b, byte(PacketFragment)), id)
	b = append(b, byte(total>>16), byte(total>>8), byte(total), byte(chunk>>8), byte(chunk), byte(index))
	return append(b, message[index*chunk:min(total, (index+1)*chunk)]...)
}

// Append appends the probe as a PING or PONG frame.
func (p *PacketProbe) Append(b []byte, t PacketFrameType) []byte {
	b = binary.BigEndian.AppendUint64(append(b, byte(t)), p.Stamp)
	b = binary.BigEndian.AppendUint64(b, p.Echo)
	b = binary.BigEndian.AppendUint32(b, p.Delay)
	b = binary.BigEndian.AppendUint32(b, p.Expected)
	return binary.BigEndian.AppendUint32(b, p.Received)
}

// Decode reads the first frame of b and returns what follows it. After PADDING, and after a frame
// of unknown type (whose Type it reports), nothing does. b must not be empty.
func (f *PacketFrame) Decode(b []byte) (rest []byte, err error) {
	r := reader{b: b}
	f.Type = PacketFrameType(r.uint8())
	switch f.Type {
	case PacketData:
		f.Message = r.bytes(int(r.uint16()))
	case PacketFragment:
		f.ID = r.uint32()
		f.Total = int(r.uint8())<<16 | int(r.uint16())
		f.Chunk, f.Index = int(r.uint16()), int(r.uint8())
		if r.err != nil {
			break
		}
		at := f.Index * f.Chunk
		if f.Chunk < FragmentChunkMin || f.Total > DatagramMessageMax || at >= f.Total || f.Chunk >= f.Total {
			return nil, ErrInvalid
		}
		f.Message = r.bytes(min(f.Chunk, f.Total-at))
	case PacketPing, PacketPong:
		f.Probe.Stamp, f.Probe.Echo = r.uint64(), r.uint64()
		f.Probe.Delay, f.Probe.Expected, f.Probe.Received = r.uint32(), r.uint32(), r.uint32()
		if r.err == nil && f.Probe.Stamp == 0 {
			return nil, ErrInvalid
		}
	default:
		return nil, nil
	}
	if r.err != nil {
		return nil, r.err
	}
	return r.b, nil
}
