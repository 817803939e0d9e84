// Kysely: sql`…`.execute() on the transaction, never on the Kysely itself.
import { Kysely, PostgresDialect, sql } from 'kysely'
import pg from 'pg'

export const connect = (config) => new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool(config) }) })
export const close = (db) => db.destroy()
export const sqlstate = (error) => error.code

export function placeOrder(db, account, key, order) {
  const scope = `${account} orders`
  return db.transaction().execute(async (trx) => {
    const { rows: [attempt] } = await sql`SELECT * FROM idempotent_begin(${scope}, ${key}, request => ${JSON.stringify(order)})`.execute(trx)
    if (attempt.replayed) return attempt.response

    const { id } = await trx.insertInto('orders').values(order).returning('id').executeTakeFirstOrThrow()
    const response = { id }
    await sql`SELECT idempotent_finish(${scope}, ${key}, ${JSON.stringify(response)})`.execute(trx)
    return response
  })
}

// For the test of the commit guard.
const begin = (key) => sql`SELECT idempotent_begin('acct_1 orders', ${key})`
export const beginAndCommit = (db, key) => db.transaction().execute((trx) => begin(key).execute(trx))
export const beginInAutocommit = (db, key) => begin(key).execute(db)
