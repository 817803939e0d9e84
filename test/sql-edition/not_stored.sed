# The row first: it is begin that fails, and then nothing is open.
s/^SELECT is(outcome, 'started', \('begun[^']*'\)) FROM idempotent_begin('s', '\(trigger\|expired\)');/SELECT throws_ok($$SELECT idempotent_begin('s', '\2')$$, '09000', NULL, \1);/
s/^SELECT is(outcome, 'started', 'begun') FROM idempotent_begin('s', 'rule');/SELECT throws_ok($$SELECT idempotent_begin('s', 'rule')$$, '0A000', NULL, 'begun');/
s/^SELECT throws_ok(\$\$SELECT idempotent_finish('s', '\(trigger\|rule\|expired\)')\$\$, '0[9A]000'/SELECT throws_ok($$SELECT idempotent_finish('s', '\1')$$, 'IK500'/
s/^SELECT is(idempotent_release('s', '\(trigger\|rule\)'), true/SELECT is(idempotent_release('s', '\1'), false/
