// This extension with a command of the client's: one statement, one round trip, no procedure around it.
import { SCOPE, statement } from '../shared.mjs'

export const oneStatement = true

const pay = statement('pay', `SELECT response FROM idempotent_call($1, $2, 'SELECT work()')`)

export async function open({ pool }) {
  const call = async (key) => (await pay(pool, SCOPE, key)).rows[0].response
  return { call }
}
