# Sizes over time: data has second, MB of the table, MB of the indexes, number of keys.
# size 700 360
set border 3
set tics nomirror
set yrange [0:*]
set xlabel 'seconds'
set ylabel 'MB'
set grid ytics lc rgb '#e0e0e0'
set key outside top left horizontal maxrows 1 samplen 2 reverse Left
plot data using 1:2 with lines lw 3 lc rgb '#1f5fbf' title 'table', \
	data using 1:3 with lines lw 2 lc rgb '#7f7f7f' title 'indexes'
