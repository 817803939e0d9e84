// TypeORM: query() on the transaction's own entity manager.
import { DataSource, EntitySchema } from 'typeorm'

const Order = new EntitySchema({
  name: 'Order',
  tableName: 'orders',
  columns: {
    id: { type: 'int', primary: true, generated: 'identity' },
    item: { type: 'text' },
    quantity: { type: 'int' },
  },
})

export const connect = ({ host, port, user, database, password }) =>
  new DataSource({ type: 'postgres', host, port, username: user, database, password, entities: [Order] }).initialize()
export const close = (source) => source.destroy()
export const sqlstate = (error) => error.driverError?.code

export function placeOrder(source, account, key, order) {
  const scope = `${account} orders`
  return source.transaction(async (manager) => {
    const [attempt] = await manager.query('SELECT * FROM idempotent_begin($1, $2, request => $3)',
      [scope, key, JSON.stringify(order)])
    if (attempt.replayed) return attempt.response

    const { id } = await manager.save(Order, { ...order })
    const response = { id }
    await manager.query('SELECT idempotent_finish($1, $2, $3)', [scope, key, JSON.stringify(response)])
    return response
  })
}

// For the test of the commit guard.
export const beginAndCommit = (source, key) =>
  source.transaction((manager) => manager.query('SELECT idempotent_begin($1, $2)', ['acct_1 orders', key]))
export const beginInAutocommit = (source, key) => source.query('SELECT idempotent_begin($1, $2)', ['acct_1 orders', key])
