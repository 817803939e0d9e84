# Throughput by contender, two panels: on and off name the files of "stats.pl bars".
# size 1000 330
set termoption noenhanced
set multiplot
set style fill solid
set border 0
set tics nomirror scale 0
unset xtics
unset key
set yrange [*:*] reverse
set offsets 0, 0, 0.6, 0.6
set tmargin at screen 0.86
set bmargin at screen 0.04
do for [panel in "on off"] {
	file = panel eq "on" ? on : off
	stats file using 2 nooutput
	set xrange [0:STATS_max]
	set lmargin at screen (panel eq "on" ? 0.23 : 0.64)
	set rmargin at screen (panel eq "on" ? 0.51 : 0.92)
	set title 'transactions/s, synchronous_commit = '.panel
	if (panel eq "on") { set ytics textcolor rgb '#222222' } else { set format y '' }
	plot file using ($2/2):0:($2/2):(0.36):6:ytic(panel eq "on" ? stringcolumn(1) : '') with boxxyerror lc rgb variable, \
		file using 2:0:(sprintf('%.0f', $2)) with labels left offset 0.5,0 textcolor rgb '#222222'
}
unset multiplot
