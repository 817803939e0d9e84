// The function of the project's README, as it stands there, on the tables of the README.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import pg from 'pg'

const readme = await readFile(process.env.README ?? new URL('../../../README.md', import.meta.url), 'utf8')
const block = readme.match(/^```js\n([^]*?)^```/m)[1]
const { charge, httpStatus } = await import('data:text/javascript,' + encodeURIComponent(block + '\nexport { charge, httpStatus }'))

const server = { host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER, database: process.env.PGDATABASE, password: '' }
const pool = new pg.Pool(server)
const charges = async () => (await pool.query('SELECT count(*)::int AS n FROM charges')).rows[0].n
const body = { amount: 2000, currency: 'eur' }

before(() => pool.query('DROP TABLE IF EXISTS charges; CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,' +
  ' account text NOT NULL, amount bigint NOT NULL CHECK (amount > 0), currency text NOT NULL)'))
after(() => pool.end())

test('a charge, its retry, and ten at once', async () => {
  const first = await charge(pool, 'acct_1', 'readme 1', body)
  assert.equal(first.status, 201)
  assert.deepEqual(await charge(pool, 'acct_1', 'readme 1', body), first)
  const answers = await Promise.all(Array.from({ length: 10 }, () => charge(pool, 'acct_1', 'readme 2', body)))
  for (const answer of answers) assert.deepEqual(answer, answers[0])
  assert.equal(await charges(), 2)
})

test('a mismatch is 422, a live lease 409, a lock that times out 409, a failure of the work 500', async () => {
  const status = (promise) => promise.then(() => 'no error', httpStatus)
  await charge(pool, 'acct_1', 'readme 3', body)
  assert.equal(await status(charge(pool, 'acct_1', 'readme 3', { ...body, amount: 9900 })), 422)
  await pool.query("SELECT idempotent_begin('acct_1 POST /v1/charges', 'readme 4', lease => '1 minute')")
  assert.equal(await status(charge(pool, 'acct_1', 'readme 4', body)), 409)
  assert.equal(await status(charge(pool, 'acct_1', '', body)), 400)
  assert.equal(await status(charge(pool, 'acct_1', 'readme 7', { ...body, currency: '\0' })), 400)
  const other = await pool.connect()
  const hasty = new pg.Pool({ ...server, options: '-c lock_timeout=50' })
  await other.query('BEGIN')
  await other.query("SELECT idempotent_begin('acct_1 POST /v1/charges', 'readme 8')")
  const late = await status(charge(hasty, 'acct_1', 'readme 8', body))
  await other.query('ROLLBACK')
  other.release()
  await hasty.end()
  assert.equal(late, 409)
  assert.equal(await status(charge(pool, 'acct_1', 'readme 5', { ...body, amount: -1 })), 500)
  assert.equal((await charge(pool, 'acct_1', 'readme 5', body)).status, 201)
})

test('another account with the same key is charged', async () => {
  const before = await charges()
  await charge(pool, 'acct_2', 'readme 1', body)
  assert.equal(await charges(), before + 1)
})

test('a body that is an array is a request like any other', async () => {
  const ten = (pool, key, body) => charge(pool, 'acct_3', key, Object.assign(body, { amount: 1, currency: 'eur' }))
  const first = await ten(pool, 'readme 6', [1, 2])
  assert.deepEqual(await ten(pool, 'readme 6', [1, 2]), first)
})
