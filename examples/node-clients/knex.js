// Knex: raw() on the transaction, never on knex itself.
import knex from 'knex'

export const connect = (connection) => knex({ client: 'pg', connection })
export const close = (db) => db.destroy()
export const sqlstate = (error) => error.code

export function placeOrder(db, account, key, order) {
  const scope = `${account} orders`
  return db.transaction(async (trx) => {
    const { rows: [attempt] } = await trx.raw('SELECT * FROM idempotent_begin(?, ?, request => ?)',
      [scope, key, JSON.stringify(order)])
    if (attempt.replayed) return attempt.response

    const [{ id }] = await trx('orders').insert(order).returning('id')
    const response = { id }
    await trx.raw('SELECT idempotent_finish(?, ?, ?)', [scope, key, JSON.stringify(response)])
    return response
  })
}

// For the test of the commit guard.
export const beginAndCommit = (db, key) => db.transaction((trx) => trx.raw('SELECT idempotent_begin(?, ?)', ['acct_1 orders', key]))
export const beginInAutocommit = (db, key) => db.raw('SELECT idempotent_begin(?, ?)', ['acct_1 orders', key])
