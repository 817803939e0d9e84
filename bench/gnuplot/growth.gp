# Cost by number of keys: data has keys and then median, lowest and highest of idempotency, bare and replays.
# size 700 400
set border 3
set tics nomirror
set logscale x 10
set yrange [0:*]
set format x '%.0s%c'
set xlabel 'keys in the table'
set ylabel 'cost (smallest table: 1)'
set grid ytics lc rgb '#e0e0e0'
set key outside top left horizontal maxrows 1 samplen 2 reverse Left
stats data using 1 nooutput
set xrange [STATS_min / 1.5:STATS_max * 1.5]
plot data using 1:8 with linespoints pt 5 ps 0.7 lw 2 dt 2 lc rgb '#1f5fbf' title 'replay', \
	data using 1:5 with linespoints pt 7 ps 0.7 lw 2 lc rgb '#7f7f7f' title 'one bare INSERT more', \
	data using 1:2:3:4 with yerrorlines pt 7 ps 0.7 lw 2 lc rgb '#1f5fbf' title 'idempotency'
