package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	ft "github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	unixfs "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
)

var profiles = map[string]unixfs.UnixFSProfile{
	"unixfs-v0-2015": unixfs.UnixFS_v0_2015,
	"unixfs-v1-2025": unixfs.UnixFS_v1_2025,
}

// taking is how files are taken in.
type taking struct {
	profile unixfs.UnixFSProfile
	// With modes and times.
	all bool
}

// stat returns what is kept of a file's mode and time.
func (t taking) stat(found os.FileInfo) (os.FileMode, time.Time) {
	if !t.all {
		return 0, time.Time{}
	}
	return found.Mode(), found.ModTime()
}

// add takes a file or a folder in.
func (n node) add(ctx context.Context, name, path string, all bool) (string, error) {
	profile, ok := profiles[name]
	if !ok {
		return "", fmt.Errorf("no such profile: %s", name)
	}
	// Commands come one after the other, so nobody else reads what this changes.
	profile.ApplyGlobals()
	root, err := n.addPath(ctx, taking{profile, all}, path)
	if err != nil {
		return "", err
	}
	return root.Cid().String(), nil
}

func (n node) addPath(ctx context.Context, as taking, path string) (format.Node, error) {
	found, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if found.Mode()&os.ModeSymlink != 0 {
		return n.addLink(ctx, as, path)
	}
	mode, modified := as.stat(found)
	if !found.IsDir() {
		return n.addFile(as, path, mode, modified)
	}
	builder := unixfs.WithCidBuilder(as.profile.CidBuilder())
	directory, err := unixfs.NewDirectory(n.dag, builder, unixfs.WithStat(mode, modified))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		child, err := n.addPath(ctx, as, filepath.Join(path, entry.Name()))
		if err != nil {
			return nil, err
		}
		if err := directory.AddChild(ctx, entry.Name(), child); err != nil {
			return nil, err
		}
	}
	root, err := directory.GetNode()
	if err != nil {
		return nil, err
	}
	return root, n.dag.Add(ctx, root)
}

func (n node) addLink(ctx context.Context, as taking, path string) (format.Node, error) {
	target, err := os.Readlink(path)
	if err != nil {
		return nil, err
	}
	data, err := ft.SymlinkData(target)
	if err != nil {
		return nil, err
	}
	link := merkledag.NodeWithData(data)
	if err := link.SetCidBuilder(as.profile.CidBuilder()); err != nil {
		return nil, err
	}
	return link, n.dag.Add(ctx, link)
}

func (n node) addFile(as taking, path string, mode os.FileMode, modified time.Time) (format.Node, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	parameters := helpers.DagBuilderParams{
		Dagserv:     n.dag,
		Maxlinks:    as.profile.FileDAGWidth,
		RawLeaves:   as.profile.RawLeaves,
		CidBuilder:  as.profile.CidBuilder(),
		FileMode:    mode,
		FileModTime: modified,
	}
	builder, err := parameters.New(chunk.NewSizeSplitter(file, as.profile.ChunkSize))
	if err != nil {
		return nil, err
	}
	return balanced.Layout(builder)
}

// export writes a whole DAG to a CAR of version 1, each block before those that it links.
func (n node) export(ctx context.Context, name, path string) error {
	root, err := cid.Decode(name)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	out, err := storage.NewWritable(file, []cid.Cid{root}, car.WriteAsCarV1(true))
	if err != nil {
		return err
	}
	seen := cid.NewSet()
	var failed error
	err = merkledag.Walk(ctx, merkledag.GetLinksWithDAG(n.dag), root, func(c cid.Cid) bool {
		if failed != nil || !seen.Visit(c) {
			return false
		}
		block, err := n.dag.Get(ctx, c)
		if err == nil {
			err = out.Put(ctx, c.KeyString(), block.RawData())
		}
		failed = err
		return err == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	return out.Finalize()
}

// importCar takes the blocks of a CAR; the reader checks each against its CID.
func (n node) importCar(ctx context.Context, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	blocks, err := car.NewBlockReader(file)
	if err != nil {
		return "", err
	}
	if len(blocks.Roots) != 1 {
		return "", fmt.Errorf("%d roots", len(blocks.Roots))
	}
	for {
		block, err := blocks.Next()
		if err == io.EOF {
			return blocks.Roots[0].String(), nil
		}
		if err != nil {
			return "", err
		}
		if err := n.blocks.Put(ctx, block); err != nil {
			return "", err
		}
	}
}
