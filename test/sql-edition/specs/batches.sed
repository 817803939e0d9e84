# try_begin waits for an unfinished batch of more than 200.
/^permutation .*large1 try2/d
