'use strict'
// Writes client.js and client.d.ts, the CommonJS forms of client.mjs and client.d.mts.
const { readFileSync, writeFileSync, copyFileSync } = require('node:fs')
const { join } = require('node:path')

const source = readFileSync(join(__dirname, 'client.mjs'), 'utf8')
const names = [...source.matchAll(/^export (?:async )?(?:function|class|const) (\w+)/gm)].map((match) => match[1])
writeFileSync(join(__dirname, 'client.js'),
  `'use strict'\n// Generated from client.mjs by build.js.\n${source.replace(/^export /gm, '')}\nmodule.exports = { ${names.join(', ')} }\n`)
copyFileSync(join(__dirname, 'client.d.mts'), join(__dirname, 'client.d.ts'))
