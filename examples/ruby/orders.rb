#!/usr/bin/ruby
# ActiveRecord. With PgBouncer in transaction mode, prepared_statements: false.
require "active_record"
require "json"

ActiveRecord::Base.establish_connection(adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"],
                                        username: ENV["PGUSER"], database: ENV["PGDATABASE"],
                                        prepared_statements: false, advisory_locks: false)

class Order < ActiveRecord::Base
  # One row of a query with ? in it.
  # uncached: inside a request or a job Rails answers a repeated query from its cache. A second begin of the same key would
  # then not reach the server and say "started" again: the work would run twice.
  def self.row(sql, *values) = uncached { connection.select_one(sanitize_sql([sql, *values])) }

  # The work is the block; it returns the response.
  def self.once(account, key, request)
    scope = "#{account} orders"                            # the account from the authentication
    transaction do
      attempt = row("SELECT * FROM idempotent_begin(?, ?, request => ?)", scope, key, request.to_json)
      next JSON.parse(attempt["response"]) if attempt["replayed"]

      response = yield
      row("SELECT idempotent_finish(?, ?, ?)", scope, key, response.to_json)
      response
    end
  end

  def self.place(account, key, attributes)
    once(account, key, attributes) { { "id" => create!(attributes).id } }
  end
end

def sqlstate(error)
  error = error.cause if error.is_a?(ActiveRecord::StatementInvalid)
  error.result.error_field(PG::Result::PG_DIAG_SQLSTATE)
end

# For the test.
def begin_only(key) = Order.row("SELECT idempotent_begin('acct_1 orders', ?)", key)

begin
  what, key, item, quantity = ARGV
  case what
  when "place" then puts Order.place(ENV["ACCOUNT"], key, item: item, quantity: quantity.to_i)["id"]
  when "twice"                                             # in one request or job of Rails, with its query cache
    insert = Order.sanitize_sql(["INSERT INTO orders (item, quantity) VALUES (?, ?) RETURNING id", item, quantity.to_i])
    Order.cache do
      2.times { puts Order.once(ENV["ACCOUNT"], key, item) { { "id" => Order.connection.execute(insert).first["id"] } }["id"] }
    end
  when "begin" then Order.transaction { begin_only(key) }
  else begin_only(key)
  end
rescue ActiveRecord::StatementInvalid, PG::Error => error
  puts sqlstate(error)
end
