#!/usr/bin/env python3
"""Ask Prometheus for everything that the Grafana dashboard shows: dashboard.py DASHBOARD URL [--datname REGEX] [--page FILE --seconds N]

Prints a line for each expression: "data" or "nothing", the panel's title, the expression. With --page it also draws the panels as
Grafana would lay them out, over the last N seconds, as a page of HTML.
"""

import argparse
import html
import json
import math
import time
import urllib.parse
import urllib.request

COLORS = ("#3274d9", "#e0752d", "#37872d", "#8f3bb8", "#c4162a")
GREEN, RED = "#37872d", "#c4162a"
CELL_X, CELL_Y, GAP, TOP = 50, 30, 6, 34


def ask(url, what, **parameters):
    with urllib.request.urlopen(f"{url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=20) as reply:
        return json.load(reply)["data"]["result"]


def fill_in(expression, options):
    """Replace the variables of Grafana."""
    for variable, value in (("$datname", options.datname), ("$__rate_interval", options.rate), ("$__range", f"{options.seconds}s")):
        expression = expression.replace(variable, value)
    return expression


# --- drawing ---

def show(value, unit, largest=None):
    """A figure with its unit; all those of an axis in the unit of the largest."""
    largest = value if largest is None else largest
    if unit == "s":
        size, name = next(u for u in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if largest >= 2 * u[0] or u[0] == 1)
        return f"{number(value / size, 0 if size == 1 and largest >= 2 else 1)} {name}"
    if unit == "bytes":
        power = min(int(math.log(max(largest, 1), 1024)), 3)
        return f"{number(value / 1024 ** power, 1)} {('B', 'KiB', 'MiB', 'GiB')[power]}"
    return number(value, 2) + (" /s" if unit == "ops" else "")


def number(value, digits):
    return f"{value:,.0f}" if value >= 100 or digits == 0 else f"{value:.{digits}f}".rstrip("0").rstrip(".")


def steps(high, unit):
    """The distance between an axis' lines, at most five of them, and how many there are."""
    high = max(high, 1 if unit == "short" else 0.1)
    if unit == "s":
        sizes = [1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400]
    else:
        base = 1024 if unit == "bytes" else 10
        sizes = [n * base ** power for power in range(-1, 12) for n in ((1, 2, 5) if base == 10 else (1, 2, 5, 10, 20, 50, 100, 200, 500))]
    if unit == "short":
        sizes = [n for n in sizes if n >= 1]
    size = next(n for n in sizes if math.ceil(high / n) <= 5)
    return size, math.ceil(high / size)


def minutes(span):
    """The times to write below an axis: whole minutes, at most six."""
    every = next(n * 60 for n in (1, 2, 5, 10, 30, 60, 180, 1440) if (span[1] - span[0]) / (n * 60) <= 6)
    return range(math.ceil(span[0] / every) * every, int(span[1]) + 1, every)


def text(x, y, content, size=11, color="#666", anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{html.escape(content)}</text>")


def line(points, x, y, color):
    """A line for each stretch without gap, and what it covers."""
    marks = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
    first, last = x(points[0][0]), x(points[-1][0])
    return (f'<polygon points="{first:.1f},{y(0):.1f} {marks} {last:.1f},{y(0):.1f}" fill="{color}" fill-opacity="0.09"/>'
            f'<polyline points="{marks}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round"/>')


def draw_stat(panel, data, width, height, _span):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    value = data[0][1][-1][1] if data else math.nan
    limit = panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
    return text(width / 2, height * 0.72, "No data" if math.isnan(value) else show(value, unit), 30,
                RED if value >= limit else GREEN, "middle", "600")


def draw_series(panel, data, width, height, span):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    left, right, top, bottom = 58, width - 12, 32, height - 42
    step, count = steps(max([v for _, points in data for _, v in points], default=0), unit)

    def x(at):
        return left + (at - span[0]) / (span[1] - span[0]) * (right - left)

    def y(value):
        return bottom - value / (step * count) * (bottom - top)

    parts = []
    for n in range(count + 1):
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y(n * step):.1f}" y2="{y(n * step):.1f}" stroke="#e6e6e6"/>')
        parts.append(text(left - 6, y(n * step) + 4, show(n * step, unit, count * step), anchor="end"))
    parts += [text(x(at), bottom + 15, time.strftime("%H:%M", time.gmtime(at)), 10, "#888", "middle") for at in minutes(span)]
    parts += [line(points, x, y, COLORS[i % len(COLORS)]) for i, (_, points) in enumerate(data) if points]
    at = 12
    for i, (name, _) in enumerate(data):
        parts.append(f'<rect x="{at:.1f}" y="{height - 17}" width="12" height="4" rx="2" fill="{COLORS[i % len(COLORS)]}"/>')
        parts.append(text(at + 17, height - 11, name))
        at += 17 + 6.8 * len(name) + 10
    return "".join(parts)


def draw(panel, data, span):
    place = panel["gridPos"]
    width, height = place["w"] * CELL_X - GAP, place["h"] * CELL_Y - GAP
    body = (draw_stat if panel["type"] == "stat" else draw_series)(panel, data, width, height, span)
    return (f'<svg x="{place["x"] * CELL_X + GAP}" y="{place["y"] * CELL_Y + GAP + TOP}" width="{width}" height="{height}">'
            f'<rect width="{width}" height="{height}" rx="3" fill="#fff" stroke="#ddd"/>'
            f'{text(10, 20, panel["title"], 13, "#222", weight="600")}{body}</svg>')


def page(dashboard, options):
    end = time.time()
    span = (end - options.seconds, end)
    parts = []
    for panel in dashboard["panels"]:
        data = []
        for target in panel["targets"]:
            result = ask(options.url, "query_range", query=fill_in(target["expr"], options),
                         start=span[0], end=end, step=max(options.seconds // 150, 1))
            points = [(float(t), float(v)) for t, v in result[0]["values"]] if result else []
            data.append((target["legendFormat"], [p for p in points if not math.isnan(p[1])]))
        parts.append(draw(panel, data, span))
    width = 24 * CELL_X + GAP
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"]) * CELL_Y + GAP + TOP
    parts.append(text(GAP + 10, 25, dashboard["title"], 16, "#222", weight="600"))
    parts.append(text(width - GAP - 10, 25, f"Database: {options.datname} · last {options.seconds // 60} minutes", 12, "#444", "end"))
    return (f'<!DOCTYPE html><meta charset="utf-8"><title>{html.escape(dashboard["title"])}</title><style>body {{ margin: 0 }}</style>'
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="background: #f4f5f5" '
            f'font-family="DejaVu Sans, sans-serif">{"".join(parts)}</svg>')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dashboard")
    parser.add_argument("url")
    parser.add_argument("--datname", default=".*")
    parser.add_argument("--rate", default="15s")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--page")
    options = parser.parse_args()
    with open(options.dashboard, encoding="utf-8") as file:
        dashboard = json.load(file)
    shown = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    for title, expression in shown + [(a["name"], a["expr"]) for a in dashboard["annotations"]["list"]]:
        found = ask(options.url, "query", query=fill_in(expression, options))
        print("data" if found else "nothing", title, expression, sep="\t")
    if options.page:
        with open(options.page, "w", encoding="utf-8") as file:
            file.write(page(dashboard, options))


if __name__ == "__main__":
    main()
