// Does what the JavaScript SDK of Testground can do, and says what it saw.
//
// Case `tour`: all meet, publish where they stand, read what the others published, and meet again. Case `fail`: says
// that it failed. Case `silent`: ends without a word about success. Case `stall`: waits for what never comes.
'use strict'

const { invokeMap } = require('@testground/sdk')

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
  stall: async (runenv, client) => {
    const barrier = await client.barrier('never', Number.MAX_SAFE_INTEGER)
    await barrier.wait
  }
})
