// One bare INSERT more in the same transaction: what a durable record costs at the least. Protects from nothing.
import { SCOPE, statement, transaction, work } from '../shared.mjs'

export const protects = false

const record = statement('record', `INSERT INTO bare
    (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
  VALUES ($1, $2, $3, 1, $4, now(), now(), now() + interval '24 hours')`)

export async function open({ pool, worked }) {
  const call = (key) => transaction(pool, async (client) => {
    const response = await work(client)
    await worked()
    await record(client, crypto.randomUUID(), SCOPE, key, JSON.stringify(response))
    return response
  })
  return { call }
}
