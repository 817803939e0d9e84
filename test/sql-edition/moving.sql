-- Rows move between the editions by INSERT … SELECT, and each replays, refuses, recovers and resolves what the other stored.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
CREATE SCHEMA c_edition;
CREATE EXTENSION idempotency SCHEMA c_edition;
SELECT plan(27);

-- The columns that both editions have.
CREATE FUNCTION pg_temp.move(from_ text, to_ text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	t text;
	columns text;
BEGIN
	EXECUTE format('LOCK %1$I.idempotency_keys, %1$I.idempotency_claims IN ACCESS EXCLUSIVE MODE', from_);
	FOREACH t IN ARRAY '{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[] LOOP
		SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns FROM pg_attribute
			WHERE attrelid = ('c_edition.' || t)::regclass AND attnum > 0 AND NOT attisdropped AND attidentity = '';
		EXECUTE format('INSERT INTO %I.%I (%s) SELECT %s FROM %I.%I', to_, t, columns, columns, from_, t);
		EXECUTE format('DELETE FROM %I.%I', from_, t);
	END LOOP;
	RETURN 'moved';
END $$;
-- Keys and claims in each state.
CREATE FUNCTION pg_temp.fill(p text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotent_begin(p, 'finished', '{"a": 1.50}');
	PERFORM idempotent_finish(p, 'finished', '{"id": 1}', 201, '{"H": "1"}', '\x00ff');
	PERFORM idempotent_begin(p, '019234aa-bbcc-7def-8123-456789abcdef', '{"a": 1}');
	PERFORM idempotent_finish(p, '019234aa-bbcc-7def-8123-456789abcdef', '"v7"');
	PERFORM idempotent_begin(p, 'live', '{"a": 1}', lease => '1 hour');
	PERFORM idempotent_begin(p, 'due', '{"a": 1}', lease => '1 hour');
	PERFORM idempotent_checkpoint(p, 'due', 1, 'charged', '{"c": 1}');
	PERFORM idempotent_release(p, 'due', 1, 'broken', '0');
	PERFORM idempotent_begin(p, 'parked', lease => '1 hour');
	PERFORM idempotent_park(p, 'parked', 1, 'no answer');
	PERFORM idempotent_begin(p, 'counter', lease => '1 hour');
	PERFORM idempotent_release(p, 'counter', 1, reset => true);
	PERFORM idempotent_resolve(p, 'corrected', 'first', '1');
	PERFORM idempotent_resolve(p, 'corrected', 'second', '2', correct => true);
	RETURN 'filled';
END $$;
CREATE FUNCTION pg_temp.checks(p text) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
	RETURN NEXT results_eq(format($q$SELECT outcome, status, headers, response, body FROM idempotent_begin(%L, 'finished', '{"a": 1.5}')$q$, p),
		$q$VALUES ('replayed', 201, '{"H": "1"}'::jsonb, '{"id": 1}'::jsonb, '\x00ff'::bytea)$q$, 'a finished key is replayed');
	RETURN NEXT throws_ok(format($q$SELECT idempotent_begin(%L, 'finished', '{"a": 2}')$q$, p), 'IK422', NULL, 'another request refused');
	RETURN NEXT is((SELECT response FROM idempotent_begin(p, '019234aa-bbcc-7def-8123-456789abcdef')), '"v7"', 'a UUIDv7');
	RETURN NEXT is((SELECT outcome FROM idempotent_try_begin(p, 'live')), 'in_progress', 'a live claim is in progress');
	RETURN NEXT lives_ok(format($q$SELECT idempotent_finish(%L, 'live', attempt => 1)$q$, p), 'and its worker may finish');
	RETURN NEXT results_eq(format($q$SELECT outcome, attempt, checkpoint, state, error FROM idempotent_begin(%L, 'due', lease => '1 hour')$q$, p),
		$q$VALUES ('recovered', 2, 'charged', '{"c": 1}'::jsonb, 'broken')$q$, 'a due one is recovered at its checkpoint');
	RETURN NEXT throws_ok(format($q$SELECT idempotent_checkpoint(%L, 'due', 1, 'late')$q$, p), 'IK410', NULL, 'and its old worker fenced');
	RETURN NEXT is((SELECT outcome FROM idempotent_try_begin(p, 'parked')), 'parked', 'a parked one is parked');
	RETURN NEXT is(idempotent_resolve(p, 'parked', 'asked', '3', attempt => 1), 'settled', 'and settled');
	RETURN NEXT is((SELECT attempt FROM idempotent_begin(p, 'counter', lease => '1 hour')), 2, 'a counter counts on');
	RETURN NEXT is((SELECT count(*)::int FROM idempotency_corrections WHERE scope = p AND key = 'corrected'), 2, 'corrections are there');
	DELETE FROM idempotency_keys; DELETE FROM idempotency_claims;
END $$;
SET search_path = c_edition, public;
SELECT is(pg_temp.fill('c_edition to public'), 'filled', 'from C to SQL: keys and claims in each state');
SELECT is(pg_temp.move('c_edition', 'public'), 'moved', 'moved');
SET search_path = public;
SELECT pg_temp.checks('c_edition to public');
SELECT is(pg_temp.fill('public to c_edition'), 'filled', 'from SQL to C: keys and claims in each state');
SELECT is(pg_temp.move('public', 'c_edition'), 'moved', 'moved');
SET search_path = c_edition, public;
SELECT pg_temp.checks('public to c_edition');
SELECT is((SELECT count(*) FROM public.idempotency_claims), 0::bigint, 'nothing is left');
SELECT * FROM finish();
