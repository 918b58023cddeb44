"""The benchmark's cases: plain text files of layers, and the tensors of each."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CORE_CASES = Path(__file__).with_name("core_cases.txt")
ALL_CASES = Path(__file__).with_name("all_cases.txt")
DTYPES = ("float32", "bfloat16", "float16", "bfloat16/float32")


@dataclass(frozen=True)
class Case:
    """One layer. What the words mean stands in core_cases.txt."""

    name: str
    shape: tuple[int, ...]
    layout: str
    slopes: str
    dtype: str

    @property
    def title(self) -> str:
        shape = "x".join(map(str, self.shape))
        layout = "" if self.layout == "contiguous" else f" {self.layout}"
        return f"{self.name} {shape}{layout} {self.slopes} {self.dtype}"

    @property
    def data_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype.partition("/")[0])

    @property
    def weight_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype.rpartition("/")[2])

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of one tensor of the data."""
        return self.numel * self.data_dtype.itemsize

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """input, weight (both require gradients) and grad_output."""
        torch.manual_seed(0)
        channels = self.shape[1] if self.slopes == "channel" else 1
        weight = torch.rand(channels, dtype=self.weight_dtype)
        grad_output = self._random()
        if self.layout == "expanded":
            grad_output = grad_output.flatten()[:1].view([1] * len(self.shape)).expand(self.shape)
        return self._random().requires_grad_(), weight.requires_grad_(), grad_output

    def _random(self) -> Tensor:
        if self.layout == "channels_last":
            batch, channels, *space = self.shape
            dense = torch.randn(batch, *space, channels, dtype=self.data_dtype)
            return dense.movedim(-1, 1)
        if self.layout == "misaligned":
            return torch.randn(self.numel + 1, dtype=self.data_dtype)[1:].view(self.shape)
        return torch.randn(self.shape, dtype=self.data_dtype)


def core_cases() -> list[Case]:
    """The rows that performance is judged on."""
    return cases_of(CORE_CASES)


def cases_of(file: Path) -> list[Case]:
    """The rows of a file: name, shape, layout, slopes, dtype."""
    return [
        Case(name, _shape(shape), layout, slopes, dtype)
        for name, shape, layout, slopes, dtype in _rows(file)
    ]


def all_cases() -> list[Case]:
    """Every family in every layout, with every kind of slope, in every dtype."""
    return [
        Case(name, _shape(shape), layout, slopes, dtype)
        for name, shape, layouts, kinds in _rows(ALL_CASES)
        for layout, slopes, dtype in itertools.product(layouts.split(","), kinds.split(","), DTYPES)
    ]


def _rows(file: Path) -> Iterator[list[str]]:
    for line in file.read_text().splitlines():
        if words := line.partition("#")[0].split():
            yield words


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))
