// A peer on Helia, and npm's importer of UnixFS, which know nothing of the lab's code.
//
// It listens on the address that it is given, writes one line with its own address, and then carries out commands, one a
// line, each answered by one line that begins with "ok" or "error":
//
//	connect ADDRESS            connects to a peer
//	put HASH COUNT SIZE        makes a DAG of so many leaves of so many bytes; answers its root
//	add PROFILE PATH           takes a file or a folder in; answers its root
//	addall PROFILE PATH        takes it in with modes and times; answers its root
//	fetch ROOT                 fetches a whole DAG by Bitswap; answers blocks and bytes
//	resolve PATH               follows a path from a CID, by Bitswap; answers the CID of the block where it ends
//
// It ends with its input.
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { createInterface } from 'node:readline'

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import * as dagCbor from '@ipld/dag-cbor'
import * as dagPb from '@ipld/dag-pb'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { blake3 } from '@noble/hashes/blake3.js'
import { createHeliaLight } from 'helia'
import { exporter } from 'ipfs-unixfs-exporter'
import { importer } from 'ipfs-unixfs-importer'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { from as hasherFrom } from 'multiformats/hashes/hasher'
import { sha256 } from 'multiformats/hashes/sha2'

// A fetch that takes longer has failed.
const PATIENCE_MS = 60_000

// Blocks that are asked for at a time.
const AT_ONCE = 32

const HASHERS = {
  blake3: hasherFrom({ name: 'blake3', code: 0x1e, encode: (bytes) => blake3(bytes) }),
  'sha2-256': sha256
}

const CODECS = new Map([raw, dagPb, dagCbor].map((codec) => [codec.code, codec]))

// Helia gives a block in pieces.
async function bytesOf (pieces) {
  if (pieces instanceof Uint8Array) return pieces
  const all = []
  for await (const piece of pieces) all.push(piece)
  return all.length === 1 ? all[0] : Buffer.concat(all)
}

function * linksOf (cid, bytes) {
  if (cid.code === dagPb.code) {
    for (const link of dagPb.decode(bytes).Links) yield link.Hash
  } else if (cid.code === dagCbor.code) {
    yield * linksIn(dagCbor.decode(bytes))
  }
}

function * linksIn (value) {
  const link = CID.asCID(value)
  if (link != null) {
    yield link
  } else if (value != null && typeof value === 'object' && !(value instanceof Uint8Array)) {
    for (const inner of Object.values(value)) yield * linksIn(inner)
  }
}

class Peer {
  constructor (node) {
    this.node = node
  }

  async connect (address) {
    await this.node.libp2p.dial(multiaddr(address), { signal: AbortSignal.timeout(PATIENCE_MS) })
    return ''
  }

  // Leaves are the same in every run, and a node of dag-pb links them.
  async put (hash, count, size) {
    const hasher = HASHERS[hash]
    const links = []
    for (let at = 0; at < Number(count); at++) {
      const block = Buffer.alloc(Number(size))
      for (let from = 0; from < block.length; from += 32) {
        createHash('sha256').update(`${hash} ${at} ${from}`).digest().copy(block, from)
      }
      const cid = CID.createV1(raw.code, await hasher.digest(block))
      await this.node.blockstore.put(cid, block)
      links.push({ Hash: cid, Name: '', Tsize: block.length })
    }
    const node = dagPb.encode({ Links: links })
    const root = CID.createV1(dagPb.code, await hasher.digest(node))
    await this.node.blockstore.put(root, node)
    return root.toString()
  }

  async add (profile, path) {
    return this.take(profile, candidates(path, '', () => ({})))
  }

  async addall (profile, path) {
    // Whole seconds have no nanoseconds, and those of a time before 1970 count from the second before it.
    const kept = ({ mode, mtimeNs }) => {
      const second = 1_000_000_000n
      const nsecs = (mtimeNs % second + second) % second
      const mtime = { secs: (mtimeNs - nsecs) / second, nsecs: nsecs === 0n ? undefined : Number(nsecs) }
      return { mode: Number(mode) & 0o7777, mtime }
    }
    return this.take(profile, candidates(path, '', kept))
  }

  async take (profile, files) {
    let root
    const options = { profile, wrapWithDirectory: false }
    for await (const entry of importer(files, this.node.blockstore, options)) root = entry.cid
    return root.toString()
  }

  async fetch (name) {
    const signal = AbortSignal.timeout(PATIENCE_MS)
    const root = CID.parse(name)
    const seen = new Set([root.toString()])
    let level = [root]
    let blocks = 0
    let size = 0
    while (level.length > 0) {
      const next = []
      for (let at = 0; at < level.length; at += AT_ONCE) {
        await Promise.all(level.slice(at, at + AT_ONCE).map(async (cid) => {
          if (!CODECS.has(cid.code)) throw new Error(`${cid} has a codec that nobody expects`)
          const bytes = await bytesOf(this.node.blockstore.get(cid, { signal }))
          blocks += 1
          size += bytes.length
          for (const link of linksOf(cid, bytes)) {
            if (seen.has(link.toString())) continue
            seen.add(link.toString())
            next.push(link)
          }
        }))
      }
      level = next
    }
    return `${blocks} ${size}`
  }

  // The exporter follows paths through any codec, and wants whole blocks.
  async resolve (path) {
    const get = async (cid, { signal }) => bytesOf(this.node.blockstore.get(CID.decode(cid.bytes), { signal }))
    const found = await exporter(path, { get }, { signal: AbortSignal.timeout(PATIENCE_MS) })
    return found.cid.toString()
  }
}

// A root that is a folder is a name without which the importer has nothing to put its files under.
async function * candidates (path, name, kept) {
  const found = await stat(path, { bigint: true })
  if (!found.isDirectory()) {
    const content = createReadStream(path, { highWaterMark: 1 << 20 })
    yield { path: name === '' ? undefined : name, content, ...kept(found) }
    return
  }
  const names = await readdir(path)
  const under = name === '' ? 'root' : name
  yield { path: under, ...kept(found) }
  for (const inner of names.sort()) yield * candidates(`${path}/${inner}`, `${under}/${inner}`, kept)
}

const [, , listen] = process.argv
const light = createHeliaLight({ codecs: [dagCbor, dagPb], hashers: [HASHERS.blake3, sha256] })
const node = await withBitswap(withLibp2pLight(light, {
  addresses: { listen: [listen] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
})).start()
console.log(node.libp2p.getMultiaddrs()[0].toString())

const peer = new Peer(node)
const commands = { connect: 1, put: 3, add: 2, addall: 2, fetch: 1, resolve: 1 }
for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...words] = line.split(' ')
  try {
    if (commands[command] !== words.length) throw new Error(`no such command: ${line}`)
    console.log(`ok ${await peer[command](...words)}`)
  } catch (error) {
    console.log(`error ${String(error?.stack ?? error).replaceAll('\n', '; ')}`)
  }
}
process.exit(0)
