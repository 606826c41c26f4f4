// A node on boxo and go-libp2p that exchanges content with the others of a run by Bitswap.
//
// The first instances have the content from the start, all others fetch it: from those, and from each other as soon as
// they have some of it. Nobody is told who has what; Bitswap asks whoever is connected.
package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	"lab.iptl/plan"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// settings are what a run chooses.
type settings struct {
	seeds, connections, blocks, size, patience int
}

func choices() (s settings, err error) {
	for name, place := range map[string]*int{
		"seeds": &s.seeds, "connections": &s.connections, "blocks": &s.blocks, "block-size": &s.size,
		"patience": &s.patience,
	} {
		if *place, err = lab.Param(name); err != nil {
			return s, fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	return s, nil
}

func run() error {
	here, err := lab.Enter()
	if err != nil {
		return err
	}
	chosen, err := choices()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	transport := os.Getenv("IPTL_PARAM_TRANSPORT")
	node, err := listen(ctx, here, transport)
	if err != nil {
		return err
	}
	nodes, err := content(here.Seed, chosen.blocks, chosen.size)
	if err != nil {
		return err
	}
	root := nodes[len(nodes)-1].Cid()
	has := here.Ordinal < chosen.seeds
	if has {
		if err := node.dag.AddMany(ctx, nodes); err != nil {
			return err
		}
	}
	nodes = nil
	if err := here.Meet("listening", len(here.Hosts)); err != nil {
		return err
	}

	// The next instance, so that all are reached by somebody, and others at random.
	began := time.Now()
	patience := time.Duration(chosen.patience) * time.Millisecond
	others := rand.New(rand.NewPCG(here.Seed, uint64(here.Ordinal))).Perm(len(here.Hosts))
	wanted := append([]int{(here.Ordinal + 1) % len(here.Hosts)}, others...)
	for _, ordinal := range wanted[:min(chosen.connections, len(wanted))] {
		if ordinal == here.Ordinal {
			continue
		}
		limited, stop := context.WithTimeout(ctx, patience)
		err := node.connect(limited, here, transport, ordinal)
		stop()
		if err != nil {
			return fmt.Errorf("connecting to %s: %w", here.Hosts[ordinal], err)
		}
	}
	if err := lab.Metric("exchange.connect", ms(began), "ms"); err != nil {
		return err
	}
	if err := here.Meet("connected", len(here.Hosts)); err != nil {
		return err
	}

	if !has {
		began := time.Now()
		limited, stop := context.WithTimeout(ctx, patience)
		err := merkledag.FetchGraph(limited, root, node.dag)
		stop()
		if err != nil {
			return fmt.Errorf("fetching %s: %w", root, err)
		}
		took := time.Since(began)
		if err := lab.Metric("exchange.fetch", ms(began), "ms"); err != nil {
			return err
		}
		rate := float64(chosen.blocks*chosen.size) / 1e6 / took.Seconds()
		if err := lab.Metric("exchange.rate", rate, "MB/s"); err != nil {
			return err
		}
	}
	// Who has everything goes on giving it to others.
	if err := here.Meet("fetched", len(here.Hosts)); err != nil {
		return err
	}
	return tell(node, has)
}

// tell leaves with the lab what Bitswap has counted.
func tell(node *node, has bool) error {
	stat, err := node.exchange.Stat()
	if err != nil {
		return err
	}
	if !has && stat.BlocksReceived > 0 {
		share := float64(stat.DupBlksReceived) / float64(stat.BlocksReceived)
		if err := lab.Metric("exchange.duplicates", share, "share"); err != nil {
			return err
		}
	}
	return lab.Event("exchanged", map[string]any{
		"seed": has, "received": stat.BlocksReceived, "duplicates": stat.DupBlksReceived, "sent": stat.BlocksSent,
		"peers": len(node.host.Network().Peers()),
	})
}

func ms(since time.Time) float64 {
	return float64(time.Since(since)) / float64(time.Millisecond)
}
