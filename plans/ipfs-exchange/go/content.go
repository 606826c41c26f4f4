package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
)

// content makes what is fetched in a round: leaves whose bytes follow from the run's seed and the round, and a node of
// dag-pb that links them, the last. The nodes in Rust and JavaScript make the same.
func content(seed uint64, round string, count, size int) ([]format.Node, error) {
	builder := cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256}
	root := merkledag.NodeWithData(nil)
	if err := root.SetCidBuilder(builder); err != nil {
		return nil, err
	}
	nodes := make([]format.Node, 0, count+1)
	for number := range count {
		leaf, err := merkledag.NewRawNodeWPrefix(leaf(seed, round, number, size), builder.WithCodec(cid.Raw))
		if err != nil {
			return nil, err
		}
		if err := root.AddNodeLink("", leaf); err != nil {
			return nil, err
		}
		nodes = append(nodes, leaf)
	}
	return append(nodes, root), nil
}

// leaf makes bytes by Marsaglia's xorshift of 128 bits, which begins with the hash of what the leaf is.
func leaf(seed uint64, round string, number, size int) []byte {
	name := sha256.Sum256(fmt.Appendf(nil, "%d %s %d", seed, round, number))
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(name[at*4:]) }
	x, y, z, w := word(0), word(1), word(2), word(3)
	bytes := make([]byte, 0, size+4)
	for len(bytes) < size {
		t := x ^ x<<11
		x, y, z = y, z, w
		w = w ^ w>>19 ^ t ^ t>>8
		bytes = binary.LittleEndian.AppendUint32(bytes, w)
	}
	return bytes[:size]
}
