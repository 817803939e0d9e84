// The service of a contender of http.mjs: tells its parent the port, and ends with it.
import { openPool } from './shared.mjs'

const { application } = await import(`./contenders/${process.argv[2]}.mjs`)
const app = await application(openPool())
app.use((error, req, res, next) => { if (!res.headersSent) res.status(res.statusCode >= 400 ? res.statusCode : 500).end(error.message) })
const server = app.listen(0, '127.0.0.1', () => process.send(server.address().port))
server.keepAliveTimeout = 60_000
process.on('disconnect', () => process.exit())
