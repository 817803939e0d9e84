-- idempotent_prune removes expired keys, so many and no others, and reads next to nothing where there are none.
\set ECHO none
\getenv dir PG_ABS_SRCDIR
\set setup :dir '/setup.sql'
\i :setup
SELECT plan(42);

CREATE FUNCTION pg_temp.add_keys(scope text, n int, expires interval) RETURNS void LANGUAGE sql AS $$
	INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
		SELECT md5(scope || i)::uuid, scope, i::text, 1, '{"ok": true}', now() - interval '25 hours', now(), now() + expires
		FROM generate_series(1, n) i
$$;
CREATE FUNCTION pg_temp.count_keys(scope text) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM idempotency_keys k WHERE k.scope = count_keys.scope
$$;

SELECT is(idempotent_prune(), 0::bigint, 'an empty table');
SELECT pg_typeof(pg_temp.add_keys('expired', 25, '-1 second')) \g /dev/null
SELECT pg_typeof(pg_temp.add_keys('live', 10, '1 hour')) \g /dev/null
SELECT is(outcome, 'started', 'a claim') FROM idempotent_begin('claim', 'l', retention => '1 microsecond', lease => '1 microsecond');

SELECT is(idempotent_prune(10), 10::bigint, 'at most max_keys are removed');
SELECT is(pg_temp.count_keys('expired'), 15::bigint, 'so many');
SELECT is(idempotent_prune(max_keys => 1), 1::bigint, 'one');
SELECT is(idempotent_prune(10), 10::bigint, 'ten more');
SELECT is(idempotent_prune(10), 4::bigint, 'the number is what was removed');
SELECT is(idempotent_prune(10), 0::bigint, 'none are left');
SELECT is(pg_temp.count_keys('live'), 10::bigint, 'unexpired keys are not touched');
SELECT is((SELECT count(*) FROM idempotency_claims), 1::bigint, 'nor are claims, however old: they are evidence');
SELECT is(pg_temp.locks(), 0::bigint, 'no lock is left');

-- More than a batch.
SELECT pg_typeof(pg_temp.add_keys('many', 2500, '-1 second')) \g /dev/null
SELECT is(idempotent_prune(1700), 1700::bigint, 'more than a batch, bounded');
SELECT is(idempotent_prune(), 800::bigint, 'and the rest');
SELECT pg_typeof(pg_temp.add_keys('default', 10001, '-1 second')) \g /dev/null
SELECT is(idempotent_prune(), 10000::bigint, 'by default ten thousand at most');
SELECT is(idempotent_prune(2147483647), 1::bigint, 'max_keys may be as large as an integer is');

-- In a transaction.
SELECT pg_typeof(pg_temp.add_keys('rollback', 5, '-1 second')) \g /dev/null
BEGIN;
SELECT is(idempotent_prune(), 5::bigint, 'pruned');
SELECT is(idempotent_prune(), 0::bigint, 'seen by the same transaction');
ROLLBACK;
SELECT is(pg_temp.count_keys('rollback'), 5::bigint, 'and undone with it');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT is(idempotent_prune(), 5::bigint, 'pruned in SERIALIZABLE');
COMMIT;

-- A large table, in the order of time as keys come, in which nothing has expired.
TRUNCATE idempotency_keys;
ALTER TABLE idempotency_keys SET (autovacuum_enabled = off);	-- its lock would postpone the summaries
INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
	SELECT md5(i::text)::uuid, 'large', i::text, 1, '{"ok": true}', now(), now(), now() + interval '1 hour' + i * interval '1 ms'
	FROM generate_series(1, 40000) i;
-- Blocks of the table and its indexes that a prune looks at, whether in memory or not.
CREATE FUNCTION pg_temp.blocks_fetched() RETURNS bigint LANGUAGE sql AS $$
	SELECT sum(pg_stat_get_xact_blocks_fetched(r))::bigint
	FROM unnest(ARRAY['idempotency_keys', 'idempotency_keys_pkey', 'idempotency_keys_expires_at_idx']::regclass[]) r
$$;
CREATE FUNCTION pg_temp.prune_reads(max_keys int, OUT pruned bigint, OUT blocks bigint) LANGUAGE plpgsql AS $$
DECLARE
	before bigint := pg_temp.blocks_fetched();
BEGIN
	pruned := idempotent_prune(max_keys);
	blocks := pg_temp.blocks_fetched() - before;
END $$;
SELECT pg_relation_size('idempotency_keys') / current_setting('block_size')::int AS pages \gset
SELECT cmp_ok(:pages, '>', 400, 'a table of many pages');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 0::bigint, 'a first prune summarizes what is new');
SELECT cmp_ok(bigint :'blocks', '>', (:pages / 2)::bigint, 'for which it reads the table, as is seen here');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 0::bigint, 'a second finds nothing');
SELECT cmp_ok(bigint :'blocks', '<', 50::bigint, 'and does not read the table');

-- A few are new, and expired.
INSERT INTO idempotency_keys (id, scope, key, attempt, first_seen_at, finished_at, expires_at)
	SELECT md5('late' || i)::uuid, 'late', i::text, 1, now(), now(), now() - interval '1 hour' FROM generate_series(1, 20) i;
SELECT * FROM pg_temp.prune_reads(10) \gset
SELECT is(bigint :'pruned', 10::bigint, 'some of them');
SELECT cmp_ok(bigint :'blocks', '<', :pages::bigint / 4, 'reading what has to be read');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 10::bigint, 'the rest');
SELECT cmp_ok(bigint :'blocks', '<', :pages::bigint / 4, 'reading what has to be read');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 0::bigint, 'the next one takes the summaries anew');
SELECT cmp_ok(bigint :'blocks', '<', :pages::bigint / 4, 'of what was pruned alone');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 0::bigint, 'and the one after that');
SELECT cmp_ok(bigint :'blocks', '<', 50::bigint, 'reads next to nothing again');

-- Expired ones among all the others: what was pruned must not be looked for again.
TRUNCATE idempotency_keys;
INSERT INTO idempotency_keys (id, scope, key, attempt, response, first_seen_at, finished_at, expires_at)
	SELECT md5(i::text)::uuid, 'mixed', i::text, 1, '{"ok": true}', now(), now(),
		now() + CASE WHEN i % 400 = 0 THEN interval '-1 hour' ELSE interval '1 hour' END
	FROM generate_series(1, 40000) i;
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 100::bigint, 'a hundred in as many places');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 0::bigint, 'are gone');
SELECT * FROM pg_temp.prune_reads(1000) \gset
SELECT is(bigint :'pruned', 0::bigint, 'and the places');
SELECT cmp_ok(bigint :'blocks', '<', 50::bigint, 'are not read again');

-- Without its index prune still works, as it must where the table is partitioned or distributed.
TRUNCATE idempotency_keys;
DROP INDEX idempotency_keys_expires_at_idx;
SELECT pg_typeof(pg_temp.add_keys('expired', 25, '-1 second')) \g /dev/null
SELECT is(idempotent_prune(), 25::bigint, 'without the index');
SELECT is(idempotent_prune(), 0::bigint, 'too');

-- Nor does it need an index of that name to be the extension's own.
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys USING brin (expires_at timestamptz_bloom_ops);
SELECT pg_typeof(pg_temp.add_keys('expired', 25, '-1 second')) \g /dev/null
SELECT is(idempotent_prune(), 25::bigint, 'with an index that cannot tell what has expired');
SELECT is(idempotent_prune(), 0::bigint, 'too');
DROP INDEX idempotency_keys_expires_at_idx;
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys USING brin (finished_at);
SELECT pg_typeof(pg_temp.add_keys('expired', 25, '-1 second')) \g /dev/null
SELECT is(idempotent_prune(), 25::bigint, 'with one on another column');
SELECT is(idempotent_prune(), 0::bigint, 'too');

-- No finish(): pgTAP's own count is rolled back with the rest.
