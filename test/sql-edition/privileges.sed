s/^ALTER DEFAULT PRIVILEGES /&FOR ROLE idempotency_edition /
s/^CREATE TABLE of_the_defaults.*/SET LOCAL ROLE idempotency_edition;\n&\nRESET ROLE;/
s/rolname = current_user/rolname = 'idempotency_edition'/
/^ALTER TABLE .* OWNER TO/d
s/, FORCE ROW LEVEL SECURITY//
# Their guard has still to look at the keys that this transaction has finished.
s/^ALTER TABLE idempotency_keys ENABLE/SET CONSTRAINTS ALL IMMEDIATE;\nSET CONSTRAINTS ALL DEFERRED;\n&/
/forced, it hides them from the owner too/d
