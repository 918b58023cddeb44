"""The picture of part 1: the photograph with the boxes and landmarks of both detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

# nn.PReLU is drawn wide and light, ours thin and dark on top: where they agree, the line has a rim.
STYLES = {
    "nn.PReLU": {"color": "#ffd43b", "width": 6.0, "marker": 13.0},
    "torch_ext.PReLU": {"color": "#c2255c", "width": 1.8, "marker": 6.0},
}


def _draw(
    axes: Axes, detections: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], scale: float
) -> None:
    for name, (boxes, _, landmarks) in detections.items():
        style = STYLES[name]
        for (left, top, right, bottom), points in zip(boxes, landmarks, strict=True):
            axes.add_patch(
                Rectangle(
                    (left, top),
                    right - left,
                    bottom - top,
                    fill=False,
                    edgecolor=style["color"],
                    linewidth=style["width"] * scale,
                )
            )
            axes.plot(*points.T, "o", color=style["color"], markersize=style["marker"] * scale)
    axes.set_xticks([])
    axes.set_yticks([])


def save_figure(
    photo: np.ndarray,
    pytorch: tuple[np.ndarray, np.ndarray, np.ndarray],
    ours: tuple[np.ndarray, np.ndarray, np.ndarray],
    path: Path,
) -> Path:
    """Draw the whole photograph and the first face enlarged; return the path written."""
    detections = dict(zip(STYLES, (pytorch, ours), strict=True))
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    whole, close = figure.subplots(1, 2)
    for axes, scale in ((whole, 0.6), (close, 1.0)):
        axes.imshow(photo)
        _draw(axes, detections, scale)
    whole.set_title(
        f"the whole photograph: {len(ours[0])} face{'s' if len(ours[0]) != 1 else ''} found"
    )
    if len(ours[0]):
        left, top, right, bottom = ours[0][0]
        reach = 0.7 * max(right - left, bottom - top)  # a square view with the box in the middle
        close.set_xlim((left + right) / 2 - reach, (left + right) / 2 + reach)
        close.set_ylim((top + bottom) / 2 + reach, (top + bottom) / 2 - reach)
        close.set_title(f"box and landmarks enlarged: probability {ours[1][0]:.6f}")
        handles = [
            Line2D(
                [],
                [],
                color=s["color"],
                linewidth=s["width"],
                marker="o",
                markersize=s["marker"],
                label=n,
            )
            for n, s in STYLES.items()
        ]
        close.legend(handles=handles, loc="lower right", framealpha=0.9)
    same = all(np.array_equal(a, b) for a, b in zip(pytorch, ours, strict=True))
    verdict = "identical boxes, probabilities and landmarks" if same else "results DIFFER"
    figure.suptitle(
        f"MTCNN with its trained weights, nn.PReLU and torch_ext: {verdict}", fontsize=14
    )
    figure.savefig(path, dpi=110)
    return path
