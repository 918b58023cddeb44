"""The cases of the benchmark on CUDA: those of core_cases.txt and cuda_cases.txt, made on the GPU."""

from dataclasses import dataclass
from pathlib import Path

import torch
from layer_cases import CORE_CASES, Case, _rows, _shape
from torch import Tensor

CUDA_CASES = Path(__file__).with_name("cuda_cases.txt")
VECTOR_BYTES = 16


@dataclass(frozen=True)
class CudaCase(Case):
    @property
    def slope_count(self) -> int:
        return self.shape[1] if self.slopes == "channel" else 1

    @property
    def aligned(self) -> bool:
        """Whether every run of a slope, or row of channels, begins at a 16-byte boundary."""
        if self.layout in ("misaligned", "transposed", "expanded"):
            return False
        if self.slopes == "shared":
            return True
        if self.layout == "channels_last" or len(self.shape) == 2:
            run = self.shape[1]
        else:
            run = self.numel // (self.shape[0] * self.shape[1])
        return run * self.data_dtype.itemsize % VECTOR_BYTES == 0

    @property
    def copies(self) -> bool:
        """Whether grad_output must be copied first: its elements lie elsewhere than the input's."""
        return self.layout == "expanded"

    def tensors_on(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """input, weight (both require gradients) and grad_output; of both signs, never zeros."""
        generator = torch.Generator(device).manual_seed(0)
        weight = torch.rand(self.slope_count, dtype=self.weight_dtype, device=device)
        input, grad_output = (self._values(device, generator) for _ in range(2))
        if self.layout == "expanded":
            one = grad_output.flatten()[:1]
            grad_output = one.view([1] * len(self.shape)).expand(self.shape)
        return input.requires_grad_(), weight.requires_grad_(), grad_output

    def _values(self, device: str, generator: torch.Generator) -> Tensor:
        def normal(*shape: int) -> Tensor:
            empty = torch.empty(shape, dtype=self.data_dtype, device=device)
            return empty.normal_(generator=generator)

        if self.layout == "channels_last":
            batch, channels, *space = self.shape
            return normal(batch, *space, channels).movedim(-1, 1)
        if self.layout == "transposed":
            first, *middle, last = self.shape
            return normal(last, *middle, first).transpose(0, -1)
        if self.layout == "misaligned":
            return normal(self.numel + 1)[1:].view(self.shape)
        return normal(*self.shape)


def _read(file: Path) -> list[CudaCase]:
    return [
        CudaCase(name, _shape(shape), layout, slopes, dtype)
        for name, shape, layout, slopes, dtype in _rows(file)
    ]


def target_cases() -> list[CudaCase]:
    """Large and small ones, for the targets that the others cannot be judged on."""
    return _read(CUDA_CASES)


def core_cases() -> list[CudaCase]:
    """The same rows as on the CPU."""
    return _read(CORE_CASES)
