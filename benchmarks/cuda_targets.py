"""What the CUDA kernels are to reach, and whether measured rows do. Plain data in and out.

A row is what cuda_prelu.py measures of one case: seconds of `ours`, `stock`, `compile` and `copy`
(of a copy that moves the same bytes) for `forward`, `backward`, `step` and, in the process that also
ran torch.compile, `compiled_step`, cold and warm; kernels; backward's peak memory. What was not measured is absent; a target without rows is not judged.

The targets are for an H200. Nothing is allowed for noise: medians are compared as they are.
"""

import statistics

LARGE_BYTES = 256e6  # moved
SMALL_BYTES = 1 << 20  # of one tensor
MEMORY_BLOCK = 512  # the caching allocator's granularity

PUBLISHED = "arcface_shared 512x64x112x112 shared float16"


def judge(rows):
    """One entry a target: what, rows, wanted, mean, worst, worst_row, held (None: not measured)."""
    titled = [{"title": title, **figures} for title, figures in rows.items()]
    aligned = [row for row in titled if row["aligned"]]
    awkward = [row for row in titled if not row["aligned"] and not row.get("copies")]
    small = [row for row in titled if row["bytes"] < SMALL_BYTES]

    def large(chosen, tensors):
        return [row for row in chosen if tensors * row["bytes"] >= LARGE_BYTES]

    return [
        _at_least("forward, large, aligned: of copy", 0.97, large(aligned, 2), _of_copy("forward")),
        _at_least("forward, large, awkward: of copy", 0.92, large(awkward, 2), _of_copy("forward")),
        _at_least(
            "backward, large, aligned: of copy", 0.92, large(aligned, 3), _of_copy("backward")
        ),
        _at_least(
            "backward, large, awkward: of copy", 0.88, large(awkward, 3), _of_copy("backward")
        ),
        _at_least("backward x stock", 1.5, titled, _times("backward", "stock"), mean=4.0),
        _at_least(
            "step x torch.compile", 1.0, titled, _times("compiled_step", "compile"), mean=1.5
        ),
        _at_most("small: kernels forward", 1, small, _kernels("forward")),
        _at_most("small: kernels backward", 1, small, _kernels("backward")),
        _at_least("small, replayed: stock's forward / our backward", 1.0, small, _small_backward),
        _at_most("backward's peak / (grad_input + allowed sums)", 1.0, titled, _memory),
        _at_most(
            f"backward of {PUBLISHED}: ms",
            0.63,
            [row for row in titled if row["title"] == PUBLISHED],
            _milliseconds("backward"),
            strictly=True,
        ),
    ]


# ---- Figures of a row; None where they were not measured -----------------------------------------


def _seconds(row, what, who, how="cold"):
    return row.get(what, {}).get(how, {}).get(who)


def _ratio(numerator, denominator):
    return None if numerator is None or denominator is None else numerator / denominator


def _of_copy(what):
    return lambda row: _ratio(_seconds(row, what, "copy"), _seconds(row, what, "ours"))


def _times(what, rival):
    return lambda row: _ratio(_seconds(row, what, rival), _seconds(row, what, "ours"))


def _kernels(what):
    return lambda row: row.get("kernels", {}).get(what, {}).get("ours")


def _small_backward(row):
    return _ratio(
        _seconds(row, "forward", "stock", "warm"), _seconds(row, "backward", "ours", "warm")
    )


def _milliseconds(what):
    def figure(row):
        seconds = _seconds(row, what, "ours")
        return None if seconds is None else seconds * 1e3

    return figure


def _memory(row):
    """Partial sums may take an eighth of the input or 4 MiB (docs/design.md); nothing else may."""
    peak = row.get("memory", {}).get("ours")
    if peak is None:
        return None
    sums = max(row["bytes"] / 8 + 4 * row["slopes"], 4 << 20)
    copy = row["bytes"] if row.get("copies") else 0  # of a grad_output laid out otherwise
    return peak / (row["bytes"] + copy + sums + 4 * MEMORY_BLOCK)


# ---- Verdicts ------------------------------------------------------------------------------------


def _found(rows, figure):
    values = ((figure(row), row["title"]) for row in rows)
    return [(value, title) for value, title in values if value is not None]


def _verdict(what, wanted, found, worst, held):
    value, title = worst if found else (None, "")
    positive = found and all(figure > 0 for figure, _ in found)
    return {
        "what": what,
        "rows": len(found),
        "wanted": wanted,
        "mean": statistics.geometric_mean(figure for figure, _ in found) if positive else None,
        "worst": value,
        "worst_row": title,
        "held": held if found else None,
    }


def _at_least(what, each, rows, figure, mean=None):
    found = _found(rows, figure)
    wanted = f">= {each}" + (f", mean >= {mean}" if mean else "")
    verdict = _verdict(what, wanted, found, min(found, default=None), True)
    if found:
        verdict["held"] = verdict["worst"] >= each and (mean is None or verdict["mean"] >= mean)
    return verdict


def _at_most(what, each, rows, figure, strictly=False):
    found = _found(rows, figure)
    wanted = f"{'<' if strictly else '<='} {each}"
    verdict = _verdict(what, wanted, found, max(found, default=None), True)
    if found:
        worst = verdict["worst"]
        verdict["held"] = worst < each if strictly else worst <= each
    return verdict
