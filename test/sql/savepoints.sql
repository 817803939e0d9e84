-- Savepoints in each position: what is open, what is stored and what is locked after ROLLBACK TO and RELEASE.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(83);

-- Where a key stands in this transaction: its lock, what lookup says, what is stored.
CREATE FUNCTION pg_temp.stands(key text) RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ',
		CASE WHEN pg_temp.locked('s', key) THEN 'locked' ELSE 'free' END,
		(SELECT outcome FROM idempotent_lookup('s', key)),
		(SELECT response #>> '{}' FROM idempotency_keys k WHERE k.scope = 's' AND k.key = stands.key))
$$;
CREATE FUNCTION pg_temp.begun(key text) RETURNS text LANGUAGE sql AS $$
	SELECT outcome || attempt FROM idempotent_begin('s', key)
$$;

-- ROLLBACK TO before begin.
BEGIN;
SAVEPOINT a;
SELECT is(pg_temp.begun('k'), 'started1', 'before begin: begun after the savepoint');
SELECT is(pg_temp.stands('k'), 'locked in_progress', 'it is open');
ROLLBACK TO a;
SELECT is(pg_temp.stands('k'), 'free', 'ROLLBACK TO before begin forgets the attempt and frees the key');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock of any kind is left');
SELECT throws_ok($$SELECT idempotent_finish('s', 'k')$$, 'IK500', NULL, 'there is nothing to finish');
SELECT is(pg_temp.begun('k'), 'started1', 'and it begins anew, as attempt 1');
ROLLBACK TO a;
SELECT is(pg_temp.begun('k'), 'started1', 'and again');
SELECT lives_ok($$SELECT idempotent_finish('s', 'k', '"again"')$$, 'to be finished');
RELEASE a;
SELECT is(pg_temp.stands('k'), 'locked replayed again', 'the last one counts');
ROLLBACK;
SELECT is(pg_temp.stands('k'), 'free', 'ROLLBACK leaves nothing');

-- ROLLBACK TO between begin and finish.
BEGIN;
SELECT is(pg_temp.begun('k'), 'started1', 'between begin and finish: begun before the savepoint');
SAVEPOINT a;
CREATE TEMP TABLE work ();
ROLLBACK TO a;
SELECT is(pg_temp.stands('k'), 'locked in_progress', 'ROLLBACK TO keeps the attempt and its lock');
SELECT throws_ok($$SELECT idempotent_begin('s', 'k')$$, 'IK500', NULL, 'a second begin is still misuse');
RELEASE a;
SELECT is(pg_temp.stands('k'), 'locked in_progress', 'RELEASE keeps them too');
SELECT lives_ok($$SELECT idempotent_finish('s', 'k', '"kept"')$$, 'it is finished');
COMMIT;
SELECT is(pg_temp.stands('k'), 'free replayed kept', 'and committed');

-- A failure response is kept while the work is undone.
CREATE TEMP TABLE charges (amount int CHECK (amount > 0));
BEGIN;
SELECT is(pg_temp.begun('declined'), 'started1', 'failure response: begin');
SAVEPOINT work;
INSERT INTO charges VALUES (1);
ROLLBACK TO work;
SELECT lives_ok($$SELECT idempotent_finish('s', 'declined', '"declined"', status => 402)$$, 'the work is undone, finish(402)');
COMMIT;
SELECT results_eq($$SELECT outcome, status, response FROM idempotent_begin('s', 'declined')$$,
	$$VALUES ('replayed', 402, '"declined"'::jsonb)$$, 'the failure replays');
SELECT is_empty('TABLE charges', 'and the work is not there');

-- ROLLBACK TO over finish.
BEGIN;
SELECT is(pg_temp.begun('f'), 'started1', 'over finish: begin');
SAVEPOINT a;
SELECT lives_ok($$SELECT idempotent_finish('s', 'f', '"first"')$$, 'finished after the savepoint');
ROLLBACK TO a;
SELECT is(pg_temp.stands('f'), 'locked in_progress', 'ROLLBACK TO over finish makes the attempt unfinished again');
SELECT throws_ok($$SELECT idempotent_begin('s', 'f')$$, 'IK500', NULL, 'so begin is misuse, no replay');
SAVEPOINT b;
SELECT lives_ok($$SELECT idempotent_finish('s', 'f', '"second"')$$, 'finished in another one');
RELEASE b;
SELECT is(pg_temp.stands('f'), 'locked replayed second', 'which is released: finished');
ROLLBACK TO a;
SELECT is(pg_temp.stands('f'), 'locked in_progress', 'ROLLBACK TO over the released one: unfinished again');
SELECT lives_ok($$SELECT idempotent_finish('s', 'f', '"third"')$$, 'finished for good');
COMMIT;
SELECT is(pg_temp.stands('f'), 'free replayed third', 'the last finish is what is stored');

-- ROLLBACK TO over release.
BEGIN;
SELECT is(pg_temp.begun('r'), 'started1', 'over release: begin');
SAVEPOINT a;
SELECT is(idempotent_release('s', 'r'), true, 'released after the savepoint');
ROLLBACK TO a;
SELECT is(pg_temp.stands('r'), 'locked in_progress', 'ROLLBACK TO over release makes the attempt open again, and locked');
SELECT throws_ok($$SELECT idempotent_try_begin('s', 'r')$$, 'IK500', NULL, 'so try_begin is misuse');
SELECT lives_ok($$SELECT idempotent_finish('s', 'r', '"open"')$$, 'and finish is not');
COMMIT;
SELECT is(pg_temp.stands('r'), 'free replayed open', 'it is stored');

-- Release in a deeper level, kept.
BEGIN;
SELECT is(pg_temp.begun('d'), 'started1', 'release in a deeper level: begin');
SAVEPOINT a;
SELECT is(idempotent_release('s', 'd'), true, 'release');
SELECT is(idempotent_release('s', 'd'), false, 'a second one finds nothing');
SELECT is(pg_temp.begun('d'), 'started1', 'begun again there');
ROLLBACK TO a;
SELECT is(pg_temp.stands('d'), 'locked in_progress', 'ROLLBACK TO undoes both');
SELECT is(idempotent_release('s', 'd'), true, 'so there is something to release');
RELEASE a;
SELECT throws_ok($$SELECT idempotent_finish('s', 'd')$$, 'IK500', NULL, 'RELEASE SAVEPOINT keeps the release');
SELECT is(pg_temp.begun('d'), 'started1', 'the transaction can begin again');
SELECT is(idempotent_release('s', 'd'), true, 'and release again');
COMMIT;
SELECT is(pg_temp.stands('d'), 'free', 'a released attempt may be committed, and leaves nothing');
SELECT is(pg_temp.locks(), 0::bigint, 'nor a lock');

-- RELEASE SAVEPOINT makes the attempt the outer level's.
BEGIN;
SAVEPOINT a;
SAVEPOINT b;
SELECT is(pg_temp.begun('m'), 'started1', 'merged: begun two levels deep');
RELEASE b;
SELECT is(pg_temp.stands('m'), 'locked in_progress', 'RELEASE SAVEPOINT keeps it');
SAVEPOINT c;
SELECT lives_ok($$SELECT idempotent_finish('s', 'm', '"deep"')$$, 'finished in a third');
ROLLBACK TO c;
SELECT is(pg_temp.stands('m'), 'locked in_progress', 'which is undone: open, though its own savepoint is gone');
ROLLBACK TO a;
SELECT is(pg_temp.stands('m'), 'free', 'ROLLBACK TO the outer level forgets it, and the key is free');
SAVEPOINT b;
SELECT is(pg_temp.begun('m'), 'started1', 'begun anew');
RELEASE a;
SELECT is(pg_temp.stands('m'), 'locked in_progress', 'RELEASE of the outer one merges both into the transaction');
SELECT is(idempotent_release('s', 'm'), true, 'whose own it is now');
SELECT is(pg_temp.stands('m'), 'locked', 'whose lock stays to the end of the transaction: it may still write');
COMMIT;

-- From the bottom up.
BEGIN;
SAVEPOINT a;
SELECT is(pg_temp.begun('n'), 'started1', 'nested: begun at the first level');
SAVEPOINT b;
SAVEPOINT c;
SELECT lives_ok($$SELECT idempotent_finish('s', 'n', '"x"')$$, 'finished at the third');
SELECT is(pg_temp.begun('n2'), 'started1', 'another key begun there');
ROLLBACK TO b;
SELECT is(pg_temp.stands('n'), 'locked in_progress', 'ROLLBACK TO the second: the first key is open');
SELECT is(pg_temp.stands('n2'), 'free', 'the second key forgotten');
ROLLBACK TO a;
SELECT is(pg_temp.stands('n'), 'free', 'ROLLBACK TO the first: both are');
COMMIT;
SELECT is(pg_temp.locks(), 0::bigint, 'and the transaction may commit');

-- A replay holds no lock, wherever it is asked for.
BEGIN;
SELECT is(pg_temp.begun('k'), 'replayed1', 'replay');
SAVEPOINT a;
SELECT is(pg_temp.begun('k'), 'replayed1', 'in a savepoint');
RELEASE a;
SELECT is(pg_temp.locks(), 0::bigint, 'a finished key takes no lock that outlives the call');
COMMIT;
BEGIN;
SELECT is(pg_temp.begun('own'), 'started1', 'of a key finished');
SELECT lives_ok($$SELECT idempotent_finish('s', 'own')$$, 'in this transaction');
SAVEPOINT a;
SELECT is(pg_temp.begun('own'), 'replayed1', 'replayed in a savepoint');
ROLLBACK TO a;
SELECT ok(pg_temp.locked('s', 'own'), 'which is rolled back: the attempt''s own lock stays');
ROLLBACK;

-- More attempts than are looked through one by one.
CREATE FUNCTION pg_temp.open_ones() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM generate_series(1, 100) i, idempotent_lookup('many', i::text) WHERE outcome = 'in_progress'
$$;
BEGIN;
SELECT is(count(*), 50::bigint, 'many: begun') FROM generate_series(1, 50) i, idempotent_begin('many', i::text) b WHERE outcome = 'started';
SAVEPOINT a;
SELECT is(count(*), 50::bigint, 'more after a savepoint') FROM generate_series(51, 100) i, idempotent_begin('many', i::text) b WHERE outcome = 'started';
SELECT is(pg_temp.open_ones(), 100::bigint, 'all are open');
SELECT is(count(idempotent_finish('many', i::text, '1')), 60::bigint, 'some are finished') FROM generate_series(11, 70) i;
SELECT is(pg_temp.open_ones(), 40::bigint, 'the others are open');
SELECT is(count(*), 60::bigint, 'the finished ones replay') FROM generate_series(11, 70) i, idempotent_begin('many', i::text) b WHERE replayed;
ROLLBACK TO a;
SELECT is(pg_temp.open_ones(), 50::bigint, 'ROLLBACK TO: those begun before are open again, all of them, and no others');
SELECT is(count(*), 50::bigint, 'the others begin anew') FROM generate_series(51, 100) i, idempotent_begin('many', i::text) b WHERE outcome = 'started';
SELECT is(bool_and(idempotent_release('many', i::text)), true, 'and are released') FROM generate_series(51, 100) i;
SELECT is(count(*), 25::bigint, 'to be begun once more') FROM generate_series(51, 75) i, idempotent_begin('many', i::text) b WHERE outcome = 'started';
SELECT throws_ok($$SELECT idempotent_begin('many', '75')$$, 'IK500', NULL, 'which is misuse of the newest attempt');
SELECT throws_ok($$SELECT idempotent_finish('many', '76')$$, 'IK500', NULL, 'and of one that was released');
RELEASE a;
SELECT is(count(idempotent_finish('many', i::text, '2')), 75::bigint, 'all that are open are finished') FROM generate_series(1, 75) i;
COMMIT;
SELECT is(count(*), 75::bigint, 'and committed') FROM generate_series(1, 100) i, idempotent_lookup('many', i::text) WHERE response = '2';

-- No finish(): pgTAP's own count is rolled back with the rest.
