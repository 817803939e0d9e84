// Drizzle: execute() on the transaction; what the driver said is the error's cause.
import { sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { integer, pgTable, text } from 'drizzle-orm/pg-core'
import pg from 'pg'

const orders = pgTable('orders', {
  id: integer().primaryKey().generatedAlwaysAsIdentity(),
  item: text().notNull(),
  quantity: integer().notNull(),
})

export const connect = (config) => drizzle({ client: new pg.Pool(config) })
export const close = (db) => db.$client.end()
export const sqlstate = (error) => error.cause?.code

export function placeOrder(db, account, key, order) {
  const scope = `${account} orders`
  return db.transaction(async (tx) => {
    const { rows: [attempt] } = await tx.execute(
      sql`SELECT * FROM idempotent_begin(${scope}, ${key}, request => ${JSON.stringify(order)})`)
    if (attempt.replayed) return attempt.response

    const [{ id }] = await tx.insert(orders).values(order).returning({ id: orders.id })
    const response = { id }
    await tx.execute(sql`SELECT idempotent_finish(${scope}, ${key}, ${JSON.stringify(response)})`)
    return response
  })
}

// For the test of the commit guard.
const begin = (key) => sql`SELECT idempotent_begin('acct_1 orders', ${key})`
export const beginAndCommit = (db, key) => db.transaction((tx) => tx.execute(begin(key)))
export const beginInAutocommit = (db, key) => db.execute(begin(key))
