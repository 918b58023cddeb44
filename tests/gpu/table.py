"""The record as plain text: what was proven, what was measured, what the targets say."""

import math

from gpu import results

MARK = {True: "yes", False: "NO", None: "-"}


def render(record):
    """All of it, for a file."""
    parts = [_head(record), _stages(record), _skips(record), _failures(record)]
    parts += [_targets(record), _rows(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(record):
    machine = record.machine
    lines = [
        "REHEARSAL on the CPU: proves the session, not the kernels" if record.rehearsal else "",
        record.gpu or "GPU unknown",
        ", ".join(
            f"{name} {machine.get(name)}" for name in ("driver", "cuda", "nvcc", "torch", "python")
        ),
        f"commit {record.commit or 'not noted'}, {', '.join(record.dates)}",
        "tests: " + ", ".join(f"{count} {name}" for name, count in record.counts.items()),
    ]
    return "\n".join(filter(None, lines))


def _stages(record):
    rows = [("stage", "result", "s", "passed", "failed", "skipped", "reason")]
    for name, stage in record.stages.items():
        counts = (str(n or "") for n in (stage.passed, len(stage.failures), stage.skipped))
        rows.append((name, stage.status, f"{stage.seconds:.0f}", *counts, stage.reason[:90]))
    return columns(rows, left=(0, 1, 6))


def _skips(record):
    lines = [
        f"  {name}: {count} × {reason[:150]}"
        for name, stage in record.stages.items()
        for reason, count in sorted(stage.skips.items())
    ]
    return "\n".join(["skipped:", *lines]) if lines else ""


def _failures(record):
    lines = [
        f"  {name}: {test}\n      {reason[:200]}"
        for name, stage in record.stages.items()
        for test, reason in stage.failures.items()
    ]
    return "\n".join(["FAILED:", *lines]) if lines else ""


def _targets(record):
    if not record.targets:
        return ""
    rows = [("target", "rows", "wanted", "mean", "worst", "held", "worst row")]
    for target in record.targets:
        rows.append(
            (
                target["what"],
                str(target["rows"]),
                target["wanted"],
                _number(target["mean"]),
                _number(target["worst"]),
                MARK[target["held"]],
                target["worst_row"],
            )
        )
    return columns(rows, left=(0, 2, 5, 6))


# ---- The benchmark's rows ------------------------------------------------------------------------


def _rows(record):
    if not record.rows:
        return ""
    head = ("layer", "MB", "fwd us", "TB/s", "of copy", "x stock", "bwd us", "TB/s", "of copy")
    head += ("x stock", "step x stock", "x compile", "warm: fwd us", "bwd us", "bwd x stock")
    head += ("kernels f/b", "stock f/b", "extra MB", "stock")
    rows = [head]
    rows += [_row(title, figures) for title, figures in record.rows.items()]
    note = (
        "cold: L2 flushed before each run; warm: runs follow each other. Device time of a replayed\n"
        "CUDA graph, medians. of copy: a copy that moves the same bytes. extra: backward's peak\n"
        "beside grad_input. TB/s: useful bytes, 2 tensors forward, 3 backward. *: not all was captured."
    )
    return columns(rows, left=(0,)) + "\n" + note


def _row(title, figures):
    size = figures["bytes"]
    otherwise = any(isinstance(part, dict) and part.get("how") for part in figures.values())
    cells = [title + " *" * bool(otherwise), f"{size / 1e6:.1f}"]
    for name, tensors in (("forward", 2), ("backward", 3)):
        cold = figures.get(name, {}).get("cold", {})
        ours = cold.get("ours")
        cells += [
            _number(ours, 1e6, 1),
            _number(tensors * size / ours / 1e12 if ours else None),
            _percent(ratio(cold, "copy")),
            _number(ratio(cold, "stock")),
        ]
    step = figures.get("step", {}).get("cold", {})
    compiled = figures.get("compiled_step", {}).get("cold", {})
    warm = {name: figures.get(name, {}).get("warm", {}) for name in ("forward", "backward")}
    cells += [_number(ratio(step, "stock")), _number(ratio(compiled, "compile"))]
    cells += [_number(warm[name].get("ours"), 1e6, 1) for name in ("forward", "backward")]
    cells += [_number(ratio(warm["backward"], "stock"))]
    kernels = figures.get("kernels", {})
    for who in ("ours", "stock"):
        counts = [kernels.get(name, {}).get(who) for name in ("forward", "backward")]
        cells.append("/".join("-" if count is None else str(count) for count in counts))
    memory = figures.get("memory", {})
    for who in ("ours", "stock"):
        peak = memory.get(who)
        cells.append(_number(None if peak is None else (peak - size) / 1e6, 1, 1))
    return tuple(cells)


def ratio(times, rival, ours="ours"):
    """How many times as fast as the rival; None if one of them was not measured."""
    if times.get(rival) is None or not times.get(ours):
        return None
    return times[rival] / times[ours]


def _number(value, scale=1, digits=2):
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value * scale:.{digits}f}"


def _percent(value):
    return "-" if value is None else f"{value:.0%}"


def columns(rows, left=()):
    """Rows of words, aligned; a line under the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            word.ljust(width) if i in left else word.rjust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def summary(record):
    """What the end of the output should say."""
    bad = [
        f"{name}: {stage.status} ({stage.reason})"
        for name, stage in record.stages.items()
        if stage.status != results.PASSED
    ]
    missed = [target["what"] for target in record.targets if target["held"] is False]
    lines = [f"tests: {', '.join(f'{count} {name}' for name, count in record.counts.items())}"]
    lines += [f"not passed: {line}" for line in bad]
    lines += [f"target missed: {what}" for what in missed]
    return "\n".join(lines)
