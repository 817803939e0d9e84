# Under SERIALIZABLE attempts on one key can fail each other: whether they do is a matter of plans and pages.
/^permutation ser1 ser2 sp2 here2 finish1 rt2/d
