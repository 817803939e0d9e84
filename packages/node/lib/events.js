'use strict'
// What onEvent is told: type, request and key, and of some types status, reason and error. packages/python tells the same.
const tell = (settings, request, type, about = {}) => settings.onEvent({ type, request, key: request.key, ...about })

module.exports = { tell }
