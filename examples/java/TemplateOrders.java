// Spring's JdbcTemplate in a TransactionTemplate; a method with @Transactional is the same. With PgBouncer in transaction mode,
// prepareThreshold=0.
import java.sql.SQLException;
import java.util.Map;
import javax.sql.DataSource;
import org.postgresql.ds.PGSimpleDataSource;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DataSourceTransactionManager;
import org.springframework.transaction.support.TransactionTemplate;

public class TemplateOrders {
    private final JdbcTemplate jdbc;
    private final TransactionTemplate transaction;

    TemplateOrders(DataSource source) {
        jdbc = new JdbcTemplate(source);
        transaction = new TransactionTemplate(new DataSourceTransactionManager(source));
    }

    int placeOrder(String account, String key, String request, String item, int quantity) {
        String scope = account + " orders";         // the account from the authentication, never from the client's word
        return transaction.execute(status -> {
            Map<String, Object> attempt = jdbc.queryForMap("SELECT replayed, (response->>'id')::integer AS id"
                + " FROM idempotent_begin(?, ?, request => ?::jsonb, retention => ?::interval)", scope, key, request, "24 hours");
            if ((Boolean) attempt.get("replayed")) {
                return (Integer) attempt.get("id");
            }
            Integer id = jdbc.queryForObject("INSERT INTO orders (item, quantity) VALUES (?, ?) RETURNING id", Integer.class,
                item, quantity);
            jdbc.queryForMap("SELECT idempotent_finish(?, ?, jsonb_build_object('id', ?::integer))", scope, key, id);
            return id;
        });
    }

    // Of a statement the exception is a DataAccessException, of COMMIT a TransactionException: the driver's is a cause of either.
    static String sqlState(Throwable error) {
        for (; error != null; error = error.getCause()) {
            if (error instanceof SQLException) {
                return ((SQLException) error).getSQLState();
            }
        }
        return "?";
    }

    // For the test.
    Map<String, Object> begin(String key) {
        return jdbc.queryForMap("SELECT idempotent_begin('acct_1 orders', ?)", key);
    }

    public static void main(String[] args) {
        PGSimpleDataSource source = new PGSimpleDataSource();
        source.setServerNames(new String[] {"127.0.0.1"});
        source.setPortNumbers(new int[] {Integer.parseInt(System.getenv("PGPORT"))});
        source.setDatabaseName(System.getenv("PGDATABASE"));
        source.setUser(System.getenv("PGUSER"));
        source.setPrepareThreshold(0);
        TemplateOrders orders = new TemplateOrders(source);
        try {
            switch (args[0]) {
                case "place":
                    String request = String.format("{\"item\": \"%s\", \"quantity\": %s}", args[2], args[3]);
                    System.out.println(orders.placeOrder(System.getenv("ACCOUNT"), args[1], request, args[2], Integer.parseInt(args[3])));
                    break;
                case "begin":
                    orders.transaction.execute(status -> orders.begin(args[1]));
                    break;
                default:
                    orders.begin(args[1]);
            }
        } catch (RuntimeException error) {
            System.out.println(sqlState(error));
        }
    }
}
