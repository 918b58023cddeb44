"""What the parts share: bit comparison, the look of a table, and the list of checks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_BITS = {torch.float64: torch.int64, torch.float32: torch.int32}


def bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare the bits of two tensors: unlike `torch.equal` this tells -0 from +0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits = _BITS[a.dtype]
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def mark(ok: bool) -> str:
    """Return a yes/no cell of a table."""
    return "[green]yes[/green]" if ok else "[bold red]NO[/bold red]"


def new_table(title: str) -> Table:
    """Return an empty table, narrow enough for a small terminal."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))


@dataclass
class Checks:
    """Prints each check as it is made and remembers the ones that failed."""

    console: Console
    total: int = 0
    failed: list[str] = field(default_factory=list)

    def expect(self, ok: bool, what: str) -> bool:
        """Record one check; `what` says what has to hold."""
        self.total += 1
        if not ok:
            self.failed.append(what)
        verdict = "[green]  ok  [/green]" if ok else "[bold red]FAILED[/bold red]"
        self.console.print(f"{verdict} {escape(what)}", highlight=False)
        return ok
