'use strict'
// Writes client.js and client.d.ts, the CommonJS forms of client.mjs and client.d.mts: exports, and one import as require.
const { readFileSync, writeFileSync, copyFileSync } = require('node:fs')
const { join } = require('node:path')

const source = readFileSync(join(__dirname, 'client.mjs'), 'utf8')
const names = [...source.matchAll(/^export (?:async )?(?:function|class|const) (\w+)/gm)].map((match) => match[1])
writeFileSync(join(__dirname, 'client.js'),
  `'use strict'\n// Generated from client.mjs by build.js.\n${source.replace(/^export /gm, '').replace(/await import\((\w+)\)/, 'require($1)')}\nmodule.exports = { ${names.join(', ')} }\n`)
copyFileSync(join(__dirname, 'client.d.mts'), join(__dirname, 'client.d.ts'))
