s|/\.\./idempotency|/idempotency|
