"""What is done to the graphs that Dynamo records: a norm and the PReLU after it become one operator, or two.

Autograd has not derived a backward yet, so each is one call with all its arguments. Whether both are one
operator is decided by :func:`torch_ext.inductor.norm_as_one`. Where they are not, a call of
``batch_norm_prelu`` or ``instance_norm_prelu`` becomes PyTorch's norm, for which Inductor has formulas,
and our PReLU, for which :mod:`torch_ext._inductor_pass` has them.
"""

import inspect
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.nn import functional as F

from torch_ext import inductor
from torch_ext._norm_calls import DROPOUTS, does_nothing
from torch_ext.norms import batch_norm_prelu, instance_norm_prelu

ops = torch.ops.torch_ext
PRELU = (ops.prelu, ops.prelu.default)
FUSED: dict[Any, Any] = {
    F.batch_norm: ops.batch_norm_prelu,
    F.instance_norm: ops.instance_norm_prelu,
}
APART: dict[Any, Any] = {
    each: norm for norm, ours in FUSED.items() for each in (ours, ours.default)
}
SIGNATURES = {
    F.batch_norm: inspect.signature(batch_norm_prelu),
    F.instance_norm: inspect.signature(instance_norm_prelu),
}
# What writes its result to memory in any case. (At this stage functions have their names in torch.)
KERNELS = {
    *("conv1d", "conv2d", "conv3d", "linear", "matmul", "bmm", "addmm"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}


class Arguments(NamedTuple):
    """Of batch_norm_prelu and instance_norm_prelu, as nodes or constants."""

    input: Node
    slope: Node
    running_mean: Any
    running_var: Any
    weight: Any
    bias: Any
    from_input: Any  # whether the statistics are the input's
    momentum: Any
    eps: Any

    @classmethod
    def of(cls, norm: Any, args: Any, kwargs: Any) -> "Arguments":
        given = SIGNATURES[norm].bind(*args, **kwargs)
        given.apply_defaults()
        return cls(*given.arguments.values())


def change(graph: Graph) -> None:
    """Fuses pairs and takes calls apart, as the policy says."""
    policy = inductor.compile_policy()
    if policy == "auto":
        for prelu in found(graph, *PRELU):
            fuse_if_better(graph, prelu)
    if policy != "opaque":
        for call in found(graph, *APART):
            norm = APART[call.target]
            arguments = Arguments.of(norm, call.args, call.kwargs)
            if policy == "decompose" or not stays_one(arguments, call):
                take_apart(graph, call, norm, arguments)


def found(graph: Graph, *targets: Any) -> list[Node]:
    return [node for each in targets for node in graph.find_nodes(op="call_function", target=each)]


def value(argument: Any) -> Any:
    """The fake tensor that stands for a node's result; anything else as it is."""
    return argument.meta.get("example_value") if isinstance(argument, Node) else argument


def stays_one(arguments: Arguments, result: Node) -> bool:
    """Where nothing is known of the values, a call stays what it is."""
    x, y = value(arguments.input), value(result)
    return is_in_memory(arguments.input) and (
        x is None
        or y is None
        or inductor.norm_as_one(x, bool(arguments.from_input), y.requires_grad)
    )


def is_in_memory(node: Node) -> bool:
    return not node.op.startswith("call") or getattr(node.target, "__name__", "") in KERNELS


# ---- Two calls to one ----------------------------------------------------------------------------


def fuse_if_better(graph: Graph, prelu: Node) -> None:
    calls = calls_back_to_norm(prelu)
    if calls is None:
        return
    norm = calls[-1]
    arguments = arguments_of(norm, prelu)
    if not stays_one(arguments, prelu) or not computes_the_same(norm.target, arguments, prelu):
        return
    with graph.inserting_before(prelu):
        fused = graph.call_function(FUSED[norm.target], tuple(arguments))
    fused.meta = {**prelu.meta}
    prelu.replace_all_uses_with(fused)
    for call in calls:
        graph.erase_node(call)


def calls_back_to_norm(prelu: Node) -> list[Node] | None:
    """A PReLU's call, of dropouts that do nothing, and of the norm, if nothing else uses their results or
    happens in between: changes what they read, or switches gradients or autocast."""
    calls = [prelu]
    while calls[-1].target not in FUSED:
        input = first_argument(calls[-1])
        if input is not call_before(calls[-1]) or len(input.users) != 1:
            return None
        if input.target not in FUSED and not is_inactive_dropout(input):
            return None
        calls.append(input)
    return calls


def first_argument(call: Node) -> Any:
    return call.args[0] if call.args else call.kwargs.get("input")


def call_before(call: Node) -> Node:
    before = call.prev
    while before.op == "get_attr":
        before = before.prev
    return before


def is_inactive_dropout(call: Node) -> bool:
    settings = [*call.args[1:], *call.kwargs.values()]
    return (
        call.target in DROPOUTS
        and bool(call.args)
        and not any(isinstance(each, Node) for each in settings)
        and does_nothing(*call.args, **call.kwargs)  # type: ignore[arg-type]
    )


def arguments_of(norm: Node, prelu: Node) -> Arguments:
    slope = prelu.args[1] if len(prelu.args) > 1 else prelu.kwargs["weight"]
    kwargs = {**norm.kwargs, "slope": slope}
    if norm.args:
        return Arguments.of(norm.target, (norm.args[0], slope, *norm.args[1:]), norm.kwargs)
    return Arguments.of(norm.target, (), kwargs)


def computes_the_same(norm: Any, arguments: Arguments, prelu: Node) -> bool:
    """Whether our operator takes these arguments, and returns the dtype that the two calls return."""
    if [*map(type, arguments[-3:])] != [bool, float, float] or arguments.eps <= 0:
        return False
    x, slope, mean, var, weight, bias, from_input, _, eps = map(value, arguments)
    try:
        with x.fake_mode, torch.no_grad():  # the functional operators: they change no statistics
            if from_input:
                y = ops._norm_prelu(x, slope, weight, bias, eps, norm is F.instance_norm)[0]
            else:
                y = ops._norm_prelu_eval(x, slope, weight, bias, mean, var, eps)
    except Exception:  # noqa: BLE001  (PyTorch's operators say what is wrong, or accept it)
        return False
    return bool(y.dtype == value(prelu).dtype)


# ---- One call to two -----------------------------------------------------------------------------


def take_apart(graph: Graph, call: Node, norm: Any, arguments: Arguments) -> None:
    x, slope, *others = arguments
    with graph.inserting_before(call):
        z = graph.call_function(norm, (x, *others))
        y = graph.call_function(ops.prelu, (z, slope))
    z.meta = {**call.meta}
    y.meta = {**call.meta}
    call.replace_all_uses_with(y)
    graph.erase_node(call)
