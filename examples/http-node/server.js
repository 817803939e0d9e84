// Starts the service. The database is told by PGHOST, PGDATABASE and so on, the port by PORT.
import pg from 'pg'
import { service } from './service.js'

const pool = new pg.Pool({ max: 10, connectionTimeoutMillis: 5000 })
pool.on('error', (error) => console.error('idle connection lost:', error.message))
const server = service(pool).listen(process.env.PORT ?? 8080, () => console.log('listening on', server.address().port))
