// Does what the JavaScript SDK of Testground can do, and says what it saw.
//
// Case `tour`: all meet, publish where they stand, read what the others published, and meet again. Case `fail`: says
// that it failed. Case `silent`: ends without a word about success. Case `stall`: waits for what never comes. Case `shape`:
// the second instance has its network shaped and says what that did to its conversation with the first.
'use strict'

const dgram = require('dgram')
const { invokeMap, network } = require('@testground/sdk')

const PORT = 7000

// Echoes datagrams.
const answer = () => new Promise((resolve) => {
  const socket = dgram.createSocket('udp4')
  socket.on('message', (bytes, from) => socket.send(bytes, from.port, from.address))
  socket.bind(PORT, () => resolve(socket))
})

// Returns the milliseconds of the shortest of five round trips; silence where none came back within a second.
const roundTrip = async (address) => {
  const socket = dgram.createSocket('udp4')
  const trip = (number) => new Promise((resolve) => {
    const began = process.hrtime.bigint()
    const silence = setTimeout(() => resolve(Infinity), 1000)
    socket.on('message', (bytes) => {
      if (bytes.toString() === String(number)) {
        clearTimeout(silence)
        resolve(Number(process.hrtime.bigint() - began) / 1e6)
      }
    })
    socket.send(String(number), PORT, address)
  })
  const trips = []
  for (let number = 0; number < 5; number++) {
    trips.push(await trip(number))
  }
  socket.close()
  const shortest = Math.min(...trips)
  return shortest === Infinity ? 'silence' : shortest.toFixed(3)
}

invokeMap({
  tour: async (runenv, client) => {
    const count = runenv.testInstanceCount
    runenv.recordMessage(`${runenv.testInstanceParams.greeting} from ${runenv.testGroupId}`)

    const seq = await client.signalAndWait('ready', count)
    const { sub } = await client.publishSubscribe('places', { seq, exact: 1.5, text: 'ü' })
    const seen = []
    for await (const place of sub.wait) {
      seen.push(place.seq)
      if (seen.length === count) {
        sub.cancel()
        break
      }
    }
    seen.sort((a, b) => a - b)
    runenv.recordMessage(`saw ${JSON.stringify(seen)}`)
    await client.signalAndWait('seen', count)
    const expected = Array.from({ length: count }, (_, at) => at + 1)
    if (JSON.stringify(seen) !== JSON.stringify(expected)) {
      throw new Error(`the places are ${JSON.stringify(seen)}`)
    }
  },
  fail: async (runenv, client) => {
    throw new Error('as it was told')
  },
  silent: async (runenv, client) => {
    process.exit(0)
  },
  shape: async (runenv, client) => {
    const net = network.newClient(client, runenv)
    await net.waitNetworkInitialized()
    const address = net.getDataNetworkIP()
    const first = process.env.IPTL_INDEX === '0'
    const socket = first ? await answer() : undefined
    await client.signalAndWait('listening', 2)
    if (!first) {
      runenv.recordMessage(`address ${address}`)
      runenv.recordMessage(`clean ${await roundTrip('g-0')}`)
      const configure = (callbackState, wish) => net.configureNetwork({
        network: 'default', enable: true, default: {}, callbackState, callbackTarget: 1, ...wish
      })
      await configure('slow', { default: { latency: 100e6 } })
      runenv.recordMessage(`slow ${await roundTrip('g-0')}`)
      await configure('lossy', { default: { loss: 100 } })
      runenv.recordMessage(`lossy ${await roundTrip('g-0')}`)
      await configure('off', { enable: false })
      runenv.recordMessage(`off ${await roundTrip('g-0')}`)
      await configure('clear', {})
      runenv.recordMessage(`clear ${await roundTrip('g-0')}`)
    }
    await client.signalAndWait('measured', 2)
    if (socket) {
      socket.close()
    }
  },
  stall: async (runenv, client) => {
    const barrier = await client.barrier('never', Number.MAX_SAFE_INTEGER)
    await barrier.wait
  }
})
