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

  def self.place(account, key, attributes)
    scope = "#{account} orders"                            # the account from the authentication
    transaction do
      attempt = row("SELECT * FROM idempotent_begin(?, ?, request => ?)", scope, key, attributes.to_json)
      next JSON.parse(attempt["response"]) if attempt["replayed"]

      response = { "id" => create!(attributes).id }
      row("SELECT idempotent_finish(?, ?, ?)", scope, key, response.to_json)
      response
    end
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
  when "twice"                                             # as in one request or job of Rails, with its query cache
    Order.cache do
      2.times { puts Order.place(ENV["ACCOUNT"], key, item: item, quantity: quantity.to_i)["id"] }
    end
  when "begin" then Order.transaction { begin_only(key) }
  else begin_only(key)
  end
rescue ActiveRecord::StatementInvalid, PG::Error => error
  puts sqlstate(error)
end
