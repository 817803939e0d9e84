// Supabase's client against the emulation of PostgREST: what a retry gets, from a function, a view and a table.
import assert from 'node:assert/strict'
import { createHash, randomUUID } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { PostgrestClient } from '@supabase/postgrest-js'
import pg from 'pg'
import { start } from './emulation.js'

const admin = new pg.Pool({ max: 3 })
admin.on('error', () => {})
const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]

let api
before(async () => { api = await start() })
after(async () => { await api.stop(); await admin.end() })

const token = (claims) => Buffer.from(JSON.stringify(claims)).toString('base64url')
const ANNE = { role: 'authenticated', sub: 'anne' }
const BEN = { role: 'authenticated', sub: 'ben' }

// What the client sends and gets, with the raw response beside it. The client's own fetch is where a digest of the body can be added.
async function send(build, { key, claims = ANNE, digest = false, headers = {} } = {}) {
  let res, text
  const client = new PostgrestClient(api.url, {
    headers: { ...(claims ? { Authorization: `Bearer ${token(claims)}` } : {}), ...headers },
    fetch: async (url, init) => {
      if (digest) {
        init.headers = new Headers(init.headers)
        init.headers.set('Content-Digest', `sha-256=:${createHash('sha256').update(init.body ?? '').digest('base64')}:`)
      }
      res = await fetch(url, init)
      text = await res.clone().text()
      return res
    },
  })
  const request = build(client)
  const { data, error } = await (key ? request.setHeader('Idempotency-Key', key) : request)
  return { data, error, text, status: res.status, header: (name) => res.headers.get(name) }
}

const isReplay = (answer) => answer.header('idempotency-replayed') === 'true'

const until = async (condition, what) => {
  for (let i = 0; i < 1000; i++) {
    if (await condition()) return
    await sleep(20)
  }
  throw new Error(`waited in vain: ${what}`)
}

// While action runs, whoever writes to the table waits.
async function whileBlocked(table, action) {
  const holder = await admin.connect()
  try {
    await holder.query(`BEGIN; LOCK TABLE ${table} IN SHARE MODE`)
    await action(() => until(() => value(
      'SELECT count(*) > 0 FROM pg_locks WHERE relation = $1::regclass AND NOT granted', table), 'a request waits'))
  } finally {
    await holder.query('ROLLBACK')
    holder.release()
  }
}

const FUNCTION = {
  table: 'shop.orders', post: (item, amount = 5) => (client) => client.rpc('place_order', { item, amount }),
  refused: (item) => FUNCTION.post(item, 2_000_000), refusal: 402, body: 'the same',
}
const VIEW = {
  table: 'shop.orders', post: (item, amount = 5) => (client) => client.from('orders').insert({ item, amount }).select().single(),
  refused: (item) => VIEW.post(item, -1), refusal: 400, body: 'the same',
}
const TABLE = {
  table: 'api.notes', post: (note, more = '') => (client) => client.from('notes').insert({ note: note + more }).select(),
  refused: () => TABLE.post(''), refusal: 400, body: 'IK200', digest: true,
}
const KINDS = { 'A, a function': FUNCTION, 'B, a view': VIEW, 'B, a table': TABLE }
const edition = process.env.EDITION ?? 'the installed edition'

for (const [what, { table, post, refused, refusal, body, digest }] of Object.entries(KINDS)) {
  describe(`${edition}: ${what}`, () => {
    const count = () => value(`SELECT count(*)::int FROM ${table}`)
    const keys = (key) => value('SELECT count(*)::int FROM idempotency.idempotency_keys WHERE key = $1', key)

    test('the first request does the work, its retry gets the same response and does none', async () => {
      const key = randomUUID()
      const before = await count()
      const first = await send(post('tea'), { key, digest })
      assert.equal(first.status, 201)
      assert.equal(first.error, null)
      assert.ok(!isReplay(first))
      const second = await send(post('tea'), { key, digest })
      assert.equal(second.status, 201)
      assert.equal(second.error, null)
      assert.ok(isReplay(second))
      if (body === 'the same') assert.equal(second.text, first.text)
      else assert.equal(second.data.code, body)
      assert.equal(await count(), before + 1)
    })

    test('another body under the same key is 422 and does no work', async () => {
      const key = randomUUID()
      assert.equal((await send(post('tea', 1), { key, digest })).status, 201)
      const before = await count()
      const { status, error } = await send(post('tea', 2), { key, digest })
      assert.equal(status, 422)
      assert.equal(error.code, 'IK422')
      assert.equal(await count(), before)
    })

    test('while the first request is in progress its retry is 409 with Retry-After, and later a replay', async () => {
      const key = randomUUID()
      let first
      await whileBlocked(table, async (isWaiting) => {
        first = send(post('tea'), { key, digest })
        await isWaiting()
        const { status, header, error } = await send(post('tea'), { key, digest })
        assert.equal(status, 409)
        assert.match(header('retry-after'), /^[1-9]\d*$/)
        assert.equal(error.code, 'IK409')
      })
      first = await first
      assert.equal(first.status, 201)
      const later = await send(post('tea'), { key, digest })
      assert.ok(isReplay(later))
      assert.equal(later.status, 201)
    })

    test('one key of two accounts is two keys', async () => {
      const key = randomUUID()
      const before = await count()
      for (const claims of [ANNE, BEN, { ...ANNE, sub: 'ann"e' }]) {
        const { status, header } = await send(post('tea'), { key, digest, claims })
        assert.equal(status, 201)
        assert.equal(header('idempotency-replayed'), null)
      }
      assert.equal(await count(), before + 3)
    })

    test('a request that fails leaves neither work nor key, and the key can be used again', async () => {
      const key = randomUUID()
      const before = await count()
      assert.equal((await send(refused('tea'), { key, digest })).status, refusal)
      assert.equal(await keys(key), 0)
      assert.equal(await count(), before)
      const { status, header } = await send(post('tea'), { key, digest })
      assert.equal(status, 201)
      assert.equal(header('idempotency-replayed'), null)
      assert.equal(await keys(key), 1)
    })

    test('a malformed or too long key is 400, an anonymous one 401', async () => {
      const before = await count()
      for (const key of ['"half', 'a, b', '""', 'x'.repeat(256)]) {
        assert.equal((await send(post('tea'), { key })).status, 400, key)
      }
      assert.equal((await send(post('tea'), { key: 'k', claims: { role: 'authenticated' } })).status, 401)
      assert.equal(await count(), before)
    })
  })
}

describe(`${edition}: both`, () => {
  test('an endpoint that requires a key is 400 without one, another runs without protection', async () => {
    for (const post of [FUNCTION.post, VIEW.post]) assert.equal((await send(post('tea'))).status, 400)
    const before = await value('SELECT count(*)::int FROM api.notes')
    for (let i = 0; i < 2; i++) assert.equal((await send(TABLE.post('no key'))).status, 201)
    assert.equal(await value('SELECT count(*)::int FROM api.notes'), before + 2)
    await admin.query(`INSERT INTO once.key_required VALUES ('/notes')`)
    try {
      assert.equal((await send(TABLE.post('no key'))).status, 400)
    } finally {
      await admin.query(`DELETE FROM once.key_required WHERE path = '/notes'`)
    }
    await admin.query(`DELETE FROM once.key_required WHERE path = '/orders'`)
    try {
      assert.equal((await send(VIEW.post('no key'))).status, 201)
    } finally {
      await admin.query(`INSERT INTO once.key_required VALUES ('/orders')`)
    }
  })

  test('a quoted key and a bare one are the same key', async () => {
    const key = randomUUID()
    await send(VIEW.post('tea'), { key: `"${key}"` })
    assert.ok(isReplay(await send(VIEW.post('tea'), { key })))
  })

  test('a key that another endpoint or method has used is 422', async () => {
    const key = randomUUID()
    assert.equal((await send(TABLE.post('tea'), { key })).status, 201)
    for (const build of [VIEW.post('tea'), FUNCTION.post('tea'), (client) => client.from('notes').delete().eq('note', 'tea')]) {
      assert.equal((await send(build, { key })).status, 422)
    }
  })

  test('several rows of a view are replayed as they were, with the columns that the retry selects', async () => {
    const key = randomUUID()
    const rows = ['tea', 'milk', 'sugar'].map((item, i) => ({ item, amount: i + 1 }))
    const insert = (...given) => (client) => client.from('orders').insert(given).select()
    const first = await send(insert(...rows), { key })
    assert.equal(first.data.length, 3)
    const second = await send(insert(...rows), { key })
    assert.deepEqual(second.data, first.data)
    for (const others of [[...rows, { item: 'rum', amount: 9 }], rows.slice(1), rows.slice(0, 2)]) {
      assert.equal((await send(insert(...others), { key })).status, 422)
    }
  })

  test('an insert that wants no body back is replayed without one from a view', async () => {
    const key = randomUUID()
    const insert = (client) => client.from('orders').insert({ item: 'tea', amount: 1 })
    for (const replayed of [null, 'true']) {
      const { status, text, header } = await send(insert, { key })
      assert.deepEqual([status, text, header('idempotency-replayed')], [201, '', replayed])
    }
  })

  test('a refusal that a function keeps is replayed with its status and headers', async () => {
    await admin.query(`CREATE FUNCTION api.decline() RETURNS jsonb LANGUAGE sql AS $$
      SELECT set_config('response.headers', '[{"X-Case": "' || gen_random_uuid() || '"}]', true);
      SELECT COALESCE(once.answered('{}'), once.keep('{"message": "declined"}', 402)) $$`)
    try {
      const key = randomUUID()
      const decline = () => send((client) => client.rpc('decline'), { key })
      const [first, second] = [await decline(), await decline()]
      assert.deepEqual([first.status, second.status], [402, 402])
      assert.equal(second.text, first.text)
      assert.equal(second.header('x-case'), first.header('x-case'))
      assert.deepEqual([isReplay(first), isReplay(second)], [false, true])
    } finally {
      await admin.query('DROP FUNCTION api.decline()')
    }
  })

  test('an update and a delete are done once', async () => {
    const { data: [{ id }] } = await send(TABLE.post('old'))
    const [update, remove] = [randomUUID(), randomUUID()]
    const set = (client) => client.from('notes').update({ note: 'new' }).eq('id', id)
    assert.equal((await send(set, { key: update })).status, 204)
    await admin.query('UPDATE api.notes SET note = $2 WHERE id = $1', [id, 'newer'])
    const again = await send(set, { key: update })
    assert.equal(again.status, 204)
    assert.ok(isReplay(again))
    assert.equal(await value('SELECT note FROM api.notes WHERE id = $1', id), 'newer')
    const erase = (client) => client.from('notes').delete().eq('id', id).select()
    assert.equal((await send(erase, { key: remove })).status, 200)
    assert.ok(isReplay(await send(erase, { key: remove })))
  })

  test('Prefer: tx=rollback leaves no key, and no attempt outlives its transaction', async () => {
    const key = randomUUID()
    assert.equal((await send(TABLE.post('tea'), { key, headers: { Prefer: 'tx=rollback' } })).status, 201)
    assert.ok(!isReplay(await send(TABLE.post('tea'), { key })))
    assert.equal(await value('SELECT count(*)::int FROM once.unfinished'), 0)
  })

  test('reading takes no key, and an account sees its own orders alone', async () => {
    const key = randomUUID()
    await send(VIEW.post(key), { key })
    const read = (client) => client.from('orders').select().eq('item', key)
    assert.equal((await send(read, { key })).data.length, 1)
    assert.equal((await send(read, { key, claims: BEN })).data.length, 0)
  })

  test('the web roles can neither call the extension nor read what is kept', async () => {
    for (const role of ['anon', 'authenticated', 'authenticator']) {
      assert.equal(await value(`SELECT count(*)::int FROM pg_proc
        WHERE proname LIKE 'idempotent%' AND has_function_privilege($1, oid, 'EXECUTE')`, role), 0)
      for (const table of ['idempotency.idempotency_keys', 'once.unfinished', 'once.key_required']) {
        assert.equal(await value(`SELECT has_table_privilege($1, $2, 'SELECT, INSERT, UPDATE, DELETE')`, role, table), false)
      }
    }
  })
})
