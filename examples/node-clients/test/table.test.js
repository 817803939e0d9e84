// The table of doc/clients.md: a retention as text and a body as a Buffer, the way each client passes them.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, test } from 'node:test'
import { sql as drizzle } from 'drizzle-orm'
import { sql as kysely } from 'kysely'
import pg from 'pg'
import { QueryTypes } from 'sequelize'
import { transaction } from '../pg.js'

const server = { host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER, database: process.env.PGDATABASE, password: '' }
const admin = new pg.Pool(server)
after(() => admin.end())

const BEGIN = (...marks) => `SELECT * FROM idempotent_begin(${marks[0]}, ${marks[1]}, retention => ${marks[2]})`
const FINISH = (...marks) => `SELECT idempotent_finish(${marks[0]}, ${marks[1]}, body => ${marks[2]})`
const dollars = ['$1', '$2', '$3'], questions = ['?', '?', '?']

// [scope, key, retention] to begin, [scope, key, body] to finish.
const clients = {
  pg: (db, begin, finish) => transaction(db, async (client) => {
    await client.query(BEGIN(...dollars), begin)
    await client.query(FINISH(...dollars), finish)
  }),
  postgres: (db, begin, finish) => db.begin(async (tx) => {
    await tx`SELECT * FROM idempotent_begin(${begin[0]}, ${begin[1]}, retention => ${begin[2]})`
    await tx`SELECT idempotent_finish(${finish[0]}, ${finish[1]}, body => ${finish[2]})`
  }),
  knex: (db, begin, finish) => db.transaction(async (trx) => {
    await trx.raw(BEGIN(...questions), begin)
    await trx.raw(FINISH(...questions), finish)
  }),
  kysely: (db, begin, finish) => db.transaction().execute(async (trx) => {
    await kysely`SELECT * FROM idempotent_begin(${begin[0]}, ${begin[1]}, retention => ${begin[2]})`.execute(trx)
    await kysely`SELECT idempotent_finish(${finish[0]}, ${finish[1]}, body => ${finish[2]})`.execute(trx)
  }),
  sequelize: (db, begin, finish) => db.transaction(async (transaction) => {
    await db.query(BEGIN(...dollars), { bind: begin, type: QueryTypes.SELECT, transaction })
    await db.query(FINISH(...dollars), { bind: finish, type: QueryTypes.SELECT, transaction })
  }),
  typeorm: (db, begin, finish) => db.transaction(async (manager) => {
    await manager.query(BEGIN(...dollars), begin)
    await manager.query(FINISH(...dollars), finish)
  }),
  drizzle: (db, begin, finish) => db.transaction(async (tx) => {
    await tx.execute(drizzle`SELECT * FROM idempotent_begin(${begin[0]}, ${begin[1]}, retention => ${begin[2]})`)
    await tx.execute(drizzle`SELECT idempotent_finish(${finish[0]}, ${finish[1]}, body => ${finish[2]})`)
  }),
}

for (const [name, pass] of Object.entries(clients)) {
  test(`${name}: retention as text, body as a Buffer`, async () => {
    const { connect, close } = await import(`../${name}.js`)
    const db = await connect(server)
    const key = randomUUID()
    try {
      await pass(db, ['acct_1 table', key, '15 days'], ['acct_1 table', key, Buffer.from([0, 0x5c, 0xff])])
    } finally {
      await close(db)
    }
    const { rows } = await admin.query(`SELECT encode(body, 'hex') AS body, expires_at - finished_at BETWEEN '15 days' AND '16 days' AS kept
      FROM idempotency_keys WHERE key = $1`, [key])
    assert.deepEqual(rows, [{ body: '005cff', kept: true }])
  })
}
