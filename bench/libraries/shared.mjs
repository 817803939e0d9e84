// What all contenders have in common: the scope, the work, the pool, one way to run a transaction.
import pg from 'pg'

export const SCOPE = 'acct_42 POST /v1/charges (eur)'

// Another attempt holds the key: the caller is told to come again. Contenders throw it, whatever their library throws.
export class Conflict extends Error {}

const pools = []

// More than the clients of a measure, and what a service of one process might have. A connection that nobody uses goes
// away, as the server has not enough for all contenders at once.
export const openPool = () => {
  const pool = new pg.Pool({ max: 20, idleTimeoutMillis: 250 })
  pool.on('error', () => {})
  pools.push(pool)
  return pool
}

// The connections of the last turn are gone, but for one or two that a library listens on.
export async function drained() {
  const open = () => pools.reduce((sum, pool) => sum + pool.totalCount, 0)
  for (let i = 0; i < 40 && open() > 2; i++) await sleep(50)
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
