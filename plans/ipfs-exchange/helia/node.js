// A peer on Helia that has a store in memory and exchanges blocks.
import { lookup } from 'node:dns/promises'

import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import * as dagPb from '@ipld/dag-pb'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { sha256 } from 'multiformats/hashes/sha2'

import { linksOf } from './content.js'

const PORT = 4001

// Blocks that are asked for at a time.
const AT_ONCE = 32

// Others that may be about to connect at a time, and in a second: all of them connect at once, and none is an attacker.
const NEWCOMERS = 1000

// Returns the key of an instance, which everybody can compute, so that all know who the others are.
function keyOf (seed, ordinal) {
  const secret = Buffer.from('iptl: a key that everybody knows')
  secret.writeBigUInt64BE(BigInt(seed), 16)
  secret.writeUInt32BE(ordinal, 24)
  return generateKeyPairFromSeed('Ed25519', secret)
}

// Returns who an instance is.
export async function peerOf (seed, ordinal) {
  return peerIdFromPrivateKey(await keyOf(seed, ordinal)).toString()
}

export class Node {
  constructor (helia) {
    this.helia = helia
  }

  static async start (lab, patience) {
    const light = createHeliaLight({ codecs: [dagPb], hashers: [sha256] })
    // Where a hundred share a machine, what takes long is not dead: nothing is given up before the run would.
    const helia = await withBitswap(withLibp2pLight(light, {
      privateKey: await keyOf(lab.seed, lab.ordinal),
      addresses: { listen: [`/ip4/${lab.addr}/tcp/${PORT}`] },
      transports: [tcp()],
      connectionEncrypters: [noise()],
      streamMuxers: [yamux()],
      connectionManager: {
        dialTimeout: patience,
        addressDialTimeout: patience,
        inboundUpgradeTimeout: patience,
        inboundStreamProtocolNegotiationTimeout: patience,
        outboundStreamProtocolNegotiationTimeout: patience,
        maxIncomingPendingConnections: NEWCOMERS,
        inboundConnectionThreshold: NEWCOMERS
      },
      connectionMonitor: { enabled: false },
      services: { identify: identify({ timeout: patience }) }
    }), {
      messageSendTimeout: patience,
      messageReceiveTimeout: patience,
      sendBlocksTimeout: patience
    }).start()
    return new Node(helia)
  }

  async put (blocks) {
    for (const [cid, bytes] of blocks) await this.helia.blockstore.put(cid, bytes)
  }

  // Connects to an instance.
  async connect (lab, ordinal, signal) {
    const { address } = await lookup(lab.instances[ordinal].host, 4)
    const peer = await peerOf(lab.seed, ordinal)
    await this.helia.libp2p.dial(multiaddr(`/ip4/${address}/tcp/${PORT}/p2p/${peer}`), { signal })
  }

  // Returns how many others are connected.
  connected () {
    return this.helia.libp2p.getPeers().length
  }

  // Fetches a whole DAG from whoever is connected; returns the bytes of blocks that each peer gave.
  async fetch (root, signal) {
    const bytes = new Map()
    const wanted = [root]
    const get = async (cid) => {
      let sender
      const onProgress = ({ type, detail }) => {
        if (type === 'bitswap:block') sender = detail.sender.toString()
      }
      const pieces = []
      for await (const piece of this.helia.blockstore.get(cid, { signal, onProgress })) pieces.push(piece)
      const block = Buffer.concat(pieces)
      bytes.set(sender, (bytes.get(sender) ?? 0) + block.length)
      return linksOf(cid, block)
    }
    const take = async () => {
      for (let cid = wanted.pop(); cid != null; cid = wanted.pop()) wanted.push(...await get(cid))
    }
    // The root first; what it links by several then.
    wanted.push(...await get(wanted.pop()))
    await Promise.all(Array.from({ length: AT_ONCE }, take))
    return bytes
  }
}
