# A recovery without lease has written the claim, and nobody else does before it ends.
/^permutation .*here2 hand1/d
