-- Changes to the tables that the extension must work with: a table of them, and a function that tries a command in each.
-- Views of ours that stand in the way of such a change.
\set no_views 'ALTER EXTENSION idempotency DROP VIEW idempotency_stalled; ALTER EXTENSION idempotency DROP VIEW idempotency_in_flight; DROP VIEW idempotency_stalled, idempotency_in_flight;'
CREATE TABLE fired (what text);
CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.fired VALUES (TG_TABLE_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD); END $$;
CREATE FUNCTION of_scope(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT split_part($1, ' ', 1) $$;
CREATE TEMP TABLE changes (n int GENERATED ALWAYS AS IDENTITY, what text, ddl text);
INSERT INTO changes (what, ddl) VALUES
	('triggers before each row', (SELECT string_agg(format('CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION fire()', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('triggers after each row', (SELECT string_agg(format('CREATE TRIGGER fire AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION fire()', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('triggers for each statement', (SELECT string_agg(format('CREATE TRIGGER fire AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH STATEMENT EXECUTE FUNCTION fire()', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('a deferred constraint trigger', 'CREATE CONSTRAINT TRIGGER fire AFTER INSERT ON idempotency_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fire()'),
	('row security', (SELECT string_agg(format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', t), ';') FROM unnest('{idempotency_keys,idempotency_claims,idempotency_corrections}'::text[]) t)),
	('columns more', 'ALTER TABLE idempotency_claims ADD COLUMN note text NOT NULL DEFAULT ''n'', ADD COLUMN at timestamptz DEFAULT clock_timestamp(); ALTER TABLE idempotency_keys ADD COLUMN note text NOT NULL DEFAULT ''n''; ALTER TABLE idempotency_corrections ADD COLUMN note text NOT NULL DEFAULT ''n'''),
	('checks', 'ALTER TABLE idempotency_claims ADD CHECK (attempt > 0), ADD CHECK (scope IS NULL OR length(scope) < 100); ALTER TABLE idempotency_keys ADD CHECK (expires_at > finished_at OR attempt > 0)'),
	('generated columns', 'ALTER TABLE idempotency_claims ADD COLUMN tenant text GENERATED ALWAYS AS (of_scope(scope)) STORED; ALTER TABLE idempotency_keys ADD COLUMN tenant text GENERATED ALWAYS AS (of_scope(scope)) STORED'),
	('indexes on expressions, and partial ones', 'CREATE INDEX ON idempotency_claims (of_scope(scope)) WHERE parked_at IS NOT NULL; CREATE INDEX ON idempotency_claims (lease_until) WHERE reset_at IS NULL; CREATE INDEX ON idempotency_keys (of_scope(scope)) WHERE status >= 500'),
	('a unique index on the name', 'CREATE UNIQUE INDEX ON idempotency_keys (scope, key); CREATE UNIQUE INDEX ON idempotency_claims (scope, key)'),
	('an exclusion constraint', 'ALTER TABLE idempotency_keys ADD EXCLUDE USING btree (id WITH =)'),
	('columns in another order', :'no_views' || 'ALTER TABLE idempotency_claims RENAME COLUMN attempt TO was; ALTER TABLE idempotency_claims ADD COLUMN attempt integer NOT NULL DEFAULT 0; ALTER TABLE idempotency_claims DROP COLUMN was;'
		|| 'ALTER TABLE idempotency_keys RENAME COLUMN expires_at TO was; ALTER TABLE idempotency_keys ADD COLUMN expires_at timestamptz NOT NULL; ALTER TABLE idempotency_keys DROP COLUMN was'),
	('everything at once', 'CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION fire(); CREATE TRIGGER fire BEFORE INSERT OR UPDATE OR DELETE ON idempotency_claims FOR EACH ROW EXECUTE FUNCTION fire();'
		'ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, ADD COLUMN note text DEFAULT ''n'', ADD COLUMN tenant text GENERATED ALWAYS AS (of_scope(scope)) STORED;'
		'ALTER TABLE idempotency_claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, ADD COLUMN note text DEFAULT ''n''; CREATE INDEX ON idempotency_keys (of_scope(scope)) WHERE status IS NULL');
-- A command's answer in tables so changed, and then back to what they were.
CREATE FUNCTION pg_temp.in_shape(ddl text, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	said text;
BEGIN
	EXECUTE ddl;
	EXECUTE command INTO said;
	RAISE SQLSTATE 'UNDO1' USING MESSAGE = said;
EXCEPTION WHEN SQLSTATE 'UNDO1' THEN
	RETURN SQLERRM;
WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
