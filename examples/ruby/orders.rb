#!/usr/bin/ruby
# ActiveRecord. With PgBouncer in transaction mode, prepared_statements: false.
require "active_record"
require "json"

ActiveRecord::Base.establish_connection(adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"],
                                        username: ENV["PGUSER"], database: ENV["PGDATABASE"],
                                        prepared_statements: false, advisory_locks: false)

class Order < ActiveRecord::Base
  # One row of a query with ? in it.
  def self.row(sql, *values) = connection.select_one(sanitize_sql([sql, *values]))

  def self.place(key, attributes)
    transaction do
      attempt = row("SELECT * FROM idempotent_begin('orders', ?, request => ?)", key, attributes.to_json)
      next JSON.parse(attempt["response"]) if attempt["replayed"]

      response = { "id" => create!(attributes).id }
      row("SELECT idempotent_finish('orders', ?, ?)", key, response.to_json)
      response
    end
  end
end

def sqlstate(error)
  error = error.cause if error.is_a?(ActiveRecord::StatementInvalid)
  error.result.error_field(PG::Result::PG_DIAG_SQLSTATE)
end

# For the test.
def begin_only(key) = Order.row("SELECT idempotent_begin('orders', ?)", key)

begin
  what, key, item, quantity = ARGV
  case what
  when "place" then puts Order.place(key, item: item, quantity: quantity.to_i)["id"]
  when "begin" then Order.transaction { begin_only(key) }
  else begin_only(key)
  end
rescue ActiveRecord::StatementInvalid, PG::Error => error
  puts sqlstate(error)
end
