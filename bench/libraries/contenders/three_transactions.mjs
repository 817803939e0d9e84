// The shape of most middleware: the key is stored as in progress and committed, the work is committed, the response is
// committed. A key that stays in progress for longer than a lock may last is taken for one of a dead process.
import { Conflict, SCOPE, statement, work } from '../shared.mjs'

const table = `CREATE TABLE IF NOT EXISTS three_transactions (
  scope text NOT NULL, key text NOT NULL, response jsonb, locked_at timestamptz, expires_at timestamptz NOT NULL,
  PRIMARY KEY (scope, key)
);
CREATE INDEX IF NOT EXISTS three_transactions_expires_at ON three_transactions (expires_at)`

const claim = statement('claim', `INSERT INTO three_transactions (scope, key, locked_at, expires_at)
  VALUES ($1, $2, now(), now() + interval '24 hours') ON CONFLICT DO NOTHING`)
const stored = statement('stored', 'SELECT response FROM three_transactions WHERE scope = $1 AND key = $2')
const takeOver = statement('take_over', `UPDATE three_transactions SET locked_at = now()
  WHERE scope = $1 AND key = $2 AND response IS NULL AND locked_at < now() - $3 * interval '1 millisecond'`)
const store = statement('store', `UPDATE three_transactions SET response = $3, locked_at = NULL
  WHERE scope = $1 AND key = $2`)

export async function open({ pool, worked, patience = 60_000 }) {
  await pool.query(table)
  const call = async (key) => {
    const { rowCount } = await claim(pool, SCOPE, key)
    if (rowCount === 0) {
      const { rows: [row] } = await stored(pool, SCOPE, key)
      if (row.response) return row.response
      if ((await takeOver(pool, SCOPE, key, patience)).rowCount === 0) throw new Conflict('in progress')
    }
    const response = await work(pool)
    await worked()
    await store(pool, SCOPE, key, JSON.stringify(response))
    return response
  }
  return { call }
}
