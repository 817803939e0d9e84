// What the tests share: the service on a free port, requests over real HTTP, a network that loses answers.
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { service } from '../service.js'

// The tests look and disturb as the user that PGUSER names, the service runs as its own.
export const admin = new pg.Pool({ max: 4 })
export const pool = new pg.Pool({ user: 'payments', max: 8, application_name: 'service' })
for (const p of [admin, pool]) p.on('error', () => {})

export const query = async (text, ...values) => (await admin.query(text, values)).rows
export const value = async (text, ...values) => Object.values((await query(text, ...values))[0])[0]

export async function until(condition, what) {
  for (let i = 0; i < 1000; i++) {
    if (await condition()) return
    await sleep(20)
  }
  throw new Error(`waited in vain: ${what}`)
}

const listen = (server) => new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)))

export async function start() {
  const server = http.createServer(service(pool))
  const port = await listen(server)
  return {
    port,
    stop: () => { server.closeAllConnections(); server.close() },
    post: (path, body, headers = {}) => post(port, path, body, headers),
  }
}

export async function stopPools() {
  await pool.end()
  await admin.end()
}

async function post(port, path, body, headers) {
  const res = await fetch(`http://127.0.0.1:${port}${path}`, {
    method: 'POST', body: JSON.stringify(body),
    headers: { 'Content-Type': 'application/json', Authorization: 'Bearer sk_test_one', ...headers },
  })
  const bytes = Buffer.from(await res.arrayBuffer())
  return { status: res.status, headers: res.headers, bytes, json: JSON.parse(bytes.toString() || 'null') }
}

// While action runs no payment can be written: a handler that wants to waits.
export async function whileBlocked(action) {
  const holder = await admin.connect()
  try {
    await holder.query('BEGIN; LOCK TABLE payments IN SHARE MODE')
    await action()
  } finally {
    await holder.query('ROLLBACK')
    holder.release()
  }
}

export const isWaiting = () => until(
  () => value(`SELECT count(*) > 0 FROM pg_locks WHERE relation = 'payments'::regclass AND NOT granted`), 'a handler waits')

// A network between client and service. fates tells what becomes of the first exchanges of each key: 'request lost', or
// 'answer lost' (the service has acted, the client sees its connection break). Later ones arrive.
export async function network(port, fates) {
  const seen = new Map()
  const lost = []
  const proxy = http.createServer(async (req, res) => {
    const key = req.headers['idempotency-key']
    const n = seen.get(key) ?? 0
    seen.set(key, n + 1)
    const what = fates[n]
    const chunks = []
    for await (const chunk of req) chunks.push(chunk)
    if (what === 'request lost') {
      lost.push(what)
      return req.socket.destroy()
    }
    const onward = http.request({ port, host: '127.0.0.1', method: req.method, path: req.url, headers: req.headers, agent: false },
      (answer) => {
        if (what === 'answer lost') {
          lost.push(what)
          answer.resume().on('end', () => req.socket.destroy())
        } else {
          res.writeHead(answer.statusCode, answer.headers)
          answer.pipe(res)
        }
      })
    onward.on('error', () => req.socket.destroy())
    onward.end(Buffer.concat(chunks))
  })
  return { port: await listen(proxy), lost, stop: () => { proxy.closeAllConnections(); proxy.close() } }
}
