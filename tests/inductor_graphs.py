"""Inductor without its code generator, and a policy that tests may change."""

import pytest
import torch
from torch._inductor.compile_fx import compile_fx

import torch_ext

prelu = torch.ops.torch_ext.prelu
prelu_backward = torch.ops.torch_ext.prelu_backward

SMALL = 4096  # elements up to which a backward is small, in these tests


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(torch_ext.inductor, "small_backward", lambda device: SMALL)
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch_ext.inductor.set_compile("auto")
    torch._dynamo.reset()


class Inductor:
    """Inductor up to the graphs that it would generate code for, which are run as they are."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph_module, example_inputs):
        return compile_fx(graph_module, example_inputs, inner_compile=self._keep)

    def _keep(self, graph_module, example_inputs, **options):
        self.graphs.append(graph_module.graph)

        def run(arguments):
            return graph_module(*arguments)

        run._boxed_call = True
        return run

    def count(self, operator):
        return sum(
            len(graph.find_nodes(op="call_function", target=operator.default))
            for graph in self.graphs
        )

    @property
    def whole(self):
        """How many forwards and backwards were left whole."""
        return self.count(prelu), self.count(prelu_backward)
