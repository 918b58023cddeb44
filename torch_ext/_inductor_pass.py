"""The passes over Inductor's graphs that :mod:`torch_ext.inductor` describes.

That for norms runs before there is a backward (`_inductor_norms.py`). That for PReLU runs on the joint
graph of forward and backward, before the partitioner divides it, which then sees what can be recomputed;
and on graphs for inference.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils.checkpoint import CheckpointPolicy

from torch_ext import _inductor_norms, inductor

aten = torch.ops.aten
GraphPass = Callable[[Graph], None]

# Metadata of a node's own value; the rest (stack trace, module) is copied to what replaces it.
OF_THE_NODE = ("val", "tensor_meta", "eager_input_vals", "arg_kwarg_vals", "original_aten")


class Pass(CustomGraphPass):
    """Changes a graph according to the policy, and then runs the passes that were set before."""

    def __init__(self, others: Sequence[GraphPass] = ()) -> None:
        self.others = tuple(others)

    def change(self, graph: Graph) -> None:
        raise NotImplementedError

    def __call__(self, graph: Graph) -> None:
        self.change(graph)
        for other in self.others:
            other(graph)

    def uuid(self) -> Any:
        """The key under which compiled code is cached; none if another pass has none, as in Inductor.

        It is part of the key of every graph, whether it has a PReLU or not. Therefore it does not
        contain the number of threads, on which the limit for small backwards depends. Since torch
        2.15 or earlier Inductor's own key for the CPU contains that number. Where it does not, code
        from the cache is correct, but was chosen for the number of threads of the process that
        compiled it.
        """
        uuids = [
            other.uuid() if isinstance(other, CustomGraphPass) else None for other in self.others
        ]
        if None in uuids:
            return None
        described = repr((type(self).__name__, inductor.compile_policy(), uuids))
        return get_hash_for_files(
            (__file__, _inductor_norms.__file__, inductor.__file__), described
        )


class NormPass(Pass):
    """Makes a norm and the PReLU after it one operator, or two."""

    def change(self, graph: Graph) -> None:
        _inductor_norms.change(graph)


class PreluPass(Pass):
    """Decomposes operators."""

    def change(self, graph: Graph) -> None:
        policy = inductor.compile_policy()
        prelu = torch.ops.torch_ext.prelu.default
        prelu_backward = torch.ops.torch_ext.prelu_backward.default
        if policy != "opaque":
            for node in graph.find_nodes(op="call_function", target=prelu_backward):
                if policy == "decompose" or fuses_better(node):
                    decompose_backward(graph, node)
            for node in graph.find_nodes(op="call_function", target=prelu):
                decompose_forward(graph, node)


def register() -> None:
    """Has Inductor run the passes; for :mod:`torch_ext._rules`."""
    config.pre_grad_custom_pass = with_pass(NormPass, config.pre_grad_custom_pass)
    config.joint_custom_pre_pass = with_pass(PreluPass, config.joint_custom_pre_pass)


def with_pass(own: type[Pass], present: Any) -> Any:
    """The value of Inductor's option (nothing, one pass, or since 2.15 several) with our pass
    added."""
    if present is None:
        others: Sequence[GraphPass] = ()
    elif isinstance(present, (list, tuple)):
        others = present
    else:
        others = (present,)
    if any(isinstance(other, own) for other in others):
        return present  # Inductor was imported a second time
    return own(others)


# ---- Which backwards are decomposed ------------------------------------------------------------


def fuses_better(backward: Node) -> bool:
    """Whether Inductor's loops around a backward do its work more cheaply than our kernel."""
    input, output_mask = backward.args[1], cast(list[bool], backward.args[3])
    if not output_mask[1]:
        return True  # elementwise: nothing to sum
    small = inductor.small_backward(value(input).device)
    if statically_known_true(value(input).numel() <= small):
        return True
    by_input = next((user for user in backward.users if user.args[1] == 0), None)
    return by_input is not None and not feeds_kernel(by_input) and feeds_sum(by_input)


def feeds_kernel(node: Node) -> bool:
    """Whether a kernel (such as a convolution) uses the result, which then has to be in memory."""
    for user in node.users:
        if is_view(user):
            if feeds_kernel(user):
                return True
        elif user.op != "output" and not has_tag(user, torch.Tag.pointwise, torch.Tag.reduction):
            return True
    return False


def feeds_sum(node: Node) -> bool:
    """Whether the result, or something computed from it element by element, is summed."""
    seen = {node}
    waiting = [node]
    while waiting:
        for user in waiting.pop().users:
            if has_tag(user, torch.Tag.reduction):
                return True
            if user not in seen and (is_view(user) or has_tag(user, torch.Tag.pointwise)):
                seen.add(user)
                waiting.append(user)
    return False


def has_tag(node: Node, *tags: torch.Tag) -> bool:
    return any(tag in getattr(node.target, "tags", ()) for tag in tags)


def is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info for result in schema.returns)


# ---- The formulas, as nodes --------------------------------------------------------------------


class Builder:
    """Inserts calls into a graph before a node, each with the fake value of its result."""

    def __init__(self, graph: Graph, before: Node) -> None:
        self.graph = graph
        self.before = before
        self.fake_mode = value(before.args[0]).fake_mode

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self.graph.inserting_before(self.before):
            node = self.graph.call_function(target, args, kwargs)
        with self.fake_mode:
            result = target(*(value(arg) for arg in args), **kwargs)
        meta = self.before.meta
        node.meta = {key: meta[key] for key in meta if key not in OF_THE_NODE} | {"val": result}
        if "recompute" in meta:  # activation checkpointing keeps only the result
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
        return node

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        if value(node).dtype == dtype:
            return node
        return self(torch.ops.prims.convert_element_type.default, node, dtype)

    def positive(self, input: Node) -> Node:
        return self(aten.gt.Scalar, input, 0)

    def along_channels(self, weight: Node, dim: int) -> Node:
        """C slopes with shape (C, 1, ...), to be broadcast over ``dim`` dimensions; a single slope
        as it is, or with shape ()."""
        if value(weight).dim() == 0 or dim == 1:
            return weight
        shape = [-1] + [1] * (dim - 2) if dim else []
        return self(aten.view.default, weight, shape)

    def select(self, input: Node, values: Node, weight: Node) -> Node:
        """``values`` where input is positive, else their product with the slope; rounded once."""
        dtype = value(values).dtype
        wide = value(weight).dtype
        slopes = self.along_channels(weight, value(input).dim())
        wide_values = self.cast(values, wide)
        product = self(aten.mul.Tensor, slopes, wide_values)
        selected = self(aten.where.self, self.positive(input), wide_values, product)
        return self.cast(selected, dtype)

    def sum_to_weight(self, input: Node, grad_output: Node, weight: Node) -> Node:
        """The gradient of the slope: summed in the wider type, rounded once."""
        acc = torch.promote_types(value(input).dtype, torch.float32)
        product = self(aten.mul.Tensor, self.cast(input, acc), self.cast(grad_output, acc))
        zero = self(aten.full.default, [], 0, dtype=acc, device=value(input).device)
        terms = self(aten.where.self, self.positive(input), zero, product)
        shape = value(weight).shape
        one = value(weight).dim() == 0 or statically_known_true(shape[0] == 1)
        dims = [dim for dim in range(value(input).dim()) if one or dim != 1]
        total = self(aten.sum.dim_IntList, terms, dims) if dims else terms
        if one and value(weight).dim() == 1:
            total = self(aten.unsqueeze.default, total, 0)
        return self.cast(total, value(weight).dtype)


def decompose_forward(graph: Graph, node: Node) -> None:
    input, weight = (cast(Node, arg) for arg in node.args)
    replace(graph, node, Builder(graph, node).select(input, input, weight))


def decompose_backward(graph: Graph, node: Node) -> None:
    grad_output, input, weight = (cast(Node, arg) for arg in node.args[:3])
    build = Builder(graph, node)
    for result in list(node.users):  # operator.getitem
        if result.args[1] == 0:
            replace(graph, result, build.select(input, grad_output, weight))
        else:
            replace(graph, result, build.sum_to_weight(input, grad_output, weight))
    graph.erase_node(node)


def replace(graph: Graph, node: Node, by: Node) -> None:
    if "recompute" in node.meta:
        by.meta["recompute"] = node.meta["recompute"]
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def value(node: Any) -> Any:
    """The fake tensor that stands for a node's result; anything else as it is."""
    return node.meta["val"] if isinstance(node, Node) else node
