// A node on boxo and go-libp2p that exchanges content with the others of a run by Bitswap.
//
// This file is the order of events, which the nodes in Rust and JavaScript share: it is on the plan's page.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
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
	patience := time.Duration(chosen.patience) * time.Millisecond
	node, err := listen(ctx, here, transport, patience)
	if err != nil {
		return err
	}
	rounds := allRounds(here)
	isSeed := here.Index < chosen.seeds
	roots := map[string]cid.Cid{}
	for _, round := range rounds {
		nodes, err := content(here.Seed, round.name, chosen.blocks, chosen.size)
		if err != nil {
			return err
		}
		roots[round.name] = nodes[len(nodes)-1].Cid()
		if isSeed && slices.Contains(round.from, here.Group) {
			if err := node.dag.AddMany(ctx, nodes); err != nil {
				return err
			}
		}
	}
	kindOf := map[peer.ID]string{}
	for ordinal, kind := range here.Groups {
		id, err := identity(here.Seed, ordinal)
		if err != nil {
			return err
		}
		kindOf[id] = kind
	}
	all := len(here.Hosts)
	if err := here.Meet("listening", all); err != nil {
		return err
	}

	began := time.Now()
	for _, ordinal := range neighbours(here, chosen.connections) {
		limited, stop := context.WithTimeout(ctx, patience)
		err := node.connect(limited, here, transport, ordinal)
		stop()
		if err != nil {
			return fmt.Errorf("connecting to %s: %w", here.Hosts[ordinal], err)
		}
	}
	if err := lab.Metric("exchange.connect", ms(time.Since(began)), "ms"); err != nil {
		return err
	}
	if err := here.Meet("connected", all); err != nil {
		return err
	}

	for _, round := range rounds {
		has := isSeed && slices.Contains(round.from, here.Group)
		if slices.Contains(round.to, here.Group) && !has {
			began := time.Now()
			limited, stop := context.WithTimeout(ctx, patience)
			err := merkledag.FetchGraph(limited, roots[round.name], node.dag)
			stop()
			if err != nil {
				return fmt.Errorf("fetching %s: %w", roots[round.name], err)
			}
			took := ms(time.Since(began))
			byKind := map[string]int{}
			for id, bytes := range node.given.take() {
				byKind[kindOf[id]] += bytes
			}
			metrics := []metric{
				{"exchange.fetch", took, "ms"},
				{round.metric("fetch", "", here), took, "ms"},
				{"exchange.rate", float64(chosen.blocks*chosen.size) / 1e3 / took, "MB/s"},
			}
			for _, from := range round.from {
				metrics = append(metrics, metric{round.metric("bytes", from, here), float64(byKind[from]), "B"})
			}
			for _, m := range metrics {
				if err := lab.Metric(m.name, m.value, m.unit); err != nil {
					return err
				}
			}
		}
		// Who has everything goes on giving it to others.
		if err := here.Meet("fetched-"+round.name, all); err != nil {
			return err
		}
	}
	return tell(node)
}

type metric struct {
	name  string
	value float64
	unit  string
}

// tell leaves with the lab what Bitswap has counted.
func tell(node *node) error {
	stat, err := node.exchange.Stat()
	if err != nil {
		return err
	}
	if stat.BlocksReceived > 0 {
		share := float64(stat.DupBlksReceived) / float64(stat.BlocksReceived)
		if err := lab.Metric("exchange.duplicates", share, "share"); err != nil {
			return err
		}
	}
	return lab.Event("exchanged", map[string]any{
		"received": stat.BlocksReceived, "duplicates": stat.DupBlksReceived, "sent": stat.BlocksSent,
		"peers": len(node.host.Network().Peers()),
	})
}

func ms(time time.Duration) float64 {
	return float64(time.Nanoseconds()) / 1e6
}
