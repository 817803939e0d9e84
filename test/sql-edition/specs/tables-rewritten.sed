# The shape of the tables is looked at once a session.
/^permutation .*unlogged1/d
