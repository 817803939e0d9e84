// Sequelize: every call names the transaction; one that forgets it runs on another connection, in autocommit.
import { DataTypes, QueryTypes, Sequelize } from 'sequelize'

export function connect({ host, port, user, database, password }) {
  const sequelize = new Sequelize(database, user, password, { host, port, dialect: 'postgres', logging: false })
  sequelize.define('Order', { item: DataTypes.TEXT, quantity: DataTypes.INTEGER }, { tableName: 'orders', timestamps: false })
  return sequelize
}
export const close = (sequelize) => sequelize.close()
export const sqlstate = (error) => error.original?.code

export function placeOrder(sequelize, account, key, order) {
  const scope = `${account} orders`
  return sequelize.transaction(async (transaction) => {
    const [attempt] = await sequelize.query('SELECT * FROM idempotent_begin($1, $2, request => $3)',
      { bind: [scope, key, JSON.stringify(order)], type: QueryTypes.SELECT, transaction })
    if (attempt.replayed) return attempt.response

    const { id } = await sequelize.models.Order.create(order, { transaction })
    const response = { id }
    await sequelize.query('SELECT idempotent_finish($1, $2, $3)',
      { bind: [scope, key, JSON.stringify(response)], type: QueryTypes.SELECT, transaction })
    return response
  })
}

// For the test of the commit guard.
const begin = (sequelize, key, transaction) => sequelize.query('SELECT idempotent_begin($1, $2)',
  { bind: ['acct_1 orders', key], type: QueryTypes.SELECT, transaction })
export const beginAndCommit = (sequelize, key) => sequelize.transaction((transaction) => begin(sequelize, key, transaction))
export const beginInAutocommit = (sequelize, key) => begin(sequelize, key)
