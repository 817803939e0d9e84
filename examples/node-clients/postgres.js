// postgres.js: everything on the sql that begin() hands to its function. With PgBouncer in transaction mode, prepare: false.
import postgres from 'postgres'

export const connect = ({ host, port, user, database }) => postgres({ host, port, user, database, prepare: false, onnotice() {} })
export const close = (sql) => sql.end()
export const sqlstate = (error) => error.code

export function placeOrder(sql, account, key, order) {
  const scope = `${account} orders`
  return sql.begin(async (tx) => {
    const [attempt] = await tx`SELECT * FROM idempotent_begin(${scope}, ${key}, request => ${tx.json(order)})`
    if (attempt.replayed) return attempt.response

    const [{ id }] = await tx`INSERT INTO orders ${tx(order, 'item', 'quantity')} RETURNING id`
    const response = { id }
    await tx`SELECT idempotent_finish(${scope}, ${key}, ${tx.json(response)})`
    return response
  })
}

// For the test of the commit guard.
export const beginAndCommit = (sql, key) => sql.begin((tx) => tx`SELECT idempotent_begin('acct_1 orders', ${key})`)
export const beginInAutocommit = (sql, key) => sql`SELECT idempotent_begin('acct_1 orders', ${key})`
