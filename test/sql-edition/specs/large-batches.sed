# FORCE ROW LEVEL SECURITY holds for an owner that is an ordinary role.
/^permutation .*security/d
