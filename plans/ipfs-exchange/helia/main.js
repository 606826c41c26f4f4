// A node on Helia that exchanges content with the others of a run by Bitswap. This file is the order of events, which the
// nodes in Go and Rust share: it is on the plan's page.
import { Lab, event, metric, param } from '../../sdk/js/lab.js'
import { content } from './content.js'
import { Node, peerOf } from './node.js'
import { neighbours, roundsOf } from './round.js'

const [seeds, connections, count, size, patience] =
  ['seeds', 'connections', 'blocks', 'block-size', 'patience'].map(param)

const lab = await Lab.enter()
const node = await Node.start(lab, patience)
const all = lab.instances.length
const rounds = roundsOf(lab)
const isSeed = lab.index < seeds
const roots = new Map()
for (const { name, from } of rounds) {
  const blocks = content(lab.seed, name, count, size)
  roots.set(name, blocks.at(-1)[0])
  if (isSeed && from.includes(lab.group)) await node.put(blocks)
}
const kindOf = new Map()
for (const [ordinal, { group }] of lab.instances.entries()) kindOf.set(await peerOf(lab.seed, ordinal), group)
await lab.meet('listening', all)

let began = performance.now()
const signal = () => AbortSignal.timeout(patience)
for (const ordinal of neighbours(lab, connections)) {
  try {
    await node.connect(lab, ordinal, signal())
  } catch (error) {
    throw new Error(`connecting to ${lab.instances[ordinal].host}`, { cause: error })
  }
}
metric('exchange.connect', performance.now() - began, 'ms')
await lab.meet('connected', all)

for (const { name, from, to } of rounds) {
  const has = isSeed && from.includes(lab.group)
  if (to.includes(lab.group) && !has) {
    began = performance.now()
    const bytes = await node.fetch(roots.get(name), signal())
    const took = performance.now() - began
    metric('exchange.fetch', took, 'ms')
    metric(name === 'all' ? `exchange.all.fetch.to-${lab.group}` : `exchange.fetch.${name}`, took, 'ms')
    metric('exchange.rate', count * size / 1e3 / took, 'MB/s')
    for (const kind of from) {
      let given = 0
      for (const [peer, bytesOfPeer] of bytes) given += kindOf.get(peer) === kind ? bytesOfPeer : 0
      metric(name === 'all' ? `exchange.all.bytes.${kind}-to-${lab.group}` : `exchange.bytes.${name}`, given, 'B')
    }
  }
  // Who has everything goes on giving it to others.
  await lab.meet(`fetched-${name}`, all)
}
// What Bitswap counts in Helia is not told.
event('exchanged', { peers: node.connected() })
process.exit(0)
