# Whether a prune and a finished key fail each other under SERIALIZABLE depends here on plans and pages.
/^permutation ser1 begin1 finish1 ser2 prune2 c2 c1 /d
