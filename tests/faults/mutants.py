"""Changes of the product that break one rule each, and the tests that have to notice.

Planted one at a time by mutate.py. (Faults of the CUDA kernels have a table of their own, table.py:
each is looked for by sanitizers or a compiler on a copy of a few files, quick enough for `make test`.)
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One rule, broken in one place."""

    rule: str
    file: str
    old: str
    new: str
    tests: str  # files of tests/, or a C++ test of the build


_OPERATIONS = "csrc/kernels/prelu.h"
_CPU = "csrc/kernels/cpu"
_ARGS = "csrc/ops/prelu_args.cpp"
_FOREIGN = "csrc/ops/prelu_foreign.cpp"
_TENSORS = "csrc/ops/tensors.cpp"
_AUTOGRAD = "csrc/ops/prelu_autograd.cpp"
_COMPOSITE = "csrc/ops/prelu_composite.cpp"

MUTANTS = (
    # ---- Values ---------------------------------------------------------------------------------
    Mutant(
        "x = 0 takes the slope's side",
        _OPERATIONS,
        "return {select(x > V(0), x, w * x)};",
        "return {select(!(V(0) > x), x, w * x)};",
        "test_battery_values.py",
    ),
    Mutant(
        "sides are chosen by the input, not the output",
        _OPERATIONS,
        "return {select(x > V(0), x, w * x)};",
        "return {select(w * x > V(0), x, w * x)};",
        "test_prelu_definition.py",
    ),
    Mutant(
        "gradients' sides are chosen by the input",
        _OPERATIONS,
        "const auto positive = x > V(0);",
        "const auto positive = g > V(0);",
        "test_battery_values.py",
    ),
    Mutant(
        "a select, not a mask that multiplies infinities",
        f"{_CPU}/vector.h",
        "return multiply_add(keep_where(where, a), keep_where(where, b), c);",
        "return multiply_add(keep_where(where, a), b, c);",
        "test_battery_values.py",
    ),
    Mutant(
        "bfloat16 is rounded to even",
        f"{_CPU}/pack.h",
        "bits + 0x7FFFu + (bits >> 16 & 1u)",
        "bits + 0x8000u",
        "test_battery_values.py",
    ),
    Mutant(
        "a NaN slope's bits do not turn into infinity",
        "csrc/kernels/channel_values.h",
        "return value == value ? value : std::numeric_limits<compute_t>::quiet_NaN();",
        "return value;",
        "cpu_engine_test",
    ),
    # ---- Sums -----------------------------------------------------------------------------------
    Mutant(
        "sums leave float32 after short chains",
        "csrc/kernels/accumulator.h",
        "inline constexpr int kChain = 12;",
        "inline constexpr int kChain = 16;",
        "test_error_bound.py",
    ),
    Mutant(
        "those of float64 are shorter",
        "csrc/kernels/accumulator.h",
        "inline constexpr int kChain<double> = 4;",
        "inline constexpr int kChain<double> = 12;",
        "test_error_bound.py",
    ),
    Mutant(
        "sums of float64 carry what rounding lost",
        f"{_CPU}/group.h",
        "    correction = correction + next.error;\n",
        "",
        "test_error_bound.py",
    ),
    Mutant(
        "an infinite sum stays infinite",
        "csrc/kernels/accumulator.h",
        "return value - value == 0 ? value + correction : value;",
        "return value + correction;",
        "test_battery_values.py",
    ),
    Mutant(
        "every split is added",
        f"{_CPU}/sweep.h",
        "for (int64_t split = 1; split < splits; ++split) {",
        "for (int64_t split = 2; split < splits; ++split) {",
        "test_battery_sums.py",
    ),
    Mutant(
        "sums begin at zero",
        f"{_CPU}/planes.h",
        "      sums[c] = {};\n",
        "",
        "test_battery_sums.py",
    ),
    Mutant(
        "bits do not depend on threads",
        "csrc/ops/prelu_cpu.cpp",
        "    cpu::run(args.view(), knobs().nt_stores, cpu::Sweep(operands, step));",
        "    ChannelView view = args.view();\n"
        "    if (view.channels == 1 && view.numel() % at::get_num_threads() == 0) {\n"
        "      view = {at::get_num_threads(), 1, view.numel() / at::get_num_threads()};\n"
        "    }\n"
        "    cpu::run(view, knobs().nt_stores, cpu::Sweep(operands, step));",
        "test_battery_threads.py",
    ),
    # ---- Traversals -----------------------------------------------------------------------------
    Mutant(
        "tasks cover what does not divide",
        f"{_CPU}/plan.cpp",
        "row_blocks_ = ceil_div(rows_, row_block_);",
        "row_blocks_ = std::max<int64_t>(rows_ / row_block_, 1);",
        "cpu_engine_test",
    ),
    Mutant(
        "the end of a plane is computed",
        f"{_CPU}/planes.h",
        "if (run.tail == 0) {",
        "if (run.tail < P::kSize) {",
        "test_battery_layouts.py",
    ),
    Mutant(
        "the end of a plane is summed once",
        f"{_CPU}/planes.h",
        "P::lanes(P::kSize - tail, P::kSize)",
        "P::lanes(0, P::kSize)",
        "test_battery_sums.py",
    ),
    Mutant(
        "the end of a row of columns is summed once",
        f"{_CPU}/columns.h",
        "state.sums.add_columns(s, cut.columns - cut.left, end - cut.left, cut.left);",
        "state.sums.add_columns(s, cut.columns - cut.left, end - P::kSize, cut.left);",
        "test_battery_sums.py",
    ),
    Mutant(
        "positions have 64 bits",
        f"{_CPU}/plan.cpp",
        "  return joined_ * view_.channels * view_.inner;\n",
        "  return static_cast<int32_t>(joined_ * view_.channels * view_.inner);\n",
        "cpu_engine_test",
    ),
    # ---- Layouts --------------------------------------------------------------------------------
    Mutant(
        "grad_output's strides are its own",
        _TENSORS,
        "return same_memory_order(tensor, dense) ? tensor",
        "return true ? tensor",
        "test_battery_layouts.py",
    ),
    Mutant(
        "channels are dimension 1 wherever it lies in memory",
        _TENSORS,
        "(dense.stride(d) > dense.stride(1) ? view.outer : view.inner)",
        "(d < 1 ? view.outer : view.inner)",
        "test_battery_layouts.py",
    ),
    Mutant(
        "channels are not the last dimension",
        _ARGS,
        "input.dim() > 1 ? input.sym_size(1) : c10::SymInt(1);",
        "input.dim() > 1 ? input.sym_size(-1) : c10::SymInt(1);",
        "test_battery_values.py",
    ),
    Mutant(
        "gaps in memory are not read",
        _TENSORS,
        "return tensor.is_non_overlapping_and_dense() ? tensor",
        "return true ? tensor",
        "test_battery_layouts.py",
    ),
    Mutant(
        "a slope may have any stride",
        _ARGS,
        "weight_ = weight.contiguous();",
        "weight_ = weight;",
        "test_battery_layouts.py",
    ),
    Mutant(
        "the fake kernel has the real one's strides",
        "csrc/ops/prelu.cpp",
        '  check_prelu_args(input, weight, "prelu_meta");\n  return empty_output(input);',
        '  check_prelu_args(input, weight, "prelu_meta");\n'
        "  return at::empty_like(input, at::MemoryFormat::Contiguous);",
        "test_battery_dispatch.py",
    ),
    Mutant(
        "an empty input has a gradient of zeros",
        "csrc/ops/prelu_cpu.cpp",
        "      grad_weight.zero_();\n",
        "      grad_weight.fill_(1);\n",
        "test_battery_layouts.py",
    ),
    # ---- Arguments ------------------------------------------------------------------------------
    Mutant(
        "float32 slopes are for 16-bit data",
        _ARGS,
        "return is_16_bit(input) && weight == at::kFloat;",
        "return weight == at::kFloat;",
        "test_battery_errors.py",
    ),
    Mutant(
        "as many slopes as channels",
        _ARGS,
        "channels == weight.sym_numel(),",
        "channels >= weight.sym_numel(),",
        "test_battery_errors.py",
    ),
    Mutant(
        "slopes have at most one dimension",
        _ARGS,
        "      weight.dim() <= 1,\n",
        "      weight.dim() <= 2,\n",
        "test_battery_errors.py",
    ),
    Mutant(
        "one device",
        _ARGS,
        "      input.device() == weight.device(),\n",
        "      true,\n",
        "test_battery_errors.py",
    ),
    Mutant(
        "grad_output has the input's shape",
        _ARGS,
        "      grad_output.sym_sizes() == input.sym_sizes(),\n",
        "      grad_output.sym_numel() == input.sym_numel(),\n",
        "test_battery_errors.py",
    ),
    # ---- Autograd -------------------------------------------------------------------------------
    Mutant(
        "input and weight are saved, and nothing else",
        _AUTOGRAD,
        "node->ctx_.save_for_backward({input, weight});",
        "node->ctx_.save_for_backward({input, weight, input.detach()});",
        "test_battery_state.py",
    ),
    Mutant(
        "saved through hooks, not beside them",
        _AUTOGRAD,
        "node->ctx_.save_for_backward({input, weight});",
        "node->ctx_.save_for_backward({input, weight.detach()});",
        "test_battery_state.py test_battery_autograd.py",
    ),
    Mutant(
        "an undefined gradient is passed on",
        _AUTOGRAD,
        "    if (!grads[0].defined()) {\n",
        "    if (false) {\n",
        "test_battery_autograd.py test_hooks.py",
    ),
    Mutant(
        "what nobody asks for is not computed",
        _AUTOGRAD,
        "{ctx->needs_input_grad(0), ctx->needs_input_grad(1)});\n    return {grad_input, grad_weight};",
        "{true, true});\n    return {grad_input, grad_weight};",
        "test_hooks.py",
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
        "composites compute 16-bit data in float32",
        _COMPOSITE,
        "return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;",
        "return input.scalar_type();",
        "test_battery_vmap.py test_battery_autograd.py",
    ),
    Mutant(
        "tangents are seen",
        _AUTOGRAD,
        "return t._fw_grad(/*level=*/0).defined();",
        "return t.defined() && false;",
        "test_battery_forward_mode.py",
    ),
    Mutant(
        "transforms are seen",
        _AUTOGRAD,
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
        "devices without kernels of ours take float32 slopes",
        _FOREIGN,
        "if (input.scalar_type() != weight.scalar_type() &&",
        "if (false && input.scalar_type() != weight.scalar_type() &&",
        "test_dispatcher.py",
    ),
    Mutant(
        "but not in other layouts",
        _FOREIGN,
        "  check_same_dtype(input, weight);\n",
        "",
        "test_other_layouts.py",
    ),
    Mutant(
        "an override that is closed does nothing",
        "csrc/ops/override_aten.cpp",
        "open_overrides().load(std::memory_order_relaxed) > 0 &&",
        "open_overrides().load(std::memory_order_relaxed) >= 0 &&",
        "test_override_aten_context.py test_override_aten.py",
    ),
    Mutant(
        "recorded graphs do not know an override",
        "csrc/ops/override_aten.cpp",
        "         !is_being_recorded();",
        "         true;",
        "test_override_aten_modes.py",
    ),
    Mutant(
        "kernels take any strides, and say so",
        "csrc/ops/prelu.cpp",
        "tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};",
        "tags{at::Tag::pt2_compliant_tag};",
        "test_battery_dispatch.py",
    ),
    # ---- CUDA, from its source ------------------------------------------------------------------
    Mutant(
        "kernels run on the current stream",
        "csrc/kernels/cuda/launch.cuh",
        "config.stream = c10::cuda::getCurrentCUDAStream();",
        "config.stream = nullptr;",
        "test_source_rules.py",
    ),
    Mutant(
        "kernels run on the input's device",
        "csrc/ops/prelu_cuda.cu",
        "  const c10::cuda::CUDAGuard guard(args.input().device());\n  at::Tensor output",
        "  at::Tensor output",
        "test_source_rules.py",
    ),
    Mutant(
        "launches are checked",
        "csrc/kernels/cuda/launch.cuh",
        "C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));",
        "cudaLaunchKernelEx(&config, kernel, arguments...);",
        "test_source_rules.py",
    ),
    # ---- Python ---------------------------------------------------------------------------------
    Mutant(
        "a swap leaves swapped modules alone",
        "torch_ext/replace.py",
        "if not isinstance(module, PyTorchPReLU) or is_fused(type(module)):",
        "if not isinstance(module, PyTorchPReLU):",
        "test_replace.py",
    ),
    Mutant(
        "the filter is asked",
        "torch_ext/replace.py",
        "if filter_fn is not None and not filter_fn(module, name):",
        "if False and not filter_fn(module, name):",
        "test_replace.py test_replace_report.py",
    ),
)
