# Under SERIALIZABLE attempts on one key can fail each other: whether they do is a matter of plans and pages.
/^permutation ser1 begin1 ser2 pay2 release1 c1/d
