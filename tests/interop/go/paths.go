package main

import (
	"context"
	"fmt"

	"github.com/ipfs/boxo/fetcher"
	bsfetcher "github.com/ipfs/boxo/fetcher/impl/blockservice"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/boxo/path/resolver"
	"github.com/ipfs/go-unixfsnode"
	dagpb "github.com/ipld/go-codec-dagpb"
)

// resolve follows a path from a CID as a gateway does, and fetches the blocks on its way.
func (n node) resolve(ctx context.Context, name string) (string, error) {
	parsed, err := path.NewPath("/ipfs/" + name)
	if err != nil {
		return "", err
	}
	immutable, err := path.NewImmutablePath(parsed)
	if err != nil {
		return "", err
	}
	root, rest, err := resolver.NewBasicResolver(n.fetcher()).ResolveToLastNode(ctx, immutable)
	if err != nil {
		return "", err
	}
	if len(rest) > 0 {
		return "", fmt.Errorf("%v is inside of %s", rest, root)
	}
	return root.String(), nil
}

func (n node) fetcher() fetcher.Factory {
	config := bsfetcher.NewFetcherConfig(n.service)
	config.PrototypeChooser = dagpb.AddSupportToChooser(bsfetcher.DefaultPrototypeChooser)
	return config.WithReifier(unixfsnode.Reify)
}
