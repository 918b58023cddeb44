"""SwapReport: what a swap did to the modules of a model, printable as a table."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from torch_ext._norm_calls import KNOWN

__all__ = ["SwapReport"]

# Longer tables show modules whose names differ only in numbers as one row.
_ROWS = 20


class _Row(NamedTuple):
    module: str
    result: str
    cls: str
    reason: str


@dataclass
class SwapReport:
    """What a swap did, by module name ("" is the model itself); ``print`` shows it as a table.

    In a table of more than 20 rows, modules with equal entries whose names differ only in numbers
    share a row, ``layers.*.act (48)``. The attributes have every name.

    Attributes:
        swapped: modules whose class was exchanged.
        skipped: modules that were left alone, each with the reason.
        notes: further information, each with the name of the module that it is about.
        classes: the class of a module before and after, as the table shows it.
    """

    swapped: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        counts = f"{len(self.swapped)} swapped, {len(self.skipped)} skipped"
        if self.notes:
            counts += f", {len(self.notes)} note{'s' if len(self.notes) > 1 else ''}"
        rows = [self._row(name, "swapped", "") for name in self.swapped]
        rows += [self._row(name, "skipped", reason) for name, reason in self.skipped]
        rows += [self._row(name, "note", reason)._replace(cls="") for name, reason in self.notes]
        if not rows:
            return counts
        return "\n".join([counts, *_table(_folded(rows) if len(rows) > _ROWS else rows)])

    def _row(self, name: str, result: str, reason: str) -> _Row:
        return _Row(name or "(root)", result, self.classes.get(name, ""), reason)

    def _skip(self, name: str, module: nn.Module, reason: str) -> None:
        self.skipped.append((name, reason))
        self.classes[name] = _class_name(module)

    def _swap(self, name: str, module: nn.Module, cls: type) -> None:
        """Exchanges the class of a module."""
        before = _class_name(module)
        vars(module).pop(
            "forward", None
        )  # that of the class itself, bound; it would still be called
        # Not by a __setattr__ of the module's own, which might raise half-way through a model.
        object.__setattr__(module, "__class__", cls)
        self.swapped.append(name)
        self.classes[name] = f"{before} -> {_class_name(module)}"


def _class_name(module: nn.Module) -> str:
    """The name as one would write it; classes of torch and torch_ext by the short names of their
    documentation."""
    if isinstance(module, torch.jit.ScriptModule):
        return "ScriptModule"
    cls = parametrize.type_before_parametrizations(module)
    name: str = cls.__qualname__.rpartition("<locals>.")[2]
    if hasattr(cls, KNOWN):  # what fuse_norm_prelu makes of a norm
        name += ", fused"
    package: str = cls.__module__.partition(".")[0]
    if cls.__module__.startswith("torch.nn.modules."):
        return f"nn.{name}"
    if cls.__module__.startswith("torch_ext."):
        return f"torch_ext.{name}"
    written = name if package == "__main__" else f"{cls.__module__}.{name}"
    made_here = len(cls.__bases__) > 1 and cls.__bases__[-1].__module__ == "torch_ext.prelu"
    return f"{written}, torch_ext.PReLU" if made_here else written


def _folded(rows: list[_Row]) -> list[_Row]:
    groups: dict[_Row, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row._replace(module=re.sub(r"\d+", "*", row.module)), []).append(row)
    return [
        alike[0] if len(alike) == 1 else pattern._replace(module=f"{pattern.module} ({len(alike)})")
        for pattern, alike in groups.items()
    ]


def _table(rows: list[_Row]) -> list[str]:
    """Columns as wide as necessary; empty columns are left out."""
    columns = zip(("module", "result", "class", "reason"), *rows, strict=True)
    shown = [column for column in columns if any(column[1:])]
    widths = [max(map(len, column)) for column in shown]
    return [
        "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip()
        for line in zip(*shown)
    ]
