package main

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/message"
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
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	"lab.iptl/plan"
)

const port = 4001

// node is a peer that has a store and exchanges blocks.
type node struct {
	host     host.Host
	exchange *bitswap.Bitswap
	dag      format.DAGService
	given    *given
}

// given counts what peers gave, where it was not there already.
type given struct {
	lock  sync.Mutex
	seen  map[cid.Cid]struct{}
	bytes map[peer.ID]int
}

// take returns the bytes of blocks that each peer gave since the last time.
func (g *given) take() map[peer.ID]int {
	g.lock.Lock()
	defer g.lock.Unlock()
	bytes := g.bytes
	g.bytes = map[peer.ID]int{}
	return bytes
}

// MessageReceived is called with every message before Bitswap reads it.
func (g *given) MessageReceived(from peer.ID, message message.BitSwapMessage) {
	g.lock.Lock()
	defer g.lock.Unlock()
	for _, block := range message.Blocks() {
		if _, known := g.seen[block.Cid()]; !known {
			g.seen[block.Cid()] = struct{}{}
			g.bytes[from] += len(block.RawData())
		}
	}
}

// MessageSent is called with every message that was written.
func (g *given) MessageSent(peer.ID, message.BitSwapMessage) {}

// key returns the key of an instance, which everybody can compute, so that all know who the others are.
func key(seed uint64, ordinal int) (crypto.PrivKey, error) {
	secret := []byte("iptl: a key that everybody knows")
	binary.BigEndian.PutUint64(secret[16:], seed)
	binary.BigEndian.PutUint32(secret[24:], uint32(ordinal))
	return crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(secret))
}

// identity returns who an instance is.
func identity(seed uint64, ordinal int) (peer.ID, error) {
	secret, err := key(seed, ordinal)
	if err != nil {
		return "", err
	}
	return peer.IDFromPrivateKey(secret)
}

// address writes where an instance listens as libp2p does.
func address(transport, ip string) string {
	if transport == "quic" {
		return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", ip, port)
	}
	return fmt.Sprintf("/ip4/%s/tcp/%d", ip, port)
}

func listen(ctx context.Context, l *lab.Lab, transport string, patience time.Duration) (*node, error) {
	secret, err := key(l.Seed, l.Ordinal)
	if err != nil {
		return nil, err
	}
	// Two that dial each other at once from the ports on which they listen would make one connection in which each takes
	// itself for the one that dials; libp2p knows no way out of it but to try again later.
	over := libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport(), tcp.WithConnectionTimeout(patience))
	if transport == "quic" {
		over = libp2p.Transport(quic.NewTransport)
	}
	host, err := libp2p.New(
		libp2p.Identity(secret), over, libp2p.Security(noise.ID, noise.New), libp2p.DisableRelay(),
		libp2p.ListenAddrStrings(address(transport, l.Addr)),
		// Where a hundred share a machine, what takes long is not dead.
		libp2p.WithDialTimeout(patience), libp2p.SwarmOpts(swarm.WithDialTimeoutLocal(patience)),
	)
	if err != nil {
		return nil, err
	}
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	given := &given{seen: map[cid.Cid]struct{}{}, bytes: map[peer.ID]int{}}
	exchange := bitswap.New(ctx, bsnet.NewFromIpfsHost(host), nil, store, bitswap.WithTracer(given))
	return &node{host, exchange, merkledag.NewDAGService(blockservice.New(store, exchange)), given}, nil
}

// connect connects to an instance.
func (n *node) connect(ctx context.Context, l *lab.Lab, transport string, ordinal int) error {
	ips, err := net.DefaultResolver.LookupHost(ctx, l.Hosts[ordinal])
	if err != nil {
		return err
	}
	id, err := identity(l.Seed, ordinal)
	if err != nil {
		return err
	}
	where, err := multiaddr.NewMultiaddr(address(transport, ips[0]))
	if err != nil {
		return err
	}
	return n.host.Connect(ctx, peer.AddrInfo{ID: id, Addrs: []multiaddr.Multiaddr{where}})
}
