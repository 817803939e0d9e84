// database/sql with lib/pq. With PgBouncer in transaction mode, binary_parameters=yes: no statement is prepared by name.
package main

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/lib/pq"
)

type order struct {
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
}

func connect() (*sql.DB, error) {
	return sql.Open("postgres", "sslmode=disable binary_parameters=yes")
}

// A time.Duration would arrive as a number of nanoseconds: pass an interval as text.
func placeOrder(db *sql.DB, account, key string, o order) (id int, err error) {
	scope := account + " orders" // the account from the authentication, never from the client's word
	request, err := json.Marshal(o)
	if err != nil {
		return 0, err
	}
	tx, err := db.Begin()
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() // after COMMIT it does nothing
	var replayed bool
	var known sql.NullInt64
	if err = tx.QueryRow("SELECT replayed, (response->>'id')::integer"+
		" FROM idempotent_begin($1, $2, request => $3::text::jsonb, retention => $4::text::interval)",
		scope, key, string(request), "24 hours").Scan(&replayed, &known); err != nil {
		return 0, err
	}
	if replayed {
		return int(known.Int64), tx.Commit()
	}
	if err = tx.QueryRow("INSERT INTO orders (item, quantity) VALUES ($1, $2) RETURNING id", o.Item, o.Quantity).Scan(&id); err != nil {
		return 0, err
	}
	if _, err = tx.Exec("SELECT idempotent_finish($1, $2, jsonb_build_object('id', $3::integer))", scope, key, id); err != nil {
		return 0, err
	}
	return id, tx.Commit()
}

// Of COMMIT too.
func sqlstate(err error) string {
	var pqErr *pq.Error
	if errors.As(err, &pqErr) {
		return string(pqErr.Code)
	}
	return err.Error()
}

// For the test.
func main() {
	db, err := connect()
	if err != nil {
		panic(err)
	}
	defer db.Close()
	const begin = "SELECT idempotent_begin('acct_1 orders', $1)"
	switch os.Args[1] {
	case "place":
		quantity, _ := strconv.Atoi(os.Args[4])
		var id int
		if id, err = placeOrder(db, os.Getenv("ACCOUNT"), os.Args[2], order{os.Args[3], quantity}); err == nil {
			fmt.Println(id)
		}
	case "begin":
		var tx *sql.Tx
		if tx, err = db.Begin(); err == nil {
			if _, err = tx.Exec(begin, os.Args[2]); err == nil {
				err = tx.Commit()
			} else {
				tx.Rollback()
			}
		}
	default:
		_, err = db.Exec(begin, os.Args[2])
	}
	if err != nil {
		fmt.Println(sqlstate(err))
	}
}
