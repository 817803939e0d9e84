'use strict'
// A driver hands out connections: { query(text, values) → rows, handle, error, release(error) }.
// `handle` is what the handler works with. `error` is the last passing error that the handler's statements met, even where
// an error handler of the framework has turned it into a response.
const { isPassing } = require('./errors.js')

const noteIn = (connection) => (error) => { if (isPassing(error)) connection.error = error }

/** For a Pool of `pg`. The handler gets a client. */
function pgDriver(pool) {
  return async function connect() {
    const client = await pool.connect()
    const connection = {
      query: async (text, values) => (await client.query(text, values)).rows,
      release(error) { client.off('error', note); client.release(error) },
    }
    const note = noteIn(connection)
    client.on('error', note)                               // a lost connection shows at the next query
    connection.handle = new Proxy(client, { get: (target, name) => name === 'query' ? query : bound(target, name) })
    function query(...args) {
      const result = client.query(...args)
      if (typeof result?.catch === 'function') result.catch(note)
      return result
    }
    return connection
  }
}

function bound(target, name) {
  const value = target[name]
  return typeof value === 'function' ? value.bind(target) : value
}

/** For an `sql` of `postgres` (postgres.js). The handler gets a reserved `sql`. */
function postgresDriver(sql) {
  return async function connect() {
    const reserved = await sql.reserve()
    const connection = {
      query: async (text, values = []) => [...await reserved.unsafe(text, values)],
      release() { reserved.release() },
    }
    const watch = (query) => {
      if (typeof query?.reject !== 'function') return query
      const { reject } = query
      query.reject = (error) => { noteIn(connection)(error); reject(error) }
      return query
    }
    connection.handle = new Proxy(reserved, {
      apply: (target, self, args) => watch(target(...args)),
      get: (target, name) => name === 'unsafe' ? (...args) => watch(target.unsafe(...args)) : target[name],
    })
    return connection
  }
}

module.exports = { pgDriver, postgresDriver }
