// What is measured, of one contender, in its own process.
import { Conflict, sleep } from './shared.mjs'

const now = () => performance.now()
const newKey = () => crypto.randomUUID()

// Latencies of calls by some clients for a time, each beginning its next call when the last has ended.
async function drive(clients, ms, next) {
  const times = []
  const begun = now()
  const client = async (_, number) => {
    for (let t = now(); t - begun < ms;) {
      await next(number)
      times.push(-t + (t = now()))
    }
  }
  await Promise.all(Array.from({ length: clients }, client))
  return { seconds: (now() - begun) / 1000, times: times.sort((a, b) => a - b) }
}

const percentile = (sorted, p) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))]

// The first fifth of a second opens connections, prepares statements and compiles; it is not counted.
async function throughput({ clients, seconds }, next) {
  await drive(clients, 200, next)
  const { times, seconds: took } = await drive(clients, seconds * 1000, next)
  const [p50, p95, p99] = [0.5, 0.95, 0.99].map((p) => percentile(times, p))
  return { tps: times.length / took, p50, p95, p99 }
}

const first = ({ call }, args) => throughput(args, () => call(newKey()))

// A thousand keys that are done, in random order. They are made once.
async function replay(contender, args) {
  contender.done ??= await doneKeys(contender.call)
  const { done } = contender
  return throughput(args, () => contender.call(done[Math.floor(Math.random() * done.length)]))
}

async function doneKeys(call) {
  const keys = Array.from({ length: 1000 }, newKey)
  const rest = [...keys]
  await Promise.all(Array.from({ length: 8 }, async () => {
    while (rest.length > 0) await call(rest.pop())
  }))
  return keys
}

// One call in twenty is a retry of one of the client's last hundred keys.
function mixed({ call }, args) {
  const recent = Array.from({ length: args.clients }, () => [])
  return throughput(args, async (client) => {
    const mine = recent[client]
    if (mine.length > 0 && Math.random() < 0.05) return call(mine[Math.floor(Math.random() * mine.length)])
    const key = newKey()
    await call(key)
    if (mine.push(key) > 100) mine.shift()
  })
}

const CALLERS = 100

// How often the work was done since: rolled back work has left no row.
const lastCharge = async (pool) => (await pool.query('SELECT coalesce(max(id), 0) AS id FROM charges')).rows[0].id
const chargesSince = async (pool, id) =>
  (await pool.query('SELECT count(*)::int AS count FROM charges WHERE id > $1', [id])).rows[0].count

async function callers(call, key) {
  const begun = now()
  const ends = await Promise.allSettled(Array.from({ length: CALLERS }, () => call(key)))
  const ms = now() - begun
  const reasons = ends.filter((end) => end.status === 'rejected').map((end) => end.reason)
  const errors = reasons.filter((reason) => !(reason instanceof Conflict))
  return { ms, answered: CALLERS - reasons.length, conflicts: reasons.length - errors.length, error: errors[0]?.message }
}

// Many callers of one new key at once. One such storm beforehand opens the connections.
async function storm({ call, pool }) {
  await callers(call, newKey())
  await sleep(100)
  const before = await lastCharge(pool)
  const result = await callers(call, newKey())
  return { ...result, works: await chargesSince(pool, before) }
}

// The same call twice: does it do what it is measured for?
async function check({ call, pool, protects }) {
  const key = newKey()
  const before = await lastCharge(pool)
  const answers = [await call(key)]
  if (protects) answers.push(await call(key))
  const works = await chargesSince(pool, before)
  const { id, ...rest } = answers[0]
  const texts = answers.map((answer) => JSON.stringify(Object.entries(answer).sort()))
  if (!(id > 0) || rest.status !== 'succeeded') throw new Error(`the response is ${texts[0]}`)
  if (texts.some((text) => text !== texts[0])) throw new Error(`the responses differ: ${texts.join(' ')}`)
  if (works !== 1) throw new Error(`the work was done ${works} times`)
}

// One call of a key that the parent knows.
async function once({ call }, { key }) {
  try {
    return { end: 'answer', response: await call(key) }
  } catch (error) {
    return error instanceof Conflict ? { end: 'conflict' } : { end: 'error', message: error.message, code: error.code }
  }
}

export const measures = { first, replay, storm, mixed, check, once }
