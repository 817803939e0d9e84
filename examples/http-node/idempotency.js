// Express middleware: the handler behind it runs once for a key, and its response is kept with its work.
//
//   app.post('/payments', validate, idempotent(pool, ietf), async (req, res) => {
//     await req.db.query('INSERT INTO payments …')          // req.db: a pg client inside the request's transaction
//     res.status(201).json(…)
//   })
//
// One transaction per request: begin, the handler's work on req.db, finish, COMMIT. What the handler sends is held back
// until COMMIT has succeeded. A response of 400 or more undoes the handler's work; whether it is kept for the key as well
// is up to the profile (profiles.js). What must not be kept, such as failed validation, goes before this middleware.

// Headers that belong to the response and not to the moment it was sent; never Set-Cookie or Date.
const KEPT_HEADERS = ['content-type', 'content-language', 'content-location', 'etag', 'last-modified', 'link', 'location']

export function idempotent(pool, profile, { patience = 30_000 } = {}) {
  return async (req, res, next) => {
    const { key, problem } = profile.key(req)
    if (problem) return profile.refuse(res, problem, {})
    const scope = profile.scope(req)
    const request = profile.request(req)

    const db = await pool.connect()
    const ignore = () => {}                                // a lost connection shows at the next query
    db.on('error', ignore)
    const done = (error) => { db.off('error', ignore); db.release(error) }

    try {
      await db.query('BEGIN')
      if (key !== undefined) {
        const { rows: [attempt] } = await db.query(
          'SELECT * FROM idempotent_try_begin($1, $2, request => $3, retention => $4)',
          [scope, key, request === null ? null : JSON.stringify(request), profile.retention])
        if (attempt.outcome !== 'started' && attempt.outcome !== 'recovered') {
          await db.query('ROLLBACK')
          done()
          return attempt.replayed ? replay(res, attempt, profile) : profile.refuse(res, attempt.outcome, attempt)
        }
      }
      await db.query('SAVEPOINT work')
    } catch (error) {
      await db.query('ROLLBACK').then(() => done(), done)
      if (error.code === 'IK400') return profile.refuse(res, 'invalid', error)
      throw error
    }

    const settle = async (body) => {
      try {
        const failed = res.statusCode >= 400
        const kept = key !== undefined && (!failed || profile.keeps(res.statusCode))
        if (failed) await db.query('ROLLBACK TO work')
        if (kept) {
          const headers = Object.fromEntries(KEPT_HEADERS.filter((h) => res.hasHeader(h)).map((h) => [h, res.getHeader(h)]))
          await db.query('SELECT idempotent_finish($1, $2, status => $3, headers => $4, body => $5)',
            [scope, key, res.statusCode, JSON.stringify(headers), body])
        }
        await db.query(failed && !kept ? 'ROLLBACK' : 'COMMIT')
        done()
      } catch (error) {
        // Not committed, or nobody knows: either way a retry finds out.
        done(error)
        for (const header of res.getHeaderNames()) res.removeHeader(header)
        return profile.refuse(res, 'failed', error)
      }
      res.end(body)
    }

    hold(res, settle, patience, () => done(new Error('the handler did not answer')))
    req.db = db
    next()
  }
}

function replay(res, { status, headers, body }, profile) {
  res.statusCode = status
  for (const [name, value] of Object.entries({ ...headers, ...profile.replayed })) res.setHeader(name, value)
  res.end(body)
}

// Hold back what is sent through res, and hand it to settle() in one piece, once. When the client goes away the handler
// may go on, since its work is welcome to the retry; one that never answers is given up after a while.
function hold(res, settle, patience, giveUp) {
  const { write, end } = res
  const chunks = []
  let open = true
  const keep = (chunk, encoding) => {
    if (open && chunk && typeof chunk !== 'function') chunks.push(Buffer.from(chunk, encoding))
  }

  res.write = (chunk, encoding, callback) => {
    keep(chunk, encoding)
    callback = [encoding, callback].find((f) => typeof f === 'function')
    if (callback) process.nextTick(callback)
    return true
  }
  res.end = (chunk, encoding) => {
    keep(chunk, encoding)
    if (open) {
      open = false
      Object.assign(res, { write, end })
      settle(Buffer.concat(chunks))
    }
    return res
  }
  const leave = () => {
    if (open) setTimeout(() => { if (open) { open = false; giveUp() } }, patience).unref()
  }
  if (res.destroyed) leave()                               // the client went while the key was being begun
  else res.once('close', leave)
}
