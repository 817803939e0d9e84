# Latency percentiles by contender: data names the file of "stats.pl bars".
# size 800 340
set termoption noenhanced
set border 1
set tics nomirror scale 0
set yrange [*:*] reverse
set offsets 0, 0, 0.6, 0.6
stats data using 5 nooutput
set xrange [0:STATS_max * 1.05]
set xlabel 'ms for a call with its commit'
set grid xtics ytics lc rgb '#e0e0e0'
set key outside top left horizontal maxrows 1 samplen 2 reverse Left
set lmargin 24
plot data using 3:0:6:ytic(1) with points pt 7 ps 1 lc rgb variable notitle, \
	data using 4:0:6 with points pt 8 ps 1.2 lc rgb variable notitle, \
	data using 5:0:6 with points pt 13 ps 1.3 lc rgb variable notitle, \
	NaN with points pt 7 ps 1 lc rgb '#222222' title 'p50', \
	NaN with points pt 8 ps 1.2 lc rgb '#222222' title 'p95', \
	NaN with points pt 13 ps 1.3 lc rgb '#222222' title 'p99'
