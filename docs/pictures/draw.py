"""Draws the pictures of how-it-works.md: `python docs/pictures/draw.py`. Text in, SVG out."""

from pathlib import Path

FOLDER = Path(__file__).parent
SLOPES = ("#4c72b0", "#dd8452", "#55a868")
INK = "#808080"  # legible on white and on black


def box(x, y, width, height, fill, text=""):
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="2" fill="{fill}"/>'
    return shape + (
        label(x + width / 2, y + height / 2 + 4, text, "middle", "#ffffff") if text else ""
    )


def label(x, y, text, anchor="start", colour=INK):
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def arrow(x1, y1, x2, y2):
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{INK}" marker-end="url(#head)"/>'


def save(name, width, height, parts):
    head = (
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        f'<path d="M0 0L6 3L0 6z" fill="{INK}"/></marker></defs>'
    )
    (FOLDER / name).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="13">\n'
        + "\n".join([head, *parts])
        + "\n</svg>\n",
        encoding="utf-8",
    )


def layouts():
    """Memory, left to right; a colour is a slope. Twelve or so elements of each layout."""
    rows = (
        (
            "contiguous (2, 3, 2, 2)",
            "{2, 3, 4}: planes",
            [c for _ in range(2) for c in (0, 1, 2) for _ in range(4)],
        ),
        (
            "channels-last, same shape",
            "{8, 3, 1}: columns",
            [c for _ in range(8) for c in (0, 1, 2)],
        ),
        ("one slope, any layout", "{1, 1, 24}: one plane", [0] * 24),
    )
    parts = []
    for i, (name, view, elements) in enumerate(rows):
        y = 34 + 62 * i
        parts += [label(8, y - 8, name), label(8 + 24 * 24, y - 8, view, "end")]
        parts += [box(8 + 24 * j, y, 22, 24, SLOPES[c]) for j, c in enumerate(elements)]
    save("layouts.svg", 592, 190, parts)


def sums():
    """From terms to the gradient of one slope."""
    parts = [
        label(
            8,
            20,
            "chains: lanes of vector registers, K terms one after the other, in the compute type",
        )
    ]
    for chain in range(4):
        x = 8 + 150 * chain
        parts += [box(x + 16 * k, 30, 14, 20, SLOPES[0]) for k in range(8)]
        parts += [arrow(x + 64, 52, 308 + 8 * (chain - 1.5), 84)]
    parts += [
        box(208, 86, 200, 24, SLOPES[0], "tree over four chains"),
        arrow(308, 112, 308, 134),
        box(208, 136, 200, 24, SLOPES[1], "accumulator of a task"),
        label(416, 153, "double, or a TwoSum pair"),
        arrow(308, 162, 308, 184),
        box(208, 186, 200, 24, SLOPES[1], "partial sums, in index order"),
        label(416, 203, "one row for each task"),
        arrow(308, 212, 308, 234),
        box(208, 236, 200, 24, SLOPES[2], "rounded once"),
        label(416, 253, "to the slope's dtype"),
    ]
    save("sums.svg", 620, 270, parts)


if __name__ == "__main__":
    layouts()
    sums()
