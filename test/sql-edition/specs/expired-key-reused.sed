# The wait for a prune is begin's.
s/^\(permutation .*\)\(begin2\|try2\) finish2 \([cr]1\)/\1\2 \3 finish2/
s/^\(permutation .*\)lease2 leased2 \([cr]1\) leased2/\1lease2 \2 leased2/
s/^\(permutation .*\)lease2 leased2 \([cr]1\)/\1lease2 \2 leased2/
# Under SERIALIZABLE a prune and an attempt on another key can fail each other: whether they do is a matter of plans and pages.
/^permutation ser1 one1 ser2 other2/d
