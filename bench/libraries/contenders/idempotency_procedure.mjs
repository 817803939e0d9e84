// This extension in a stored procedure: one statement, one round trip.
import { statement } from '../shared.mjs'

export const oneStatement = true

const pay = statement('pay', 'SELECT pay_idempotency($1) AS response')

export async function open({ pool }) {
  const call = async (key) => (await pay(pool, key)).rows[0].response
  return { call }
}
