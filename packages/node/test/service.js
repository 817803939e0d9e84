// A service in a process of its own, which a test can kill: prints its port. With die-after-commit it kills itself between
// COMMIT and the response.
import { frameworks, serve } from './apps.js'

const onEvent = ({ type }) => { if (type === 'kept' && process.argv[2] === 'die-after-commit') process.kill(process.pid, 'SIGKILL') }
const { port } = await serve(frameworks['Express 5'], { onEvent })
console.log(port)
