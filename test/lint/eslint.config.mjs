// ESLint's recommended rules: what is wrong, not how it looks.
import { readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import js from '@eslint/js';
import globals from 'globals';

const rules = {
	...js.configs.recommended.rules,
	'no-unused-vars': ['error', { args: 'none', caughtErrors: 'none', ignoreRestSiblings: true }],
	'no-empty': ['error', { allowEmptyCatch: true }],
};
const names = { ...globals.node, ...globals.browser };

// Where package.json says so, a .js file is a module.
const modules = process.env.PACKAGES.split('\n').filter((file) => file && JSON.parse(readFileSync(file)).type === 'module')
	.map((file) => `${dirname(file)}/**/*.js`);

export default [
	{ files: ['**/*.js'], languageOptions: { sourceType: 'commonjs', globals: names }, rules },
	{ files: ['**/*.mjs', '**/public/*.js', ...modules], languageOptions: { sourceType: 'module', globals: names }, rules },
];
