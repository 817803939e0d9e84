// What the middleware owes its transaction, whatever handler, client, process and database do, for each framework.
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import net from 'node:net'
import { after, before, describe, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'
import pg from 'pg'
import postgres from 'postgres'
import { pgDriver, stripe } from 'idempotency-postgres'
import { admin, frameworks, pool, serve, sql } from './apps.js'

const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]
const until = async (condition, what) => {
  for (let i = 0; i < 500; i++) {
    if (await condition()) return
    await pause(20)
  }
  throw new Error(`waited in vain: ${what}`)
}
const keyed = (what, key = randomUUID()) => ({ 'idempotency-key': key, ...(what && { 'x-do': what }) })
const isKept = (headers) => value('SELECT count(*) > 0 FROM idempotency_keys WHERE key = $1', headers['idempotency-key'])
const payments = () => value('SELECT count(*)::int FROM payments')
const isIdle = () => until(() => value(`SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'service' AND state <> 'idle'`), 'no transaction is open')
const gateIsAwaited = () => until(() => value(`SELECT count(*) > 0 FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted`), 'the gate')

before(() => admin.query('CREATE TABLE IF NOT EXISTS gate (); GRANT SELECT, UPDATE ON gate TO app'))
after(() => Promise.all([pool.end(), sql.end(), admin.end()]))

async function whileGateIsShut(action) {
  const holder = await admin.connect()
  try {
    await holder.query('BEGIN; LOCK TABLE gate')
    return await action()
  } finally {
    await holder.query('ROLLBACK')
    holder.release()
  }
}

// A service in a process of its own.
async function start(name, headers, ...args) {
  const child = spawn(process.execPath, ['service.js', name, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise((resolve) => child.once('exit', (code, signal) => resolve(signal)))
  const port = await new Promise((resolve) => child.stdout.once('data', (data) => resolve(Number(data))))
  const pay = () => fetch(`http://127.0.0.1:${port}/pay`, { method: 'POST', body: '{}',
    headers: { 'content-type': 'application/json', 'x-account': 'acct_1', ...headers } })
  return { child, ended, pay, stop: async () => { child.kill(); await ended } }
}

for (const [name, make] of Object.entries(frameworks)) {
  describe(name, () => {
    let app
    before(async () => { app = await serve(make, { patience: 100 }) })
    after(() => app.stop())
    const using = async (options, action) => {
      const other = await serve(make, options)
      try {
        await action(other)
      } finally {
        other.stop()
      }
    }

    test('the response is sent after COMMIT: one that fails is no success', async () => {
      const headers = keyed()
      await admin.query(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'at commit' USING ERRCODE = '40001'; END$$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
      try {
        assert.equal((await app.post('{}', headers)).status, 503)
        assert.equal(await isKept(headers), false)
      } finally {
        await admin.query('DROP FUNCTION refuse CASCADE')
      }
      assert.equal((await app.post('{}', headers)).status, 201)
    })

    test('a client that goes away does not stop the work, and its retry gets the response', async () => {
      const [headers, was] = [keyed('block'), await payments()]
      await using({}, async (patient) => {
        await whileGateIsShut(async () => {
          const gone = new AbortController()
          const lost = fetch(`http://127.0.0.1:${patient.port}/pay`, { method: 'POST', body: '{}', signal: gone.signal,
            headers: { 'content-type': 'application/json', 'x-account': 'acct_1', ...headers } })
          await gateIsAwaited()
          gone.abort()
          await assert.rejects(lost)
        })
        await until(() => isKept(headers), 'the response is kept')
        assert.equal((await patient.post('{}', headers)).headers.get('idempotency-replayed'), 'true')
        assert.equal(await payments() - was, 1)
      })
    })

    test('a handler that never answers leaves no transaction behind when its client has gone', async () => {
      const headers = keyed('hang')
      const gone = fetch(`http://127.0.0.1:${app.port}/pay`, { method: 'POST', body: '{}', signal: AbortSignal.timeout(200),
        headers: { 'content-type': 'application/json', 'x-account': 'a', ...headers } })
      await assert.rejects(gone)
      await isIdle()
      assert.equal(await isKept(headers), false)
      await until(() => pool.totalCount === pool.idleCount, 'the connection is given back')
    })

    test('a lost connection to the database is no success, and the service lives on', async () => {
      const headers = keyed('die')
      assert.equal((await app.post('{}', headers)).status, 503)
      assert.equal(await isKept(headers), false)
      assert.equal((await app.post('{}', keyed())).status, 201)
    })

    test('an exception in a handler ends the transaction and frees the key', async () => {
      const headers = keyed('throw')
      assert.equal((await app.post('{}', headers)).status, 500)
      await isIdle()
      assert.equal(await isKept(headers), false)
    })

    test('a handler that commits by itself is an error, and its work is undone', async () => {
      const [headers, was] = [keyed('commit'), await payments()]
      const res = await app.post('{}', headers)
      assert.equal(res.status, 500)
      assert.equal(res.headers.get('retry-after'), null)
      assert.deepEqual([await isKept(headers), await payments()], [false, was])
    })

    test('a replay keeps bytes that are no text, and only headers that belong to the response', async () => {
      const headers = keyed('chunks')
      const [first, second] = [await app.post('{}', headers), await app.post('{}', headers)]
      assert.deepEqual(first.bytes, Buffer.from('one, two, \xff', 'latin1'))
      assert.deepEqual(second.bytes, first.bytes)
      for (const header of ['content-type', 'link', 'content-disposition', 'cache-control']) {
        assert.ok(first.headers.get(header))
        assert.equal(second.headers.get(header), first.headers.get(header), header)
      }
      assert.equal(first.headers.get('set-cookie'), 'secret=1')
      for (const header of ['set-cookie', 'x-run']) assert.equal(second.headers.get(header), null)
      assert.equal(await value(`SELECT headers ?| ARRAY['set-cookie', 'date', 'x-run'] FROM idempotency_keys WHERE key = $1`, headers['idempotency-key']), false)
    })

    test('many requests with one key at once: one runs, all that are answered get its response', async () => {
      const [headers, was] = [keyed(), await payments()]
      const answers = await Promise.all(Array.from({ length: 20 }, () => app.post('{}', headers)))
      assert.ok(answers.some(({ status }) => status === 201))
      for (const { status, text } of answers) assert.ok(status === 201 || status === 409, `${status} ${text}`)
      assert.equal(await payments(), was + 1)
    })

    test('another method, and a route that is spelled otherwise, are a mismatch', async () => {
      const headers = keyed()
      assert.equal((await app.post('{}', headers)).status, 201)
      for (const path of ['/pay/', '/PAY', '/p%61y']) assert.equal((await app.post('{}', headers, path)).status, 422, path)
      assert.equal((await app.post('{}', headers, '/pay', 'PATCH')).status, 422)
    })

    for (const profile of [undefined, stripe]) {
      test(`401, 408, 409, 425 and 429 of the handler are not kept, nor is their work: ${profile?.name ?? 'ietf'}`, () => using({ profile }, async (other) => {
        for (const status of [401, 408, 409, 425, 429]) {
          const [headers, was] = [keyed(`status ${status}`), await payments()]
          assert.equal((await other.post('{}', headers)).status, status)
          assert.deepEqual([await isKept(headers), await payments()], [false, was])
          assert.equal((await other.post('{}', headers)).status, 201)
        }
      }))
    }

    test('a response below 400 that is not kept commits its work and frees the key', () => using({ keep: () => false }, async (other) => {
      const [headers, was] = [keyed(), await payments()]
      for (let i = 0; i < 2; i++) assert.equal((await other.post('{}', headers)).status, 201)
      assert.deepEqual([await isKept(headers), await payments()], [false, was + 2])
    }))

    test('a request of 10 MB is compared to its last byte', async () => {
      const body = Buffer.alloc(10 << 20, 'x')
      const headers = { ...keyed(), 'content-type': 'application/octet-stream' }
      const was = await payments()
      assert.equal((await app.post(body, headers)).status, 201)
      assert.equal((await app.post(body, headers)).headers.get('idempotency-replayed'), 'true')
      body[body.length - 1] = 0
      assert.equal((await app.post(body, headers)).status, 422)
      assert.equal(await payments(), was + 1)
    })

    test('a request over bodyLimit is 413 and nothing runs', () => using({ bodyLimit: 1000 }, async (other) => {
      const was = await payments()
      const res = await other.post('x'.repeat(200_000), { ...keyed(), 'content-type': 'application/octet-stream' })
      assert.deepEqual([res.status, JSON.parse(res.text).code, await payments()], [413, 'idempotency_request_too_large', was])
    }))

    // Stripe's clients must not take it for a kept 500.
    for (const profile of [undefined, stripe]) {
      test(`a database that nobody can reach is 503, the process lives, and the retry runs: ${profile?.name ?? 'ietf'}`, async () => {
        const line = await databaseLine()
        const through = connections({ host: '127.0.0.1', port: line.port })
        try {
          await using({ ...through.options, profile }, async (other) => {
            const [headers, was] = [keyed(), await payments()]
            await line.down()
            const res = await other.post('{}', headers)
            assert.equal(res.status, 503)
            assert.equal(res.headers.get('retry-after'), '1')
            await line.up()
            await until(async () => (await other.post('{}', headers)).status === 201, 'the retry runs')
            assert.equal((await other.post('{}', headers)).status, 201)
            await line.down()
            assert.equal((await other.post('{}', headers)).status, 503)
            assert.equal(await payments(), was + 1)
          })
        } finally {
          await through.end()
          await line.down()
        }
      })
    }

    test('a server that is stopped at work is 503, and once it runs again the retry does the work once', { skip: !process.env.PGDATA && 'the server is not ours' }, async () => {
      const [headers, was] = [keyed('block'), await payments()]
      const holder = await admin.connect()
      holder.on('error', () => {})
      await holder.query('BEGIN; LOCK TABLE gate')
      const lost = app.post('{}', headers)
      await gateIsAwaited()
      await control('stop', '-m', 'immediate')
      try {
        holder.release(true)
        assert.equal((await lost).status, 503)
        const meanwhile = await app.post('{}', headers)
        assert.deepEqual([meanwhile.status, meanwhile.headers.get('retry-after')], [503, '1'])
      } finally {
        await control('start', '-l', 'restarted.log')
      }
      await until(async () => (await app.post('{}', headers)).status === 201, 'the retry runs')
      assert.equal((await app.post('{}', headers)).headers.get('idempotency-replayed'), 'true')
      assert.equal(await payments(), was + 1)
    })

    test('a process that is killed at work leaves nothing, and the retry does the work once', async () => {
      const [headers, was] = [keyed('block'), await payments()]
      const first = await start(name, headers)
      await whileGateIsShut(async () => {
        const lost = first.pay()
        await gateIsAwaited()
        first.child.kill('SIGKILL')
        await assert.rejects(lost)
      })
      await until(async () => (await app.post('{}', headers)).status === 201, 'the retry runs')
      assert.equal(await payments(), was + 1)
    })

    test('a process that is killed after COMMIT and before its response is replayed by the next', async () => {
      const [headers, was] = [keyed(), await payments()]
      const first = await start(name, headers, 'die-after-commit')
      await assert.rejects(first.pay())
      assert.equal(await first.ended, 'SIGKILL')
      assert.deepEqual([await isKept(headers), await payments()], [true, was + 1])
      const res = await app.post('{}', headers)
      assert.deepEqual([res.status, res.headers.get('idempotency-replayed'), await payments()], [201, 'true', was + 1])
    })
  })
}

// Both drivers on another address. With one connection, since postgres.js rejects a promise that nobody can catch when a
// connection closes while it is being opened: a second one would be just that when the line goes down.
function connections(address) {
  const through = new pg.Pool({ user: 'app', max: 1, connectionTimeoutMillis: 5000, ...address })
  through.on('error', () => {})
  const other = postgres({ user: 'app', max: 1, connect_timeout: 5, onnotice() {}, ...address })
  return { options: { connect: pgDriver(through), sql: other }, end: () => Promise.all([through.end(), other.end({ timeout: 1 })]) }
}

const control = (...args) => promisify(execFile)('pg_ctl', ['-s', '-w', ...args])

// A port in front of the server's socket that can be closed, with the connections through it.
async function databaseLine() {
  const open = new Set()
  const listener = net.createServer((socket) => {
    const onward = net.connect(`${process.env.PGHOST}/.s.PGSQL.${process.env.PGPORT ?? 5432}`)
    open.add(socket)
    socket.on('close', () => { open.delete(socket); onward.destroy() })
    for (const end of [socket, onward]) end.on('error', () => {})
    onward.on('close', () => socket.destroy())
    socket.pipe(onward).pipe(socket)
  })
  const listen = (port) => new Promise((resolve) => listener.listen(port, '127.0.0.1', resolve))
  await listen(0)
  const { port } = listener.address()
  return { port, up: () => listen(port), down: () => new Promise((resolve) => {
    listener.close(resolve)
    for (const socket of open) socket.destroy()
  }) }
}
