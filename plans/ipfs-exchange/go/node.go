package main

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	format "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
	"lab.iptl/plan"
)

const port = 4001

// node is a peer that has a store and exchanges blocks.
type node struct {
	host     host.Host
	exchange *bitswap.Bitswap
	dag      format.DAGService
}

// key returns the key of an instance, which everybody can compute, so that all know who the others are.
func key(seed uint64, ordinal int) (crypto.PrivKey, error) {
	secret := []byte("iptl: a key that everybody knows")
	binary.BigEndian.PutUint64(secret[16:], seed)
	binary.BigEndian.PutUint32(secret[24:], uint32(ordinal))
	return crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(secret))
}

// address writes where an instance listens as libp2p does.
func address(transport, ip string) string {
	if transport == "quic" {
		return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", ip, port)
	}
	return fmt.Sprintf("/ip4/%s/tcp/%d", ip, port)
}

func listen(ctx context.Context, l *lab.Lab, transport string) (*node, error) {
	secret, err := key(l.Seed, l.Ordinal)
	if err != nil {
		return nil, err
	}
	host, err := libp2p.New(
		libp2p.Identity(secret), libp2p.ListenAddrStrings(address(transport, l.Addr)), libp2p.DisableRelay(),
	)
	if err != nil {
		return nil, err
	}
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	exchange := bitswap.New(ctx, bsnet.NewFromIpfsHost(host), nil, store)
	return &node{host, exchange, merkledag.NewDAGService(blockservice.New(store, exchange))}, nil
}

// connect connects to an instance.
func (n *node) connect(ctx context.Context, l *lab.Lab, transport string, ordinal int) error {
	ips, err := net.DefaultResolver.LookupHost(ctx, l.Hosts[ordinal])
	if err != nil {
		return err
	}
	secret, err := key(l.Seed, ordinal)
	if err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(secret)
	if err != nil {
		return err
	}
	where, err := multiaddr.NewMultiaddr(address(transport, ips[0]))
	if err != nil {
		return err
	}
	return n.host.Connect(ctx, peer.AddrInfo{ID: id, Addrs: []multiaddr.Multiaddr{where}})
}

// content makes leaves of bytes that follow from the run's seed, and a node of dag-pb that links them: the last.
func content(seed uint64, count, size int) ([]format.Node, error) {
	var from [32]byte
	binary.LittleEndian.PutUint64(from[:], seed)
	bytes := rand.NewChaCha8(from)
	builder := cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256}
	root := merkledag.NodeWithData(nil)
	if err := root.SetCidBuilder(builder); err != nil {
		return nil, err
	}
	nodes := make([]format.Node, 0, count+1)
	for range count {
		data := make([]byte, size)
		if _, err := bytes.Read(data); err != nil {
			return nil, err
		}
		leaf, err := merkledag.NewRawNodeWPrefix(data, builder.WithCodec(cid.Raw))
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
