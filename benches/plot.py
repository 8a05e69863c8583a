#!/usr/bin/env python3
"""Plots throughput against batch size as an SVG, from what the bench wrote.

    benches/plot.py target/performance.json --feast feast.json --out docs/throughput.svg

Feast's file, which may be left out, maps numbers of entities to calls per second: {"1": 450, "100": 50}.
"""

import argparse
import json
import math

WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 84, 170, 56, 62
COLOURS = {"floor: gRPC alone": "#555555", "L1 in process": "#0b6e4f", "L1 in Redis": "#c1440e", "Feast, Python": "#3056a8"}


def series(rows):
    """Name -> [(entities, calls per second)], of the plain reads of 20 features."""
    found = {}
    for row in rows:
        facts, compared = row["facts"], row.get("compared")
        plain = row["name"] == f"{facts.get('l1')} hit {facts.get('entities')}"
        if not compared or not plain:
            continue
        name = {"memory": "L1 in process", "redis": "L1 in Redis"}[facts["l1"]]
        found.setdefault(name, []).append((facts["entities"], compared["ours"]["per_second"]["median"]))
        if facts["l1"] == "memory":
            floor = (facts["entities"], compared["floor"]["per_second"]["median"])
            found.setdefault("floor: gRPC alone", []).append(floor)
    return found


def axis(low, high):
    """Whole decades around what is there."""
    return math.floor(math.log10(low)), math.ceil(math.log10(high))


def plot(lines, about):
    points = [point for line in lines.values() for point in line]
    (x0, x1), (y0, y1) = (axis(min(values), max(values)) for values in zip(*points))
    # A batch of 500 does not need the room up to 1000.
    x1 = math.log10(max(x for x, _ in points)) + 0.08

    def x(value):
        return LEFT + (math.log10(value) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(value):
        return HEIGHT - BOTTOM - (math.log10(value) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">Calls per second by entities per call</text>',
        f'<text x="{LEFT}" y="43" fill="#666">20 features; {about}</text>',
    ]
    for exponent in range(y0, y1 + 1):
        for digit in range(1, 10):
            value = digit * 10.0**exponent
            if math.log10(value) > y1 + 1e-9:
                break
            grey = "#bbb" if digit == 1 else "#eee"
            out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="{grey}"/>')
        label = f"{10**exponent:,}" if exponent >= 0 else f"{10.0**exponent:g}"
        out.append(f'<text x="{LEFT - 8}" y="{y(10.0**exponent) + 4:.1f}" text-anchor="end">{label}</text>')
    for value in sorted({point[0] for point in points}):
        out.append(f'<path d="M{x(value):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{value}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 18}" text-anchor="middle">entities per call (log)</text>')
    out.append(
        f'<text transform="translate(20 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "calls per second (log)</text>"
    )
    out.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#222"/>')
    labels = []
    for name in (name for name in COLOURS if name in lines):
        line, colour = sorted(lines[name]), COLOURS[name]
        path = " ".join(f"{x(entities):.1f},{y(rate):.1f}" for entities, rate in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        out += [f'<circle cx="{x(e):.1f}" cy="{y(r):.1f}" r="4" fill="{colour}"/>' for e, r in line]
        labels.append((y(line[-1][1]), name, colour))
    # Names at the ends of their lines, pushed apart where these meet.
    last = -math.inf
    for at, name, colour in sorted(labels):
        last = max(at, last + 18)
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{last + 4:.1f}" fill="{colour}" font-weight="bold">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", help="what the bench wrote")
    parser.add_argument("--feast", help="a JSON file: entities -> calls per second")
    parser.add_argument("--out", default="target/throughput.svg")
    args = parser.parse_args()
    with open(args.json) as file:
        performance = json.load(file)
    lines = series(performance["rows"])
    if args.feast:
        with open(args.feast) as file:
            lines["Feast, Python"] = [(int(entities), rate) for entities, rate in json.load(file).items()]
    if not lines:
        parser.error(f"{args.json} has no rows to plot: run the bench with --rows 'hit 1' --rows 'hit 500'")
    about = f"load and servers share {performance['about']['cores']} cores"
    with open(args.out, "w") as file:
        file.write(plot(lines, about))
    print(args.out)


if __name__ == "__main__":
    main()
