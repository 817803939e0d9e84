// pg: the driver alone. The same for anything built on it that gives you a client inside a transaction.
import pg from 'pg'

export const connect = (config) => new pg.Pool(config)
export const close = (pool) => pool.end()
export const sqlstate = (error) => error.code

export async function transaction(pool, work) {
  const client = await pool.connect()
  try {
    await client.query('BEGIN')
    const result = await work(client)
    await client.query('COMMIT')
    return result
  } catch (error) {
    await client.query('ROLLBACK')
    throw error
  } finally {
    client.release()
  }
}

export function placeOrder(pool, account, key, order) {
  const scope = `${account} orders`
  return transaction(pool, async (client) => {
    const { rows: [attempt] } = await client.query('SELECT * FROM idempotent_begin($1, $2, request => $3)',
      [scope, key, JSON.stringify(order)])
    if (attempt.replayed) return attempt.response

    const { rows: [{ id }] } = await client.query('INSERT INTO orders (item, quantity) VALUES ($1, $2) RETURNING id',
      [order.item, order.quantity])
    const response = { id }
    await client.query('SELECT idempotent_finish($1, $2, $3)', [scope, key, JSON.stringify(response)])
    return response
  })
}

// For the test of the commit guard.
export const beginAndCommit = (pool, key) => transaction(pool, (client) => client.query('SELECT idempotent_begin($1, $2)', ['acct_1 orders', key]))
export const beginInAutocommit = (pool, key) => pool.query('SELECT idempotent_begin($1, $2)', ['acct_1 orders', key])
