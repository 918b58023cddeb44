"""Values of the activation worked out by hand, as a check that a reader can follow."""

from __future__ import annotations

import torch
from report import Checks

import torch_ext


def check_worked_values(checks: Checks) -> None:
    """Compare the operator with the values worked out by hand: numerically, so that -0 equals 0."""

    def numbers(values: list[float]) -> str:
        return ", ".join(f"{v + 0.0:g}" for v in values)  # + 0.0 shows -0 as 0

    cases = [
        (0.0, [-2.0, 0.5, 3.0], [0.0, 0.5, 3.0]),
        (0.0, [-1.5, 0.0, 2.5], [0.0, 0.0, 2.5]),
        (0.0, [-0.5, 1.2, -3.7, 4.0], [0.0, 1.2, 0.0, 4.0]),
        (0.01, [-19.0], [-0.19]),
    ]
    for slope, given, expected in cases:
        y = torch_ext.prelu(torch.tensor(given), torch.tensor([slope]))
        ok = torch.equal(y, torch.tensor(expected))
        checks.expect(ok, f"slope {slope:g}: {numbers(given)} → {numbers(y.tolist())}")
    given = [0.8, -1.0, 3.2]
    x = torch.tensor(given, requires_grad=True)
    torch_ext.prelu(x, torch.tensor([0.0])).sum().backward()
    ok = torch.equal(x.grad, torch.tensor([1.0, 0.0, 1.0]))
    checks.expect(ok, f"slope 0: derivative at {numbers(given)} → {numbers(x.grad.tolist())}")
    checks.console.print(
        "(0 · −2 is −0 in IEEE arithmetic, which equals 0 and is shown as 0 here.)"
    )
