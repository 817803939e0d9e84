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

// The error that closed a connection is given by postgres.js to whom it opens the connection for again: nothing was sent.
const reserve = (sql) => sql.reserve().catch((error) => error?.severity === 'FATAL' ? sql.reserve() : Promise.reject(error))

/** For an `sql` of `postgres` (postgres.js). The handler gets a reserved `sql`. TypeError: `fetch_types: false`. */
function postgresDriver(sql) {
  // postgres.js 3.4: it hands a connection that was opened to be reserved to its waiter only after it has fetched the types.
  if (sql.options?.fetch_types === false) throw new TypeError('postgresDriver needs fetch_types: without it sql.reserve() waits for ever')
  return async function connect() {
    const reserved = await reserve(sql)
    // Where the connection has been closed, postgres.js would still send the statements: for ever, or to whom its place has gone.
    let lost
    const onexecute = (own) => {
      own.onclose = (error) => { lost = error }
      return true
    }
    const connection = {
      async query(text, values = []) {
        if (lost) throw lost
        return [...await reserved.unsafe(text, values, { onexecute })]
      },
      release() { if (!lost) reserved.release() },
    }
    const watch = (query) => {
      if (typeof query?.reject !== 'function') return query
      const { reject } = query
      query.reject = (error) => { noteIn(connection)(error); reject(error) }
      return query
    }
    connection.handle = new Proxy(reserved, {
      apply: (target, self, args) => lost && args[0]?.raw ? Promise.reject(lost) : watch(target(...args)),
      get: (target, name) => name === 'unsafe' ? (...args) => lost ? Promise.reject(lost) : watch(target.unsafe(...args)) : target[name],
    })
    return connection
  }
}

module.exports = { pgDriver, postgresDriver }
