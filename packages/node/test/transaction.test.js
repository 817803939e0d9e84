// What the middleware owes its transaction, whatever handler, client, process and database do.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import net from 'node:net'
import { after, before, describe, test } from 'node:test'
import { setTimeout as pause } from 'node:timers/promises'
import express5 from 'express'
import express4 from 'express4'
import pg from 'pg'
import { express as adapter, pgDriver, stripe } from 'idempotency-postgres'
import { admin, guard, pool, serve, sql } from './apps.js'

const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]
const until = async (condition, what) => {
  for (let i = 0; i < 500; i++) {
    if (await condition()) return
    await pause(20)
  }
  throw new Error(`waited in vain: ${what}`)
}
const keyed = (key = randomUUID()) => ({ 'idempotency-key': key })
const isKept = (headers) => value('SELECT count(*) > 0 FROM idempotency_keys WHERE key = $1', headers['idempotency-key'])
const payments = () => value('SELECT count(*)::int FROM payments')
const isIdle = () => until(() => value(`SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'service' AND state <> 'idle'`), 'no transaction is open')
const insert = (db) => db.query(`INSERT INTO payments (account, amount) VALUES ('a', '1')`)

after(() => Promise.all([pool.end(), sql.end(), admin.end()]))

const routes = {
  '/pay': async (req, res) => { await insert(req.db); res.status(201).json({ paid: true }) },
  '/hang': () => {},
  '/die': async (req, res) => {
    await req.db.query('SELECT pg_terminate_backend(pg_backend_pid())').catch(() => {})
    res.status(201).json({ paid: true })
  },
  '/chunks': (req, res) => {
    res.status(201).set({ 'Content-Type': 'application/x-test', Link: '</x>; rel=next', 'Set-Cookie': 'secret=1', 'X-Run': randomUUID(),
      'Content-Disposition': 'attachment', 'Cache-Control': 'no-store' })
    res.write('one, ')
    res.write(Buffer.from('two, '))
    res.end('\xff', 'latin1')
  },
  '/throw': () => { throw new Error('expected by the test') },
  '/commit': async (req, res) => { await insert(req.db); await req.db.query('COMMIT'); res.status(201).end() },
}

function application(make, options) {
  const app = make()
  for (const [path, handler] of Object.entries(routes)) {
    app.post(path, adapter(guard({ patience: 100, ...options })), (req, res, next) => Promise.resolve(handler(req, res)).catch(next))
  }
  let failures = new Set()
  app.post('/status/:status', adapter(guard(options)), async (req, res) => {
    await insert(req.db)
    const key = req.get('idempotency-key')
    if (failures.has(key)) return res.status(201).end()
    failures.add(key)
    res.status(Number(req.params.status)).end()
  })
  app.use((error, req, res, next) => { res.status(500).json({ failed: true }) })
  return app
}

for (const [name, make] of Object.entries({ 'Express 5': express5, 'Express 4': express4 })) {
  describe(name, () => {
    let app
    before(async () => { app = await serve(() => application(make)) })
    after(() => app.stop())

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

    test('a handler that never answers leaves no transaction behind when its client has gone', async () => {
      const headers = keyed()
      const gone = fetch(`http://127.0.0.1:${app.port}/hang`, { method: 'POST', body: '{}', signal: AbortSignal.timeout(200),
        headers: { 'x-account': 'a', ...headers } })
      await assert.rejects(gone)
      await isIdle()
      assert.equal(await isKept(headers), false)
      await until(() => pool.totalCount === pool.idleCount, 'the connection is given back')
    })

    test('a lost connection to the database is no success, and the service lives on', async () => {
      const headers = keyed()
      assert.equal((await app.post('{}', headers, '/die')).status, 503)
      assert.equal(await isKept(headers), false)
      assert.equal((await app.post('{}', keyed())).status, 201)
    })

    test('an exception in a handler ends the transaction and frees the key', async () => {
      const headers = keyed()
      assert.equal((await app.post('{}', headers, '/throw')).status, 500)
      await isIdle()
      assert.equal(await isKept(headers), false)
    })

    test('a handler that commits by itself is an error, and its work is undone', async () => {
      const [headers, was] = [keyed(), await payments()]
      const res = await app.post('{}', headers, '/commit')
      assert.equal(res.status, 500)
      assert.equal(res.headers.get('retry-after'), null)
      assert.deepEqual([await isKept(headers), await payments()], [false, was])
    })

    test('a replay keeps bytes that are no text, and only headers that belong to the response', async () => {
      const headers = keyed()
      const [first, second] = [await app.post('{}', headers, '/chunks'), await app.post('{}', headers, '/chunks')]
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
      assert.ok(answers.every(({ status }) => status === 201 || status === 409))
      assert.equal(await payments(), was + 1)
    })

    for (const profile of [undefined, stripe]) {
      test(`401, 408, 409, 425 and 429 of the handler are not kept, nor is their work: ${profile?.name ?? 'ietf'}`, async () => {
        const other = await serve(() => application(make, { profile }))
        try {
          for (const status of [401, 408, 409, 425, 429]) {
            const [headers, was] = [keyed(), await payments()]
            assert.equal((await other.post('{}', headers, `/status/${status}`)).status, status)
            assert.deepEqual([await isKept(headers), await payments()], [false, was])
            assert.equal((await other.post('{}', headers, `/status/${status}`)).status, 201)
          }
        } finally {
          other.stop()
        }
      })
    }

    test('a response below 400 that is not kept commits its work and frees the key', async () => {
      const other = await serve(() => application(make, { keep: () => false }))
      try {
        const [headers, was] = [keyed(), await payments()]
        for (let i = 0; i < 2; i++) assert.equal((await other.post('{}', headers)).status, 201)
        assert.deepEqual([await isKept(headers), await payments()], [false, was + 2])
      } finally {
        other.stop()
      }
    })

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

    test('a request over bodyLimit is 413 and nothing runs', async () => {
      const other = await serve(() => {
        const app = make()
        app.post('/pay', adapter(guard({ bodyLimit: 1000 })), () => assert.fail('ran'))
        app.use((error, req, res, next) => { res.status(error.status ?? 500).end() })
        return app
      })
      try {
        assert.equal((await other.post('x'.repeat(2000), keyed())).status, 413)
      } finally {
        other.stop()
      }
    })

    // The service meets what a stopped server looks like: nobody listens. Stripe's clients must not take that for a kept 500.
    for (const profile of [undefined, stripe]) {
      test(`a database that is down is 503, the process lives, and the retry runs: ${profile?.name ?? 'ietf'}`, async () => {
        const line = await databaseLine()
        const through = new pg.Pool({ user: 'app', host: '127.0.0.1', port: line.port, max: 2, connectionTimeoutMillis: 5000 })
        through.on('error', () => {})
        const other = await serve(() => application(make, { connect: pgDriver(through), profile }))
        try {
          const [headers, was] = [keyed(), await payments()]
          await line.down()
          const res = await other.post('{}', headers)
          assert.equal(res.status, 503)
          assert.equal(res.headers.get('retry-after'), '1')
          await line.up()
          assert.equal((await other.post('{}', headers)).status, 201)
          assert.equal((await other.post('{}', headers)).status, 201)
          await line.down()
          assert.equal((await other.post('{}', headers)).status, 503)
          assert.equal(await payments(), was + 1)
        } finally {
          other.stop()
          await through.end()
          await line.down()
        }
      })
    }
  })
}

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

test('a process that is killed after COMMIT and before its response is replayed by the next', async () => {
  const headers = { 'content-type': 'application/json', 'x-account': 'acct_1', ...keyed() }
  const was = await payments()
  const start = async (...args) => {
    const child = spawn(process.execPath, ['service.js', ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
    const port = await new Promise((resolve) => child.stdout.once('data', (data) => resolve(Number(data))))
    const ended = new Promise((resolve) => child.once('exit', (code, signal) => resolve(signal)))
    return { child, ended, pay: () => fetch(`http://127.0.0.1:${port}/pay`, { method: 'POST', body: '{}', headers }) }
  }
  const first = await start('die-after-commit')
  await assert.rejects(first.pay())
  assert.equal(await first.ended, 'SIGKILL')
  assert.deepEqual([await isKept(headers), await payments()], [true, was + 1])
  const second = await start()
  try {
    const res = await second.pay()
    assert.equal(res.status, 201)
    assert.equal(res.headers.get('idempotency-replayed'), 'true')
    assert.equal(await payments(), was + 1)
  } finally {
    second.child.kill()
    await second.ended
  }
})
