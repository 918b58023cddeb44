"""Changes of the product that break one rule each, and the tests that have to notice.

One for each rule of the contract (docs/design.md), and for each mistake that kernels like these are known
for. Planted one at a time by mutate.py. Those of the CUDA kernels are in cuda_faults.py: each is looked
for by sanitizers or a compiler on a copy of a few files, quick enough for `make test`.
"""

from dataclasses import dataclass

STATE = "test_battery_state.py"
ERRORS = "test_battery_errors.py"
LAYOUTS = "test_battery_layouts.py"
SUMS = "test_battery_sums.py"
BOUND = "test_error_bound.py"
SPECIAL = "test_battery_values.py"
VALUES = "test_battery_values.py"
SOURCES = "test_source_rules.py"
NORMS = "test_norm_prelu_layers.py"
DEFERRED = "test_deferred_norms.py test_deferred_norms_order.py"
ENGINE = "cpu_engine_test"  # a C++ test of the build


@dataclass(frozen=True)
class Mutant:
    """One rule, broken in one place."""

    rule: str
    file: str
    old: str  # stands in the file exactly once
    new: str
    tests: str  # files of tests/, or a C++ test


_CPU = "csrc/kernels/cpu"
_ARGS = "csrc/ops/prelu_args.cpp"
_AUTOGRAD = "csrc/ops/prelu_autograd.cpp"
_AUTOGRAD_STATE = "csrc/ops/autograd_state.h"
_COMPOSITE = "csrc/ops/prelu_composite.cpp"
_FORWARD = "return {select(x > V(0), x, w * x)};"
_SAVE = "node->ctx_.save_for_backward({input, weight});"

MUTANTS = (
    # ---- Values ---------------------------------------------------------------------------------
    Mutant(
        "x = 0 takes the slope's side",
        "csrc/kernels/prelu.h",
        _FORWARD,
        "return {select(!(V(0) > x), x, w * x)};",
        SPECIAL,
    ),
    Mutant(
        "sides are chosen by the input, not the output",
        "csrc/kernels/prelu.h",
        _FORWARD,
        "return {select(w * x > V(0), x, w * x)};",
        STATE,
    ),
    Mutant(
        "gradients' sides are chosen by the input",
        "csrc/kernels/prelu.h",
        "const auto positive = x > V(0);",
        "const auto positive = g > V(0);",
        VALUES,
    ),
    Mutant(
        "a select, not a mask that multiplies infinities",
        f"{_CPU}/vector.h",
        "return multiply_add(keep_where(where, a), keep_where(where, b), c);",
        "return multiply_add(keep_where(where, a), b, c);",
        SPECIAL,
    ),
    Mutant(
        "results are rounded once, to even",
        f"{_CPU}/pack.h",
        "bits + 0x7FFFu + (bits >> 16 & 1u)",
        "bits + 0x8000u",
        VALUES,
    ),
    Mutant(
        "a float32 slope multiplies 16-bit data as it is",
        "csrc/kernels/channel_values.h",
        "? static_cast<const compute_t*>(values)[channel * stride]",
        "? compute_t(scalar_t(static_cast<const compute_t*>(values)[channel * stride]))",
        VALUES,
    ),
    Mutant(
        "subnormal numbers are kept",
        "csrc/ops/prelu_run.h",
        '  const PreluArgs args(input, weight, "prelu", Engine::kSuffix);\n',
        '  const PreluArgs args(input, weight, "prelu", Engine::kSuffix);\n'
        "  at::globalContext().setFlushDenormal(true);\n",
        SPECIAL,
    ),
    # ---- Sums -----------------------------------------------------------------------------------
    Mutant(
        "sums leave float32 after short chains",
        "csrc/kernels/accumulator.h",
        "inline constexpr int kChain = 12;",
        "inline constexpr int kChain = 16;",
        BOUND,
    ),
    Mutant(
        "sums of float64 carry what rounding lost",
        f"{_CPU}/group.h",
        "    correction = correction + next.error;\n",
        "",
        BOUND,
    ),
    Mutant(
        "sums never pass through 16 bits",
        "csrc/kernels/channel_values.h",
        "const auto rounded = static_cast<compute_t>(value);",
        "const auto rounded = static_cast<compute_t>(static_cast<scalar_t>(value));",
        VALUES,
    ),
    Mutant(
        "an infinite sum stays infinite",
        "csrc/kernels/accumulator.h",
        "return value - value == 0 ? value + correction : value;",
        "return value + correction;",
        SPECIAL,
    ),
    Mutant("sums begin at zero", f"{_CPU}/planes.h", "      of.sums[c] = {};\n", "", SUMS),
    Mutant(
        "bits do not depend on threads",
        "csrc/ops/operators_cpu.cpp",
        "    cpu::run(view, knobs().nt_stores, tensors, std::move(sweeps)...);",
        "    ChannelView by_threads = view;\n"
        "    if (view.channels == 1 && view.numel() % at::get_num_threads() == 0) {\n"
        "      by_threads = {at::get_num_threads(), 1, view.numel() / at::get_num_threads()};\n"
        "    }\n"
        "    cpu::run(by_threads, knobs().nt_stores, tensors, std::move(sweeps)...);",
        "test_battery_threads.py",
    ),
    # ---- Sizes and layouts ----------------------------------------------------------------------
    Mutant(
        "tasks cover what does not divide",
        f"{_CPU}/plan.cpp",
        "row_blocks_ = count_of(rows_, row_block_);",
        "row_blocks_ = std::max<int64_t>(rows_ / row_block_, 1);",
        ENGINE,
    ),
    Mutant(
        "the end of a plane is computed",
        f"{_CPU}/planes.h",
        "last = task.inner.size() - groups * kGroup * P::kSize - P::kSize;",
        "last = task.inner.size() / P::kSize * P::kSize - groups * kGroup * P::kSize - P::kSize;",
        LAYOUTS,
    ),
    Mutant(
        "the end of a plane is summed once",
        f"{_CPU}/planes.h",
        "last_lanes = P::other_lanes((kPacks - 1) * P::kSize - last);",
        "last_lanes = P::other_lanes(0);",
        ENGINE,
    ),
    Mutant(
        "a pack of two planes adds each term to one of them",
        f"{_CPU}/planes.h",
        "rest = P::other_lanes(count);",
        "rest = P::other_lanes(0);",
        ENGINE,
    ),
    Mutant(
        "a pack of two planes has the values of both",
        f"{_CPU}/planes.h",
        "select(lanes[v], params[p], next[p])",
        "select(rest[v], params[p], next[p])",
        ENGINE,
    ),
    Mutant(
        "positions have 64 bits",
        f"{_CPU}/plan.cpp",
        "  return joined_ * view_.channels * view_.inner;\n",
        "  return static_cast<int32_t>(joined_ * view_.channels * view_.inner);\n",
        ENGINE,
    ),
    Mutant(
        "channels are dimension 1, not the last one",
        _ARGS,
        "input.dim() > 1 ? input.sym_size(1) : c10::SymInt(1);",
        "input.dim() > 1 ? input.sym_size(-1) : c10::SymInt(1);",
        VALUES,
    ),
    Mutant(
        "grad_output's strides are its own",
        "csrc/ops/tensors.cpp",
        "return same_memory_order(tensor, dense) ? tensor",
        "return true ? tensor",
        LAYOUTS,
    ),
    Mutant(
        "gaps in memory are not read",
        "csrc/ops/tensors.cpp",
        "return tensor.is_non_overlapping_and_dense() ? tensor",
        "return true ? tensor",
        LAYOUTS,
    ),
    Mutant(
        "the fake kernel has the real one's strides",
        "csrc/ops/prelu.cpp",
        '  check_prelu_args(input, weight, "prelu", "_meta");\n  return empty_output(input);',
        '  check_prelu_args(input, weight, "prelu", "_meta");\n'
        "  return at::empty_like(input, at::MemoryFormat::Contiguous);",
        "test_battery_dispatch.py",
    ),
    Mutant(
        "an empty input has a gradient of zeros",
        "csrc/ops/prelu_run.h",
        "      grad_weight.zero_();\n",
        "      grad_weight.fill_(1);\n",
        STATE,
    ),
    # ---- Arguments ------------------------------------------------------------------------------
    Mutant(
        "float32 slopes are for 16-bit data",
        _ARGS,
        "return is_16_bit(input) && weight == at::kFloat;",
        "return weight == at::kFloat;",
        ERRORS,
    ),
    Mutant(
        "as many slopes as channels",
        _ARGS,
        "channels == weight.sym_numel(),",
        "channels >= weight.sym_numel(),",
        ERRORS,
    ),
    Mutant(
        "grad_output has the input's shape",
        _ARGS,
        "      grad_output.sym_sizes() == input.sym_sizes(),\n",
        "      grad_output.sym_numel() == input.sym_numel(),\n",
        ERRORS,
    ),
    Mutant(
        "Meta refuses what kernels refuse",
        "csrc/ops/prelu.cpp",
        '  check_prelu_args(input, weight, "prelu", "_meta");\n',
        "  (void)weight;\n",
        ERRORS,
    ),
    # ---- Autograd -------------------------------------------------------------------------------
    Mutant(
        "input and weight are saved, and nothing else",
        _AUTOGRAD,
        _SAVE,
        "node->ctx_.save_for_backward({input, weight, input.detach()});",
        STATE,
    ),
    Mutant(
        "saved through hooks, not beside them",
        _AUTOGRAD,
        _SAVE,
        "node->ctx_.save_for_backward({input, weight.detach()});",
        f"{STATE} test_battery_autograd.py",
    ),
    Mutant(
        "what nobody asks for is not computed",
        _AUTOGRAD,
        "{ctx->needs_input_grad(0), ctx->needs_input_grad(1)});\n    return {grad_input, grad_weight};",
        "{true, true});\n    return {grad_input, grad_weight};",
        "test_battery_autograd.py",
    ),
    Mutant(
        "second order takes the slope's side at 0",
        _COMPOSITE,
        "return at::where(input > 0, 0, values);",
        "return at::where(input >= 0, 0, values);",
        "test_battery_autograd.py",
    ),
    Mutant(
        "forward mode takes the slope's side at 0",
        _COMPOSITE,
        "return at::where(input > 0, 1, along_channels(",
        "return at::where(input >= 0, 1, along_channels(",
        "test_battery_autograd.py",
    ),
    Mutant(
        "transforms are seen",
        _AUTOGRAD_STATE,
        "c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {\n    return true;",
        "c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {\n    return false;",
        "test_battery_transforms.py",
    ),
    # ---- Around the operators -------------------------------------------------------------------
    Mutant(
        "autocast keeps a float32 slope",
        "csrc/ops/prelu_autocast.cpp",
        "keep_weight ? weight : at::autocast",
        "false ? weight : at::autocast",
        "test_autocast.py",
    ),
    Mutant(
        "other devices and layouts do what PyTorch's operator does",
        "csrc/ops/prelu_foreign.cpp",
        "  check_same_dtype(input, weight);\n",
        "",
        "test_other_layouts.py",
    ),
    # ---- Norm + PReLU ---------------------------------------------------------------------------
    Mutant(
        "a call of a norm is counted",
        "torch_ext/_norm_calls.py",
        "count.add_(1)",
        "count.add_(0)",
        NORMS,
    ),
    Mutant(
        "statistics are updated once for each call of the norm",
        "torch_ext/_deferred_call.py",
        "if self.counted and updates_statistics(given):",
        "if False:",
        DEFERRED,
    ),
    Mutant(
        "an input that was changed before its result is used is an error",
        "torch_ext/_deferred_call.py",
        "return self.state != _state(self.input, self.arguments)",
        "return False",
        DEFERRED,
    ),
    Mutant(
        "the grad mode is that of the norm's call",
        "torch_ext/_deferred_call.py",
        "torch.set_grad_enabled(self.grad)",
        "torch.set_grad_enabled(True)",
        DEFERRED,
    ),
    Mutant(
        "nothing is deferred where saved tensors go to hooks",
        "csrc/python/norm_calls.cpp",
        "at::SavedTensorDefaultHooks::get_tls_state().stack.empty()",
        "true",
        "test_fused_norms_checkpointing.py",
    ),
    Mutant(
        "hooks stand between norm and PReLU",
        "torch_ext/_norm_calls.py",
        '        or own["_forward_pre_hooks"]\n',
        "",
        f"{NORMS} {DEFERRED}",
    ),
    # ---- CUDA, from its source ------------------------------------------------------------------
    Mutant(
        "kernels run on the current stream",
        "csrc/kernels/cuda/launch.cuh",
        "config.stream = c10::cuda::getCurrentCUDAStream();",
        "config.stream = nullptr;",
        SOURCES,
    ),
    Mutant(
        "kernels run on the input's device",
        "csrc/ops/prelu_run.h",
        "  const c10::DeviceGuard guard(input.device());\n  const at::Tensor output",
        "  const at::Tensor output",
        SOURCES,
    ),
)
