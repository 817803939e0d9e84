# Throughput by number of connections: data has number, no protection, bare, idempotency.
# size 700 400
set border 3
set tics nomirror
set logscale x 2
set xrange [0.9:71]
set yrange [0:*]
set format y '%.0s%c'
set xtics (1, 2, 4, 8, 16, 32, 64)
set xlabel 'connections'
set ylabel 'transactions/s'
set grid ytics lc rgb '#e0e0e0'
set key outside top left horizontal maxrows 1 samplen 2 reverse Left
plot data using 1:2 with linespoints pt 7 ps 0.7 lw 2 lc rgb '#bdbdbd' title 'no protection', \
	data using 1:3 with linespoints pt 7 ps 0.7 lw 2 lc rgb '#7f7f7f' title 'one bare INSERT more', \
	data using 1:4 with linespoints pt 7 ps 0.7 lw 3 lc rgb '#1f5fbf' title 'idempotency'
