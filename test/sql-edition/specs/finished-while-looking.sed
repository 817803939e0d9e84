# Which of the other's locks is given back first is chance, and with it whether the filter is had.
/^permutation .*lock1 \(rr2\|ser2\) try2 c1/d
