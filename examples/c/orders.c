/*
 * orders.c
 *	  libpq in pipeline mode: begin, work, finish and commit in one round trip.
 *
 * Everything is sent before the first answer is read, so the work is sent
 * without knowing whether the key is new.  It need not be known: where begin
 * replays, finish has no attempt to finish and fails, the server skips the
 * COMMIT, and the work is rolled back.  Only a replay costs a second round
 * trip.
 *
 *	  cc -I$(pg_config --includedir) orders.c -o orders -lpq
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libpq-fe.h"

#define MAX_ANSWER 64

static void
send_query(PGconn *conn, const char *sql, int n, const char *const *values)
{
	if (!PQsendQueryParams(conn, sql, n, NULL, values, NULL, NULL, 0))
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		exit(1);
	}
}

/* The next result, behind the null that ends the one before. */
static PGresult *
next_result(PGconn *conn)
{
	PGresult   *result = PQgetResult(conn);

	return result != NULL ? result : PQgetResult(conn);
}

/*
 * Read up to the end of the pipeline.  The first error's SQLSTATE goes to
 * sqlstate; what the column "answer" has in the first row that has one, to
 * answer, and whether it was a replay to replayed.
 */
static void
read_pipeline(PGconn *conn, char *answer, int *replayed, char *sqlstate)
{
	PGresult   *result;

	while ((result = next_result(conn)) != NULL &&
		   PQresultStatus(result) != PGRES_PIPELINE_SYNC)
	{
		int			column = PQfnumber(result, "answer");

		if (PQresultStatus(result) == PGRES_FATAL_ERROR && sqlstate[0] == '\0')
			snprintf(sqlstate, 6, "%s", PQresultErrorField(result, PG_DIAG_SQLSTATE));
		if (column >= 0 && PQntuples(result) == 1 && !PQgetisnull(result, 0, column))
		{
			snprintf(answer, MAX_ANSWER, "%s", PQgetvalue(result, 0, column));
			if (PQfnumber(result, "replayed") >= 0)
				*replayed = 1;
		}
		PQclear(result);
		if (PQstatus(conn) == CONNECTION_BAD)
			break;
	}
	PQclear(result);
}

/* A transaction that failed in the pipeline is still open. */
static void
leave_pipeline(PGconn *conn)
{
	PQexitPipelineMode(conn);
	if (PQtransactionStatus(conn) != PQTRANS_IDLE)
		PQclear(PQexec(conn, "ROLLBACK"));
}

/* Place an order for an account, which the authentication names: its id goes to answer; otherwise sqlstate is not empty. */
static void
place_order(PGconn *conn, const char *account, const char *key,
			const char *item, const char *quantity, char *answer, char *sqlstate)
{
	const char *order[] = {account, key, item, quantity};
	int			replayed = 0;

	PQenterPipelineMode(conn);
	send_query(conn, "BEGIN", 0, NULL);
	send_query(conn,
			   "SELECT replayed, response->>'id' AS answer"
			   " FROM idempotent_begin($1::text || ' orders', $2, request =>"
			   " jsonb_build_object('item', $3::text, 'quantity', $4::integer))",
			   4, order);
	send_query(conn, "INSERT INTO orders (item, quantity) VALUES ($1, $2)",
			   2, order + 2);
	send_query(conn,
			   "SELECT idempotent_finish($1::text || ' orders', $2, jsonb_build_object('id',"
			   " currval(pg_get_serial_sequence('orders', 'id'))))->>'id' AS answer",
			   2, order);
	send_query(conn, "COMMIT", 0, NULL);
	PQpipelineSync(conn);

	read_pipeline(conn, answer, &replayed, sqlstate);
	leave_pipeline(conn);
	if (replayed)
		sqlstate[0] = '\0';
}

/* For the test: a transaction, or a statement alone, that only begins. */
static void
begin_only(PGconn *conn, const char *key, int in_transaction, char *sqlstate)
{
	char		answer[MAX_ANSWER] = "";
	int			replayed = 0;

	PQenterPipelineMode(conn);
	if (in_transaction)
		send_query(conn, "BEGIN", 0, NULL);
	send_query(conn, "SELECT idempotent_begin('acct_1 orders', $1)", 1, &key);
	if (in_transaction)
		send_query(conn, "COMMIT", 0, NULL);
	PQpipelineSync(conn);
	read_pipeline(conn, answer, &replayed, sqlstate);
	leave_pipeline(conn);
}

int
main(int argc, char **argv)
{
	char		answer[MAX_ANSWER] = "";
	char		sqlstate[6] = "";
	PGconn	   *conn = PQconnectdb("");

	if (argc < 3 || PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "usage: orders place KEY ITEM QUANTITY\n%s", PQerrorMessage(conn));
		return 1;
	}
	if (strcmp(argv[1], "place") == 0 && argc == 5 && getenv("ACCOUNT"))
		place_order(conn, getenv("ACCOUNT"), argv[2], argv[3], argv[4], answer, sqlstate);
	else
		begin_only(conn, argv[2], strcmp(argv[1], "begin") == 0, sqlstate);
	puts(sqlstate[0] != '\0' ? sqlstate : answer);
	PQfinish(conn);
	return 0;
}
