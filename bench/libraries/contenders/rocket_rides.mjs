// The shape of rocket-rides-atomic: two SERIALIZABLE transactions. The first stores the key and locks it, the second does
// the work and stores the response with the recovery point "finished". A lock lasts 90 s, as there. A failed serialization
// starts the call again, where the original tells its client to.
import { Conflict, statement, transaction, work } from '../shared.mjs'

const table = `CREATE TABLE IF NOT EXISTS rocket_rides (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT now(),
  idempotency_key text NOT NULL, last_run_at timestamptz NOT NULL DEFAULT now(), locked_at timestamptz DEFAULT now(),
  request_method text NOT NULL, request_params jsonb NOT NULL, request_path text NOT NULL,
  response_code int, response_body jsonb, recovery_point text NOT NULL, user_id text NOT NULL,
  UNIQUE (user_id, idempotency_key)
)`

const insert = statement('insert_key', `INSERT INTO rocket_rides
    (user_id, request_method, request_path, idempotency_key, request_params, recovery_point)
  VALUES ($1, $2, $3, $4, '{}', 'started') ON CONFLICT DO NOTHING RETURNING id`)
const find = statement('find_key', `SELECT id, recovery_point, response_body,
    locked_at > now() - $3 * interval '1 millisecond' AS locked
  FROM rocket_rides WHERE user_id = $1 AND idempotency_key = $2`)
const lock = statement('lock_key', 'UPDATE rocket_rides SET last_run_at = now(), locked_at = now() WHERE id = $1')
const point = statement('point', 'SELECT recovery_point, response_body FROM rocket_rides WHERE id = $1')
const finish = statement('finish_key', `UPDATE rocket_rides SET locked_at = NULL, recovery_point = 'finished',
  response_code = 201, response_body = $2 WHERE id = $1`)

const phase = (pool, body) => transaction(pool, body, 'BEGIN ISOLATION LEVEL SERIALIZABLE')

// Finds or stores the key, and locks it unless it is finished.
const claim = (pool, key, patience) => phase(pool, async (client) => {
  const { rows: [made] } = await insert(client, 'acct_42', 'POST', '/v1/charges (eur)', key)
  if (made) return { id: made.id }
  const { rows: [found] } = await find(client, 'acct_42', key, patience)
  if (found.recovery_point === 'finished') return { response: found.response_body }
  if (found.locked) throw new Conflict('locked')
  await lock(client, found.id)
  return { id: found.id, again: true }
})

const charge = (pool, { id, again }, worked) => phase(pool, async (client) => {
  // Whoever took a lock over may come after the first owner has finished.
  const { rows: [found] } = again ? await point(client, id) : { rows: [] }
  if (found?.recovery_point === 'finished') return found.response_body
  const response = await work(client)
  await worked()
  await finish(client, id, JSON.stringify(response))
  return response
})

export async function open({ pool, worked, patience = 90_000 }) {
  await pool.query(table)
  const call = async (key) => {
    let mine
    for (;;) {
      try {
        mine ??= await claim(pool, key, patience)
        return mine.response ?? await charge(pool, mine, worked)
      } catch (error) {
        if (error.code !== '40001') throw error
        if (mine) mine.again = true
      }
    }
  }
  return { call }
}
