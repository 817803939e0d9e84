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
set key outside top center horizontal
set lmargin 24
plot data using 3:0:ytic(1) with points pt 7 ps 1 lc rgb '#1f5fbf' title 'p50', \
	data using 4:0 with points pt 9 ps 1 lc rgb '#7f7f7f' title 'p95', \
	data using 5:0 with points pt 13 ps 1.2 lc rgb '#c0562b' title 'p99'
