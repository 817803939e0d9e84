// A service in a process of its own, which a test can kill: service.js FRAMEWORK prints its port. With die-after-commit it
// kills itself between COMMIT and the response.
import { frameworks, serve } from './apps.js'

const [name, fate] = process.argv.slice(2)
const onEvent = ({ type }) => { if (type === 'kept' && fate === 'die-after-commit') process.kill(process.pid, 'SIGKILL') }
const { port } = await serve(frameworks[name], { onEvent })
console.log(port)
