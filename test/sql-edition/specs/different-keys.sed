# Under SERIALIZABLE attempts on different keys can fail each other: whether they do is a matter of plans and pages.
/^permutation ser1/d
