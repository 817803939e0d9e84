// pgx. With PgBouncer in transaction mode, PreferSimpleProtocol.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
)

type order struct {
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
}

func connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig("")
	if err != nil {
		return nil, err
	}
	config.PreferSimpleProtocol = true
	return pgx.ConnectConfig(ctx, config)
}

func placeOrder(ctx context.Context, db *pgx.Conn, account, key string, o order) (id int, err error) {
	scope := account + " orders" // the account from the authentication, never from the client's word
	request, err := json.Marshal(o)
	if err != nil {
		return 0, err
	}
	err = db.BeginFunc(ctx, func(tx pgx.Tx) error {
		var replayed bool
		var known *int
		if err := tx.QueryRow(ctx, "SELECT replayed, (response->>'id')::integer"+
			" FROM idempotent_begin($1, $2, request => $3::text::jsonb, retention => $4::text::interval)",
			scope, key, string(request), "24 hours").Scan(&replayed, &known); err != nil {
			return err
		}
		if replayed {
			id = *known
			return nil
		}
		if err := tx.QueryRow(ctx, "INSERT INTO orders (item, quantity) VALUES ($1, $2) RETURNING id",
			o.Item, o.Quantity).Scan(&id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "SELECT idempotent_finish($1, $2, jsonb_build_object('id', $3::integer))", scope, key, id)
		return err
	})
	return id, err
}

// Of COMMIT too: BeginFunc returns its error.
func sqlstate(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return err.Error()
}

// For the test.
func main() {
	ctx := context.Background()
	db, err := connect(ctx)
	if err != nil {
		panic(err)
	}
	defer db.Close(ctx)
	const begin = "SELECT idempotent_begin('acct_1 orders', $1)"
	switch os.Args[1] {
	case "place":
		quantity, _ := strconv.Atoi(os.Args[4])
		var id int
		if id, err = placeOrder(ctx, db, os.Getenv("ACCOUNT"), os.Args[2], order{os.Args[3], quantity}); err == nil {
			fmt.Println(id)
		}
	case "begin":
		err = db.BeginFunc(ctx, func(tx pgx.Tx) error { _, err := tx.Exec(ctx, begin, os.Args[2]); return err })
	default:
		_, err = db.Exec(ctx, begin, os.Args[2])
	}
	if err != nil {
		fmt.Println(sqlstate(err))
	}
}
