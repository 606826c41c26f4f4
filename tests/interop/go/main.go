// A peer on boxo and go-libp2p, which know nothing of the lab's code.
//
// It listens on the address that it is given, writes one line with its own address, and then carries out commands, one a
// line, each answered by one line that begins with "ok" or "error":
//
//	connect ADDRESS            connects to a peer
//	put HASH COUNT SIZE        makes a DAG of so many leaves of so many bytes; answers its root
//	add PROFILE PATH           takes a file or a folder in, links as links, by a profile of IPIP-499; answers its root
//	addall PROFILE PATH        takes it in with modes and times; answers its root
//	fetch ROOT                 fetches a whole DAG by Bitswap; answers blocks and bytes
//	resolve PATH               follows a path from a CID, by Bitswap; answers the CID of the block where it ends
//	export ROOT PATH           writes a whole DAG to a CAR
//	import PATH                takes the blocks of a CAR, checked; answers its root
//
// It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	format "github.com/ipfs/go-ipld-format"
	_ "github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	_ "github.com/multiformats/go-multihash/register/blake3"
)

// A fetch that takes longer has failed.
const patience = 60 * time.Second

type node struct {
	host    host.Host
	blocks  blockstore.Blockstore
	service blockservice.BlockService
	dag     format.DAGService
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: witness ADDRESS")
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	host, err := libp2p.New(libp2p.ListenAddrStrings(os.Args[1]), libp2p.DisableRelay())
	if err != nil {
		return err
	}
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	exchange := bitswap.New(ctx, bsnet.NewFromIpfsHost(host), nil, store)
	service := blockservice.New(store, exchange)
	here := node{host, store, service, merkledag.NewDAGService(service)}
	fmt.Printf("%s/p2p/%s\n", host.Addrs()[0], host.ID())

	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		answer, err := here.carryOut(ctx, strings.Fields(commands.Text()))
		if err != nil {
			fmt.Printf("error %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		} else {
			fmt.Printf("ok %s\n", answer)
		}
	}
	return commands.Err()
}

func (n node) carryOut(ctx context.Context, words []string) (string, error) {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	switch {
	case len(words) == 2 && words[0] == "connect":
		info, err := peer.AddrInfoFromString(words[1])
		if err != nil {
			return "", err
		}
		return "", n.host.Connect(ctx, *info)
	case len(words) == 4 && words[0] == "put":
		return n.put(ctx, words[1:])
	case len(words) == 3 && (words[0] == "add" || words[0] == "addall"):
		return n.add(ctx, words[1], words[2], words[0] == "addall")
	case len(words) == 2 && words[0] == "fetch":
		return n.fetch(ctx, words[1])
	case len(words) == 2 && words[0] == "resolve":
		return n.resolve(ctx, words[1])
	case len(words) == 3 && words[0] == "export":
		return "", n.export(ctx, words[1], words[2])
	case len(words) == 2 && words[0] == "import":
		return n.importCar(ctx, words[1])
	}
	return "", fmt.Errorf("no such command: %v", words)
}

// put makes leaves of bytes that are the same in every run, and a node of dag-pb that links them.
func (n node) put(ctx context.Context, words []string) (string, error) {
	code, ok := multihash.Names[words[0]]
	if !ok {
		return "", fmt.Errorf("no such hash: %s", words[0])
	}
	count, err := strconv.Atoi(words[1])
	if err != nil {
		return "", err
	}
	size, err := strconv.Atoi(words[2])
	if err != nil {
		return "", err
	}
	seed := [32]byte{}
	binary.LittleEndian.PutUint64(seed[:], code)
	bytes := rand.NewChaCha8(seed)
	builder := cid.V1Builder{Codec: cid.DagProtobuf, MhType: code, MhLength: -1}
	root := merkledag.NodeWithData(nil)
	if err := root.SetCidBuilder(builder); err != nil {
		return "", err
	}
	for range count {
		data := make([]byte, size)
		if _, err := bytes.Read(data); err != nil {
			return "", err
		}
		leaf, err := merkledag.NewRawNodeWPrefix(data, builder.WithCodec(cid.Raw))
		if err != nil {
			return "", err
		}
		if err := n.dag.Add(ctx, leaf); err != nil {
			return "", err
		}
		if err := root.AddNodeLink("", leaf); err != nil {
			return "", err
		}
	}
	return root.Cid().String(), n.dag.Add(ctx, root)
}

// fetch brings a whole DAG here, and then counts what came.
func (n node) fetch(ctx context.Context, name string) (string, error) {
	root, err := cid.Decode(name)
	if err != nil {
		return "", err
	}
	if err := merkledag.FetchGraph(ctx, root, n.dag); err != nil {
		return "", err
	}
	blocks, bytes := 0, 0
	seen := cid.NewSet()
	err = merkledag.Walk(ctx, merkledag.GetLinksWithDAG(n.dag), root, func(c cid.Cid) bool {
		if !seen.Visit(c) {
			return false
		}
		block, err := n.dag.Get(ctx, c)
		if err != nil {
			return false
		}
		blocks, bytes = blocks+1, bytes+len(block.RawData())
		return true
	})
	return fmt.Sprintf("%d %d", blocks, bytes), err
}
