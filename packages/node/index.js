'use strict'
const { idempotency, UnknownOutcome } = require('./lib/core.js')
const { ietf, stripe, stripeV2, toss } = require('./lib/profiles.js')
const { pgDriver, postgresDriver } = require('./lib/drivers.js')
const { express, koa, fetchHandler, keepRawBody } = require('./lib/adapters.js')
const { fastify } = require('./lib/fastify.js')

module.exports = { idempotency, UnknownOutcome, ietf, stripe, stripeV2, toss, pgDriver, postgresDriver,
  express, koa, fastify, fetchHandler, keepRawBody }
