// What a plan's program on Node says to the lab: barriers over the sync service of Testground, events and metrics as the
// files of its SDKs. It has what plans that ship need of it, and no more; Node 22 or newer has all that it needs.
import { appendFileSync } from 'node:fs'
import { join } from 'node:path'

const { env } = process

// Returns a whole number that the run chose; durations are milliseconds and sizes bytes.
export function param (name) {
  const text = env[`IPTL_PARAM_${name.toUpperCase().replaceAll('-', '_')}`]
  const value = Number(text)
  if (text == null || !Number.isSafeInteger(value)) throw new Error(`parameter ${name} is ${text}`)
  return value
}

// Records a value.
export function metric (name, value, unit) {
  record('results.out', { type: 'point', name, unit, measures: { value } })
}

// Records that something happened.
export function event (name, data) {
  const group = { group_id: env.TEST_GROUP_ID, run_id: env.TEST_RUN }
  record('run.out', { msg: '', ...group, event: { iptl_event: { name, data } } })
}

function record (file, line) {
  // Nanoseconds are more than a number holds, so they are written by hand.
  const text = JSON.stringify(line).replace('{', `{"ts":${Date.now()}000000,`)
  appendFileSync(join(env.TEST_OUTPUTS_PATH, file), `${text}\n`)
}

// Where the program is, and its connection to those who run it.
export class Lab {
  // Seed of the run as text, the same for all instances: numbers here do not hold it.
  seed = env.IPTL_SEED
  // Group of this instance, and its index in it.
  group = env.IPTL_GROUP
  index = Number(env.IPTL_INDEX)
  // Its index over all groups in the order of their names.
  ordinal = Number(env.IPTL_ORDINAL)
  // Its address in the lab network; behind a NAT it has another one.
  addr = env.IPTL_ADDR
  // All instances by ordinal: `group`, and `host`, which resolves in the lab network.
  instances = []
  #socket
  #calls = 0
  #answers = new Map()

  constructor (socket) {
    this.#socket = socket
    for (const pair of env.IPTL_GROUPS.split(',')) {
      const [group, size] = pair.split('=')
      for (let index = 0; index < Number(size); index++) this.instances.push({ group, host: `${group}-${index}` })
    }
    socket.addEventListener('message', ({ data }) => {
      const { id, error } = JSON.parse(data)
      const answer = this.#answers.get(id)
      this.#answers.delete(id)
      if (error) answer?.reject(new Error(error))
      else answer?.resolve()
    })
    socket.addEventListener('close', () => {
      for (const answer of this.#answers.values()) answer.reject(new Error('the lab is gone'))
    })
  }

  // Connects to the lab.
  static async enter () {
    const socket = new WebSocket(`ws://${env.SYNC_SERVICE_HOST}:${env.SYNC_SERVICE_PORT}/`)
    await new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve)
      socket.addEventListener('error', ({ message }) => reject(new Error(`the lab does not answer: ${message}`)))
    })
    return new Lab(socket)
  }

  // Signals a state and waits until so many have.
  async meet (state, count) {
    const key = `run:${env.TEST_RUN}:plan:${env.TEST_PLAN}:case:${env.TEST_CASE}:states:${state}`
    await this.#call({ signal_entry: { state: key } })
    await this.#call({ barrier: { state: key, target: count } })
  }

  #call (what) {
    const id = String(this.#calls++)
    const answer = new Promise((resolve, reject) => this.#answers.set(id, { resolve, reject }))
    this.#socket.send(JSON.stringify({ id, is_cancel: false, ...what }))
    return answer
  }
}
