"""Observes ReLU, Leaky ReLU and PReLU modules of a model while it trains: which inputs are positive,
which units are silent, what happens to slopes and gradients.

This file hooks into the model; monitor_row.py counts; monitor_layer.py defines the figures;
monitor_report.py presents them.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.activation import PReLU as PyTorchPReLU
from typing_extensions import Self

from torch_ext._modules import check_filter_fn, check_model
from torch_ext.monitor_layer import GradientNorm, LayerStatistics
from torch_ext.monitor_report import ActivationReport
from torch_ext.monitor_row import Row

__all__ = ["ActivationMonitor"]

_RECTIFIERS = (PyTorchPReLU, nn.ReLU, nn.LeakyReLU)
_State: TypeAlias = tuple[int, int | None]  # of a tensor: see _state


class ActivationMonitor:
    """Collects statistics of the inputs of a model's activations, per layer and channel.

    Hooks see each forward of a layer in training mode (a *step* of that layer) and its backward:

    - the share of non-positive inputs (NaN is not positive);
    - silent units: units without a positive input in the last ``window`` observed steps. A silent
      unit with slope 0 is dead: output and gradient are 0, so it cannot recover. A unit is a
      channel; a 2-D input has one per feature, even if they all share one slope;
    - sparsity: the share of zero outputs where the slope is 0, for finite inputs;
    - slopes, and how far they have moved since the monitor was created;
    - the L2 norm of the gradient at the layer's output and at its input, which includes the factor
      of a ``GradScaler``. Norms that are not finite are counted separately.

    Sums stay on the device of the data: a step does not wait for a GPU, only the report does. No
    graph, activation or gradient is kept. ``state_dict()`` does not change; copies and pickles of
    the model are not monitored and do not need torch_ext.

    A module that is called several times in one forward of ``model`` has a row for each call. (After
    a KeyboardInterrupt within a forward, which no hook is told of, the calls of single layers are
    numbered on from there, until the next forward of ``model``.)
    A forward that is repeated in the backward (activation checkpointing) is not counted again. With
    ``use_reentrant=True`` it is not known which of several calls it repeats: their gradients are
    left out, unless only one of them has this number of channels.

    Under DDP the figures are those of one process; :meth:`all_reduce` combines them. Compiled models
    must be monitored before they are first called; each hook then breaks the graph, so
    ``fullgraph=True`` is refused. Before ``torch.jit.script`` the monitor has to be closed.
    Functional uses (``F.relu``), replicas of ``nn.DataParallel``, CUDA graphs, transforms of
    ``torch.func`` and sharded parameters (FSDP) are not covered.

    Args:
        model: searched with all its submodules, itself included.
        layers: the classes to monitor. Slopes, dead units and sparsity are available for PReLU,
            ReLU, Leaky ReLU and ReLU6, the other figures for any class whose first input is a
            tensor.
        filter_fn: ``filter_fn(module, name)`` is asked about each of them; a false answer leaves
            that module alone.
        window: how many observed steps without a positive input make a unit silent.
        every: observe one step in this many, beginning with the first.
        channel_dim: the dimension of the channels; -1 for transformers' (N, L, C). For a PReLU with
            a slope per channel it is always 1. Inputs with fewer than two dimensions are one unit.
            An input with another number of channels gets another row.

    Raises:
        TypeError: if an argument is not of its type.
        ValueError: if ``window`` or ``every`` is less than 1, or there is nothing to monitor.

    Example::

        >>> with torch_ext.ActivationMonitor(model) as monitor:
        ...     train(model)
        >>> print(monitor.summary())
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: type[nn.Module] | tuple[type[nn.Module], ...] = _RECTIFIERS,
        filter_fn: Callable[[nn.Module, str], bool] | None = None,
        window: int = 100,
        every: int = 1,
        channel_dim: int = 1,
    ) -> None:
        _check_arguments(model, layers, filter_fn, window, every, channel_dim)
        self.window = window
        self.every = every
        self.channel_dim = channel_dim
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, layers) and (filter_fn is None or filter_fn(module, name))
        }
        if not self._modules:
            raise ValueError(
                "nothing to monitor: the model has no module of these classes that filter_fn "
                "accepts (functional uses such as F.relu(x) cannot be seen)"
            )
        self._start_slopes = {name: _slope_copy(each) for name, each in self._modules.items()}
        self._rows: dict[tuple[str, int, int], Row] = {}
        # For the call that is running: its row, and the state of its input before the call.
        self._current: dict[str, tuple[Row, _State] | None] = {}
        # How often each module was called in the running forward of the model; None outside one.
        self._calls: dict[str, int] | None = None
        self._handles = self._attach(model)

    def _attach(self, model: nn.Module) -> list[Any]:
        """The hooks of the model enclose those of the layers, also if the model is a layer itself."""
        handles = [model.register_forward_pre_hook(_hook(self._begin, model))]
        for name, module in self._modules.items():
            before = _hook(functools.partial(self._before, name), module)
            after = _hook(functools.partial(self._after, name), module)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        # Called also if the forward raises; else calls of single layers would be numbered on from there.
        end = _hook(self._end, model)
        handles.append(model.register_forward_hook(end, always_call=True))
        return handles

    # ---- Hooks -----------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, *_: Any) -> None:
        self._calls = {}

    def _end(self, module: nn.Module, *_: Any) -> None:
        self._calls = None

    def _before(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Counts the input, before the forward can overwrite it."""
        self._current[name] = None
        input = next(iter((*args, *kwargs.values())), None)
        if not module.training or not _is_countable(input):
            return
        row = self._row_of_call(name, module, input)
        self._current[name] = None if row is None else (row, _state(input))

    def _row_of_call(self, name: str, module: nn.Module, input: Tensor) -> Row | None:
        """The row of a call; adds the call to it, unless a backward repeats it."""
        dim = self._dim_of_channels(module, input)
        channels = 1 if dim is None else input.size(dim)
        if torch._C._current_graph_task_id() != -1:  # inside a backward
            return self._only_row(name, channels)
        call = 1
        if self._calls is not None:
            call = self._calls[name] = self._calls.get(name, 0) + 1
        row = self._rows.get((name, call, channels))
        if row is not None and row.seen % self.every != 0:
            row.sampled = False
        else:
            # A tensor that is created under the caller's inference_mode could not be added to outside.
            with torch.inference_mode(False), torch.no_grad():
                if row is None:
                    row = self._rows[name, call, channels] = Row(channels, input.device)
                row.count(input, dim, _slope(module))
            row.sampled = True
        row.seen += 1
        return row

    def _only_row(self, name: str, channels: int) -> Row | None:
        """None if it could be one of several: segments are repeated in another order than called."""
        rows = [row for key, row in self._rows.items() if (key[0], key[2]) == (name, channels)]
        return rows[0] if len(rows) == 1 else None

    def _after(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any
    ) -> None:
        """Reads the gradients at both ends of the layer, by a hook on its graph node.

        A full backward hook would forbid ``inplace=True``, and a hook on the input would get the sum
        over all uses of the input, such as a residual connection.
        """
        row, state = self._current.pop(name, None) or (None, None)
        if row is None or not row.sampled or not isinstance(output, Tensor):
            return
        node = output.grad_fn
        if node is None:
            return
        input = next(iter((*args, *kwargs.values())))
        # If the input itself was returned, its node belongs to another layer.
        unchanged = output is input and _state(input) == state
        place = None if unchanged else _place_of_input(node, input, output)
        node.register_hook(functools.partial(row.add_gradients, output.output_nr, place, unchanged))

    def _dim_of_channels(self, module: nn.Module, input: Tensor) -> int | None:
        if input.dim() < 2:
            return None
        if isinstance(module, PyTorchPReLU) and module.weight.numel() > 1:
            return 1
        return self.channel_dim if -input.dim() <= self.channel_dim < input.dim() else None

    # ---- Results ---------------------------------------------------------------------------------

    def report(self) -> ActivationReport:
        """The figures so far, as a separate object; waits for the device."""
        order = {name: place for place, name in enumerate(self._modules)}
        rows = sorted(self._rows.items(), key=lambda item: (order[item[0][0]], *item[0][1:]))
        return ActivationReport(
            [self._statistics(name, call, row) for (name, call, _), row in rows if row.observed],
            not_called=[name for name in self._modules if name not in {k[0] for k in self._rows}],
            window=self.window,
            every=self.every,
        )

    def all_reduce(self, group: Any = None) -> ActivationReport:
        """The figures of all processes of a ``torch.distributed`` group together.

        Every process of the group must call it, and each gets the same report. Shares and norms are
        over all processes, and a unit is silent if it is silent in every one. The monitors
        themselves continue with the figures of their own process.
        """
        reports: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(reports, self.report(), group)
        return ActivationReport.joined(reports)

    def summary(self) -> str:
        """A table with one line per layer; see :class:`~torch_ext.monitor_report.ActivationReport`."""
        return self.report().summary()

    def to_dict(self) -> dict[str, Any]:
        """Everything, for ``json.dumps``: the report's ``to_dict()``."""
        return self.report().to_dict()

    def write(self, writer: Any, step: int, prefix: str = "activations") -> None:
        """Scalars and histograms to a TensorBoard ``SummaryWriter``."""
        self.report().write(writer, step, prefix)

    def plot(self, path: Any = None) -> Any:
        """A matplotlib ``Figure``, saved to ``path`` if given; needs ``torch_ext[plot]``."""
        return self.report().plot(path)

    def reset(self) -> None:
        """Starts shares and norms anew, for example for the figures of an epoch.

        The count of steps without a positive input and the initial values of slopes are kept.
        """
        for row in self._rows.values():
            row.reset()

    def close(self) -> None:
        """Removes the hooks from the model; the figures so far can still be read."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _statistics(self, name: str, call: int, row: Row) -> LayerStatistics:
        module = self._modules[name]
        fixed, others = row.positive.long().cpu()
        zero_slope, zero_slope_positive = row.zero_slope.long().cpu()
        (out_sum, in_sum), (out_finite, in_finite) = row.norms.tolist()
        return LayerStatistics(
            name=name,
            call=call,
            kind=type(module).__name__,
            window=self.window,
            steps=row.steps,
            observed=row.observed,
            elements=row.elements,
            positive=fixed + others,
            silent_steps=row.observed - row.last_positive.cpu(),
            zero_slope=zero_slope + row.fixed_zero,
            zero_slope_positive=zero_slope_positive + fixed,
            slope=_per_channel(_slope_copy(module), fixed.numel()),
            start_slope=_per_channel(self._start_slopes[name], fixed.numel()),
            grad_output=_gradient_norm(out_sum, out_finite, row.gradients[0]),
            grad_input=_gradient_norm(in_sum, in_finite, row.gradients[1]),
        )


class _Hook(functools.partial[None]):
    """A hook that is not copied with its module.

    Copies and pickles of the module get a hook that does nothing. It comes from the standard
    library, so that they can be loaded without torch_ext.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")

    @property
    def __name__(self) -> str:
        """Read by torch.jit.script before it compiles the hook."""
        raise AttributeError(
            "torch_ext.ActivationMonitor counts in Python, which torch.jit.script cannot compile: "
            "close() the monitor first"
        )


def _hook(function: Callable[..., None], watched: nn.Module) -> _Hook:
    def hook(module: nn.Module, *arguments: Any) -> None:
        if module is watched:  # otherwise it is a replica, which shares the hooks
            function(module, *arguments)

    # Dynamo would trace the counting, and would guard on numbers that change at every step.
    disable: Any = torch.compiler.disable
    reason = (
        "torch_ext.ActivationMonitor counts outside the graph: "
        "compile with fullgraph=False, or close() the monitor"
    )
    return _Hook(disable(hook, reason=reason))


def _check_arguments(
    model: object, layers: object, filter_fn: object, window: object, every: object, dim: object
) -> None:
    check_model(model)
    classes = layers if isinstance(layers, tuple) else (layers,)
    if not all(isinstance(cls, type) and issubclass(cls, nn.Module) for cls in classes):
        raise TypeError(f"layers must be subclasses of torch.nn.Module, got {layers!r}")
    check_filter_fn(filter_fn)
    for name, value in (("window", window), ("every", every), ("channel_dim", dim)):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 1 and name != "channel_dim":
            raise ValueError(f"{name} must be at least 1, got {value}")


def _is_countable(input: object) -> TypeGuard[Tensor]:
    """Dense values, not the placeholders with which export, tracing and torch.func call a model."""
    return (
        _is_plain(input)
        and not torch._C._is_tracing()
        and input.layout == torch.strided
        and input.numel() > 0
        and not input.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(input)
    )


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """A tensor that is no subclass: fake and distributed tensors do not hold the values."""
    return type(value) in (Tensor, nn.Parameter)


def _slope(module: nn.Module) -> Tensor | float | None:
    """The factor by which the module multiplies non-positive inputs, if known."""
    if isinstance(module, PyTorchPReLU):
        return module.weight if _is_plain(module.weight) else None
    forward = type(module).forward
    if forward is nn.LeakyReLU.forward:
        return float(module.negative_slope)  # type: ignore[arg-type]
    return 0.0 if forward is nn.ReLU.forward or isinstance(module, nn.ReLU6) else None


def _slope_copy(module: nn.Module) -> Tensor | None:
    slope = _slope(module)
    if slope is None:
        return None
    if isinstance(slope, Tensor):
        return slope.detach().to("cpu", torch.float64, copy=True).reshape(-1)
    return torch.tensor([slope], dtype=torch.float64, device="cpu")


def _per_channel(slope: Tensor | None, channels: int) -> Tensor | None:
    return slope.expand(channels) if slope is not None and slope.numel() in (1, channels) else None


def _gradient_norm(total: float, finite: float, count: int) -> GradientNorm:
    return GradientNorm(total, round(finite), count - round(finite))


def _state(input: Tensor) -> _State:
    """Identifies the tensor and how often it was written to, which inference tensors do not count."""
    return id(input), None if input.is_inference() else input._version


def _place_of_input(node: Any, input: Tensor, output: Tensor) -> int | None:
    """Which gradient of a graph node belongs to the input of the module that created the node."""
    if not input.requires_grad:
        return None
    if output is input:  # inplace=True; the node of a view is not that of the operation
        return None if output._is_view() or len(node.next_functions) != 1 else 0
    edge = get_gradient_edge(input)
    for place, (next_node, number) in enumerate(node.next_functions):
        if next_node is not None and next_node.name() == "ToCopyBackward0":  # autocast's
            next_node, number = next_node.next_functions[0]
        if next_node is edge.node and number == edge.output_nr:
            return place
    return None  # a forward of several operations
