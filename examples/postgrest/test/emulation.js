// Not PostgREST: what its documentation says of a request's transaction, and no more of its query language than the tests need.
// https://docs.postgrest.org/en/v14/references/transactions.html and …/errors.html
import http from 'node:http'
import pg from 'pg'

export async function start() {
  const pool = new pg.Pool({ user: 'authenticator', max: 6, application_name: 'emulation' })
  pool.on('error', () => {})
  const { rows: [{ preRequest }] } = await pool.query(`SELECT current_setting('pgrst.db_pre_request') AS "preRequest"`)
  const server = http.createServer(async (req, res) => {
    const { status, headers, body } = await answer(pool, preRequest, req, await read(req)).catch(errorResponse)
    res.writeHead(status, headers)
    res.end(body)
  })
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    stop: async () => { server.closeAllConnections(); server.close(); await pool.end() },
  }
}

async function read(req) {
  const chunks = []
  for await (const chunk of req) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

// The response leaves after COMMIT, at which deferred triggers run; an error of theirs is the response.
async function answer(pool, preRequest, req, body) {
  const client = await pool.connect()
  try {
    const prefer = req.headers.prefer ?? ''
    await client.query(`BEGIN ISOLATION LEVEL READ COMMITTED READ ${['GET', 'HEAD'].includes(req.method) ? 'ONLY' : 'WRITE'}`)
    const url = new URL(req.url, 'http://localhost')
    await settings(client, req, url.pathname)
    await client.query(`SELECT ${preRequest}()`)
    const { rows: [result] } = await client.query(...mainQuery(req.method, url, prefer, body))
    await client.query(/tx=rollback/.test(prefer) ? 'ROLLBACK' : 'COMMIT')
    return response(req, url.pathname, prefer, result)
  } catch (error) {
    await client.query('ROLLBACK')
    throw error
  } finally {
    client.release()
  }
}

// A real token is signed, and PostgREST verifies it. Here its payload alone is sent.
function claimsOf(req) {
  const token = /^Bearer (.+)$/.exec(req.headers.authorization ?? '')?.[1]
  return token ? JSON.parse(Buffer.from(token, 'base64url').toString()) : { role: 'anon' }
}

async function settings(client, req, path) {
  const claims = claimsOf(req)
  const values = {
    search_path: '"api", "public"', role: claims.role, 'request.jwt.claims': JSON.stringify(claims), 'request.method': req.method,
    'request.path': path, 'request.headers': JSON.stringify(req.headers), 'request.cookies': '{}',
  }
  const calls = Object.keys(values).map((name, i) => `set_config('${name}', $${i + 1}, true)`)
  await client.query(`SELECT ${calls.join(', ')}`, Object.values(values))
}

const name = (word) => pg.escapeIdentifier(word)

// Body, response.status and response.headers come out of one statement, the settings after the work.
const around = (source, made) => `WITH pgrst_source AS (${source}) SELECT ${made} AS body,
  nullif(current_setting('response.headers', true), '') AS headers, nullif(current_setting('response.status', true), '') AS status
  FROM pgrst_source AS t`
const ROWS = `coalesce(json_agg(t), '[]')::text`

function mainQuery(method, url, prefer, body) {
  const [, first, second] = url.pathname.split('/')
  if (first === 'rpc') {
    const args = JSON.parse(body || '{}')
    const list = Object.keys(args).map((arg, i) => `${name(arg)} => $${i + 1}`).join(', ')
    const source = `SELECT api.${name(second)}(${list}) AS pgrst_scalar`
    return [around(source, `coalesce(json_agg(t.pgrst_scalar) -> 0, 'null')::text`), Object.values(args)]
  }
  const table = `api.${name(first)}`
  const filters = [...url.searchParams].filter(([, value]) => value.startsWith('eq.'))
  const conditions = filters.map(([column], i) => `${name(first)}.${name(column)}::text = $${i + 1}`)
  const where = conditions.length ? `WHERE ${conditions.join(' AND ')}` : ''
  const values = filters.map(([, value]) => value.slice(3))
  const returning = /return=representation/.test(prefer) ? '*' : '1'
  if (method === 'GET') return [around(`SELECT * FROM ${table} ${where}`, ROWS), values]
  if (method === 'DELETE') return [around(`DELETE FROM ${table} ${where} RETURNING ${returning}`, ROWS), values]
  const rows = [JSON.parse(body)].flat()
  const columns = Object.keys(rows[0]).map(name)
  const given = `json_populate_recordset(NULL::${table}, $${values.length + 1})`
  const set = columns.map((column) => `${column} = given.${column}`).join(', ')
  const source = method === 'PATCH'
    ? `UPDATE ${table} SET ${set} FROM ${given} AS given ${where} RETURNING ${returning === '*' ? `${name(first)}.*` : returning}`
    : `INSERT INTO ${table} (${columns}) SELECT ${columns} FROM ${given} RETURNING ${returning}`
  return [around(source, ROWS), [...values, JSON.stringify(rows)]]
}

const JSON_TYPE = { 'Content-Type': 'application/json; charset=utf-8' }

function response(req, path, prefer, { body, headers, status }) {
  const isCall = path.startsWith('/rpc/') || req.method === 'GET'
  const hasBody = isCall || /return=representation/.test(prefer)
  const usual = isCall ? 200 : req.method === 'POST' ? 201 : hasBody ? 200 : 204
  const isObject = /vnd\.pgrst\.object/.test(req.headers.accept ?? '') && body.startsWith('[')
  return {
    status: Number(status ?? usual),
    headers: Object.assign(hasBody ? { ...JSON_TYPE } : {}, ...JSON.parse(headers ?? '[]')),
    body: hasBody ? isObject ? JSON.stringify(JSON.parse(body)[0]) : body : '',
  }
}

// The first pattern that the SQLSTATE begins with.
const STATUS = [
  ['08', 503], ['09', 500], ['0L', 403], ['0P', 403], ['23503', 409], ['23505', 409], ['25006', 405], ['25', 500], ['28', 403], ['2D', 500],
  ['38', 500], ['39', 500], ['3B', 500], ['40', 500], ['53400', 500], ['53', 503], ['54', 500], ['55', 500], ['57', 500], ['58', 500],
  ['F0', 500], ['HV', 500], ['P0001', 400], ['P0', 500], ['XX', 500], ['42883', 404], ['42P01', 404], ['42P17', 500], ['42501', 403],
]

function errorResponse(error) {
  const { code = '', message, detail = null, hint = null } = error
  if (!(error instanceof pg.DatabaseError)) return { status: 500, headers: JSON_TYPE, body: JSON.stringify({ code: 'emulation', message }) }
  if (code === 'PGRST') {
    const [said, how] = [JSON.parse(message), JSON.parse(detail)]
    const body = { code: said.code, message: said.message, details: said.details ?? null, hint: said.hint ?? null }
    return { status: how.status, headers: { ...JSON_TYPE, ...how.headers }, body: JSON.stringify(body) }
  }
  const status = /^PT\d{3}$/.test(code) ? Number(code.slice(2)) : STATUS.find(([start]) => code.startsWith(start))?.[1] ?? 400
  return { status, headers: JSON_TYPE, body: JSON.stringify({ code, message, details: detail, hint }) }
}
