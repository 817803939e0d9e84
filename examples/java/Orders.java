// JDBC, with an XA transaction: begin, work and finish are one branch, prepared and committed by a transaction manager.
//
// PREPARE TRANSACTION fails (IK500) where an attempt is not finished, so a branch that is prepared can always be committed.
// A key that is in a prepared branch is in progress until that branch ends. With PgBouncer in transaction mode,
// prepareThreshold=0.
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.UUID;
import javax.sql.XAConnection;
import javax.transaction.xa.XAException;
import javax.transaction.xa.XAResource;
import javax.transaction.xa.Xid;
import org.postgresql.xa.PGXADataSource;

public class Orders {
    interface Work<T> {
        T run(Connection db) throws SQLException;
    }

    // What a transaction manager does with one branch; the application server's does it for you.
    static <T> T inTransaction(XAConnection xa, Work<T> work) throws SQLException, XAException {
        XAResource resource = xa.getXAResource();
        Xid branch = new Branch();
        resource.start(branch, XAResource.TMNOFLAGS);
        try {
            T result = work.run(xa.getConnection());
            resource.end(branch, XAResource.TMSUCCESS);
            if (resource.prepare(branch) == XAResource.XA_OK) {
                resource.commit(branch, false);
            }
            return result;
        } catch (SQLException error) {
            resource.end(branch, XAResource.TMFAIL);
            resource.rollback(branch);
            throw error;
        }
    }

    static int placeOrder(Connection db, String account, String key, String item, int quantity) throws SQLException {
        String request = "jsonb_build_object('item', ?::text, 'quantity', ?::integer)";
        try (PreparedStatement begin = db.prepareStatement(
                "SELECT replayed, (response->>'id')::integer AS id FROM idempotent_begin(?, ?, request => " + request + ")")) {
            begin.setString(1, account + " orders");       // the account from the authentication
            begin.setString(2, key);
            begin.setString(3, item);
            begin.setInt(4, quantity);
            try (ResultSet attempt = begin.executeQuery()) {
                attempt.next();
                if (attempt.getBoolean("replayed")) {
                    return attempt.getInt("id");
                }
            }
        }
        int id;
        try (PreparedStatement insert = db.prepareStatement("INSERT INTO orders (item, quantity) VALUES (?, ?) RETURNING id")) {
            insert.setString(1, item);
            insert.setInt(2, quantity);
            try (ResultSet order = insert.executeQuery()) {
                order.next();
                id = order.getInt(1);
            }
        }
        try (PreparedStatement finish = db.prepareStatement("SELECT idempotent_finish(?, ?, jsonb_build_object('id', ?::integer))")) {
            finish.setString(1, account + " orders");
            finish.setString(2, key);
            finish.setInt(3, id);
            finish.executeQuery().close();
        }
        return id;
    }

    static Void begin(Connection db, String key) throws SQLException {
        try (PreparedStatement begin = db.prepareStatement("SELECT idempotent_begin('acct_1 orders', ?)")) {
            begin.setString(1, key);
            begin.executeQuery().close();
        }
        return null;
    }

    // An XAException that the server caused has the driver's error as its cause.
    static String sqlState(Throwable error) {
        for (; error != null; error = error.getCause()) {
            if (error instanceof SQLException) {
                return ((SQLException) error).getSQLState();
            }
        }
        return "?";
    }

    // For the test.
    public static void main(String[] args) throws Exception {
        PGXADataSource source = new PGXADataSource();
        source.setServerNames(new String[] {"127.0.0.1"});
        source.setPortNumbers(new int[] {Integer.parseInt(System.getenv("PGPORT"))});
        source.setDatabaseName(System.getenv("PGDATABASE"));
        source.setUser(System.getenv("PGUSER"));
        source.setPrepareThreshold(0);
        XAConnection xa = source.getXAConnection();
        try {
            switch (args[0]) {
                case "place":
                    int id = inTransaction(xa, db -> placeOrder(db, System.getenv("ACCOUNT"), args[1], args[2], Integer.parseInt(args[3])));
                    System.out.println(id);
                    break;
                case "begin":
                    inTransaction(xa, db -> begin(db, args[1]));
                    break;
                default:
                    begin(xa.getConnection(), args[1]);
            }
        } catch (SQLException | XAException error) {
            System.out.println(sqlState(error));
        } finally {
            xa.close();
        }
    }

    private static class Branch implements Xid {
        private final byte[] id = UUID.randomUUID().toString().getBytes();

        public int getFormatId() {
            return 1;
        }

        public byte[] getGlobalTransactionId() {
            return id;
        }

        public byte[] getBranchQualifier() {
            return new byte[] {1};
        }
    }
}
