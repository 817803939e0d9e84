'use strict'
// What an error of the database means for the HTTP response.

// These classes may succeed on a retry: connection, rollback, resources, lock, operator, system, foreign server, internal.
const PASSING = /^(08|40|53|55|57|58|F0|HV|XX)|^25006$|^25P03$/

// Each has a digit, and EPIPE has none.
const hasSqlState = (error) => typeof error?.code === 'string' && /^(?=.*\d)[0-9A-Z]{5}$/.test(error.code)

// Drivers report a lost or refused connection without an SQLSTATE, under a code of Node's or their own.
const NETWORK = /^(ECONN|EPIPE|ETIMEDOUT|EHOST|ENET|ENOTFOUND|EAI_|CONNECT|CONNECTION_)/
const MESSAGE = /^Connection terminated|timeout exceeded when trying to connect/

// The socket of a server that is stopped is not there.
const hasNoSocket = (error) => error?.code === 'ENOENT' && error.syscall === 'connect'

const isPassing = (error) => hasSqlState(error) ? PASSING.test(error.code)
  : NETWORK.test(error?.code ?? '') || hasNoSocket(error) || MESSAGE.test(error?.message ?? '')

/** Thrown where account() does not say whose key it is. */
class Unauthenticated extends Error {}

const REASONS = { IK400: 'invalid', IK409: 'in_progress', IK410: 'unavailable', IK412: 'expired', IK413: 'response_too_large', IK422: 'mismatch', IK423: 'parked', '55P03': 'in_progress' }

/** Why the package itself cannot go on: the reason that a profile turns into a response. */
const reasonOf = (error) => error instanceof Unauthenticated ? 'unauthenticated' : REASONS[error?.code] ?? (isPassing(error) ? 'unavailable' : 'failed')

module.exports = { isPassing, reasonOf, Unauthenticated }
