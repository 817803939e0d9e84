// What all contenders have in common: the scope, the work, the pool, one way to run a transaction.
import pg from 'pg'

export const SCOPE = 'acct_42 POST /v1/charges (eur)'

// Another attempt holds the key: the caller is told to come again. Contenders throw it, whatever their library throws.
export class Conflict extends Error {}

// More than the clients of a measure, and what a service of one process might have. Connections that a contender does not
// use go away between its turns, as the others' turns need the server's slots.
export const openPool = () => {
  const pool = new pg.Pool({ max: 20, idleTimeoutMillis: 1000 })
  pool.on('error', () => {})
  return pool
}

// A named statement is parsed and planned once in each connection.
export const statement = (name, text) => (db, ...values) => db.query({ name, text, values })

// Without pg's callback in between, so that every contender pays the same.
export async function transaction(pool, work, begin = 'BEGIN') {
  const client = await pool.connect()
  let failure
  try {
    await client.query(begin)
    const result = await work(client)
    await client.query('COMMIT')
    return result
  } catch (error) {
    failure = error
    await client.query('ROLLBACK').catch((lost) => { failure = lost })
    throw error
  } finally {
    // A connection is only thrown away where it could not even roll back.
    client.release(failure?.code || failure instanceof Conflict ? undefined : failure)
  }
}

const charge = statement('charge', 'INSERT INTO charges (account, amount) VALUES ($1, $2) RETURNING id')

// The work, and what the client is told: about a hundred bytes.
export async function work(db) {
  const { rows: [{ id }] } = await charge(db, 'acct_42', 2000)
  return { id: Number(id), object: 'charge', status: 'succeeded', amount: 2000, currency: 'eur' }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
