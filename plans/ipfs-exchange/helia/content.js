// What is exchanged: leaves whose bytes follow from the run's seed and the round, and a node of dag-pb that links them. The
// nodes in Go and Rust make the same.
import { createHash } from 'node:crypto'

import * as dagPb from '@ipld/dag-pb'
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { create as digest } from 'multiformats/hashes/digest'
import { sha256 } from 'multiformats/hashes/sha2'

// Returns the content of a round as pairs of CID and bytes, the root last.
export function content (seed, round, count, size) {
  const blocks = []
  const links = []
  for (let leaf = 0; leaf < count; leaf++) {
    const bytes = bytesOf(seed, round, leaf, size)
    const cid = cidOf(raw.code, bytes)
    blocks.push([cid, bytes])
    links.push({ Hash: cid, Name: '', Tsize: bytes.length })
  }
  const root = dagPb.encode({ Links: links })
  blocks.push([cidOf(dagPb.code, root), root])
  return blocks
}

// Returns what a block links.
export function linksOf (cid, bytes) {
  return cid.code === dagPb.code ? dagPb.decode(bytes).Links.map((link) => link.Hash) : []
}

function cidOf (code, bytes) {
  return CID.createV1(code, digest(sha256.code, createHash('sha256').update(bytes).digest()))
}

// The bytes of a leaf: Marsaglia's xorshift of 128 bits, which begins with the hash of what the leaf is.
function bytesOf (seed, round, leaf, size) {
  const name = createHash('sha256').update(`${seed} ${round} ${leaf}`).digest()
  let [x, y, z, w] = [0, 4, 8, 12].map((at) => name.readInt32LE(at))
  const words = new Int32Array(Math.ceil(size / 4))
  for (let at = 0; at < words.length; at++) {
    const t = x ^ (x << 11)
    x = y
    y = z
    z = w
    w = w ^ (w >>> 19) ^ t ^ (t >>> 8)
    words[at] = w
  }
  // The machines that run it have the byte order that is written down.
  return new Uint8Array(words.buffer, 0, size)
}
