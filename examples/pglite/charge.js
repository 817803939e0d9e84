// An application's code as it runs in production: one transaction, begin, work, finish.
export async function charge(db, account, key, amount) {
  return db.transaction(async (tx) => {
    const { rows: [attempt] } = await tx.query(
      `SELECT outcome, replayed, status, response
       FROM idempotency.idempotent_begin($1, $2, jsonb_build_object('amount', $3::int))`,
      [`${account} charge`, key, amount]);
    if (attempt.replayed) return { status: attempt.status, body: attempt.response, replayed: true };
    const { rows: [row] } = await tx.query(
      'INSERT INTO charges (account, amount) VALUES ($1, $2) RETURNING id', [account, amount]);
    const body = { id: row.id, amount };
    await tx.query('SELECT idempotency.idempotent_finish($1, $2, $3, 201)', [`${account} charge`, key, body]);
    return { status: 201, body, replayed: false };
  });
}
