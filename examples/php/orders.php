#!/usr/bin/php
<?php
// PDO. With PgBouncer in transaction mode, emulated prepares.

function connect(): PDO
{
    $dsn = sprintf('pgsql:host=%s;port=%s;dbname=%s;user=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE'), getenv('PGUSER'));
    return new PDO($dsn, options: [
        PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION,
        PDO::ATTR_EMULATE_PREPARES => true,
        PDO::ATTR_DEFAULT_FETCH_MODE => PDO::FETCH_ASSOC,
    ]);
}

function query(PDO $db, string $sql, array $values): array
{
    $statement = $db->prepare($sql);
    $statement->execute($values);
    return $statement->fetch();
}

function transaction(PDO $db, callable $work): mixed
{
    $db->beginTransaction();
    try {
        $result = $work();
        $db->commit();
        return $result;
    } catch (Throwable $error) {
        if ($db->inTransaction()) {
            $db->rollBack();
        }
        throw $error;
    }
}

function placeOrder(PDO $db, string $account, string $key, array $order): array
{
    $scope = "$account orders";                     // the account from the authentication
    return transaction($db, function () use ($db, $scope, $key, $order) {
        $attempt = query($db, "SELECT * FROM idempotent_begin(?, ?, request => ?)", [$scope, $key, json_encode($order)]);
        if ($attempt['replayed']) {
            return json_decode($attempt['response'], true);
        }
        $response = query($db, 'INSERT INTO orders (item, quantity) VALUES (?, ?) RETURNING id', array_values($order));
        query($db, "SELECT idempotent_finish(?, ?, ?)", [$scope, $key, json_encode($response)]);
        return $response;
    });
}

// For the test.
$db = connect();
[, $what, $key] = $argv;
$begin = fn () => query($db, "SELECT idempotent_begin('acct_1 orders', ?)", [$key]);
try {
    match ($what) {
        'place' => print(placeOrder($db, getenv('ACCOUNT'), $key, ['item' => $argv[3], 'quantity' => (int) $argv[4]])['id'] . "\n"),
        'begin' => transaction($db, $begin),
        'autocommit' => $begin(),
    };
} catch (PDOException $error) {
    print($error->getCode() . "\n");
}
