// What is asked of every client, directly and through PgBouncer in transaction mode (PGBOUNCER_PORT): start, replay, two
// accounts with one key, mismatch, in progress, rollback, commit without finish.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

const server = { host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER, database: process.env.PGDATABASE, password: '' }
const ways = { 'directly': server, 'through PgBouncer': { ...server, port: Number(process.env.PGBOUNCER_PORT) } }

export function contract(pg, name, client) {
  const admin = new pg.Pool(server)
  const value = async (text, ...values) => Object.values((await admin.query(text, values)).rows[0])[0]
  const orders = (item) => value('SELECT count(*)::int FROM orders WHERE item = $1', item)
  after(() => admin.end())

  for (const [way, config] of Object.entries(ways)) {
    describe(`${name} ${way}`, () => {
      let db
      before(async () => { db = await client.connect(config) })
      after(() => client.close(db))

      const fails = (promise, sqlstate) => assert.rejects(promise, (error) => {
        assert.equal(client.sqlstate(error), sqlstate, String(error))
        return true
      })
      // A key and an order of their own for each test.
      const make = (quantity = 1) => [randomUUID(), { item: randomUUID(), quantity }]

      test('started and replayed: the work is done once', async () => {
        const [key, order] = make()
        const first = await client.placeOrder(db, 'acct_1', key, order)
        assert.ok(Number.isInteger(first.id))
        assert.deepEqual(await client.placeOrder(db, 'acct_1', key, order), first)
        assert.equal(await orders(order.item), 1)
      })

      test('the same key of another account is another key', async () => {
        const [key, order] = make()
        const first = await client.placeOrder(db, 'acct_1', key, order)
        assert.notEqual((await client.placeOrder(db, 'acct_2', key, order)).id, first.id)
        assert.equal(await orders(order.item), 2)
      })

      test('mismatch: IK422', async () => {
        const [key, order] = make()
        await client.placeOrder(db, 'acct_1', key, order)
        await fails(client.placeOrder(db, 'acct_1', key, { ...order, quantity: 2 }), 'IK422')
        assert.equal(await orders(order.item), 1)
      })

      test('in progress in another transaction: waits, and replays', async () => {
        const [key, order] = make()
        const other = await admin.connect()
        await other.query('BEGIN')
        await other.query('SELECT idempotent_begin($1, $2, request => $3)', ['acct_1 orders', key, JSON.stringify(order)])
        const second = client.placeOrder(db, 'acct_1', key, order)
        for (let i = 0; i < 3000 && !await value(`SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`); i++) {
          await sleep(10)
        }
        await other.query('SELECT idempotent_finish($1, $2, $3)', ['acct_1 orders', key, '{"id": 4711}'])
        await other.query('COMMIT')
        other.release()
        assert.deepEqual(await second, { id: 4711 })
        assert.equal(await orders(order.item), 0)
      })

      test('in progress under a lease: IK409', async () => {
        const [key, order] = make()
        await admin.query(`SELECT idempotent_begin('acct_1 orders', $1, request => $2, lease => '1 minute')`, [key, JSON.stringify(order)])
        await fails(client.placeOrder(db, 'acct_1', key, order), 'IK409')
      })

      test('rollback: the key is free, the work undone', async () => {
        const [key, order] = make(-1)
        await fails(client.placeOrder(db, 'acct_1', key, order), '23514')
        assert.equal(await orders(order.item), 0)
        assert.ok((await client.placeOrder(db, 'acct_1', key, { ...order, quantity: 1 })).id)
      })

      test('commit without finish: IK500', async () => {
        const [key] = make()
        await fails(client.beginAndCommit(db, key), 'IK500')
        await fails(client.beginInAutocommit(db, key), 'IK500')
      })
    })
  }
}
