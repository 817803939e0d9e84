# Under SERIALIZABLE attempts on different keys can fail each other: whether they do is a matter of plans and pages.
/^permutation ser2 \(begin2\|here2\) ser1 all1/d
