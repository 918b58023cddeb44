"""The batteries themselves: each takes up a new row, passes it, and fails it where it is broken."""

import importlib
import pathlib
from dataclasses import replace

import broken_operators as broken
import pytest
import torch
from batteries import rows_of, run
from operators import OPERATORS

# A battery, and the row that it has to fail. Named in full, so that a battery without one is noticed.
BROKEN = {
    "test_results_are_those_of_the_definition_and_of_pytorch": broken.POSITIVE_ZERO,
    "test_exact_data_give_exact_results_with_every_setting": broken.NEGATIVE_SLOPES,
    "test_sizes_around_every_vector_width": broken.TAIL,
    "test_every_special_input_with_every_special_slope": broken.MAXIMUM,
    "test_all_16_bit_patterns_special_or_not": broken.MAXIMUM,
    "test_a_special_value_reaches_its_own_element_and_no_neighbour": broken.SPILLS,
    "test_the_sum_is_exact_in_every_shape_of_onednns_tests": broken.LOSES_A_TERM,
    "test_a_long_sum_is_within_the_bound": broken.SUMS_IN_16_BITS,
    "test_a_term_that_is_not_finite_gives_the_ieee_sum": broken.FINITE_SUMS,
    "test_partial_sums_of_half_may_be_larger_than_half_can_hold": broken.SUMS_IN_16_BITS,
    "test_every_layout_of_the_input_with_every_layout_of_the_rest": broken.CONTIGUOUS,
    "test_results_lie_like_the_input_and_as_pytorchs": broken.CONTIGUOUS,
    "test_storage_may_start_anywhere": broken.MISALIGNED,
    "test_parameters_may_have_any_strides": broken.WEIGHT_STRIDES,
    "test_negated_views_are_read_as_negated": broken.IGNORES_NEGATION,
    "test_an_empty_input_gives_empty_results_and_sums_of_zero": broken.NAN_FOR_NOTHING,
    "test_a_setting_selects_results_and_changes_no_bit": broken.IGNORES_MASKS,
    "test_dense_layouts_are_not_copied_and_what_is_left_out_costs_nothing": broken.CLONES,
    "test_other_data_in_another_layout_cost_at_most_a_copy_of_themselves": broken.COPIES_TWICE,
    "test_gradients_are_those_of_the_backward_operator": broken.DOUBLED,
    "test_only_the_gradients_that_are_needed_exist": broken.ALWAYS_NEEDS,
    "test_derivatives_equal_finite_differences": broken.DOUBLED,
    "test_second_derivatives_equal_finite_differences": broken.FIRST_ORDER,
    "test_both_orders_take_every_layout_of_every_gradient": broken.AT_ZERO,
    "test_both_orders_equal_pytorchs_away_from_zero": broken.FIRST_ORDER,
    "test_an_operand_that_a_gradient_does_not_depend_on_gets_zeros": broken.FIRST_ORDER,
    "test_tangents_are_those_of_the_definition": broken.AT_ZERO,
    "test_layouts_of_tangents_do_not_matter": broken.DOUBLED,
    "test_forward_over_reverse_and_reverse_over_forward_agree": broken.FIRST_ORDER,
    "test_tangents_need_forward_mode_and_no_reverse_mode": broken.NO_TANGENTS,
    "test_vmap_equals_a_loop_and_pytorchs": broken.IN_TRANSFORMS,
    "test_nested_vmaps_equal_two_loops": broken.IN_TRANSFORMS,
    "test_options_of_vmap_change_nothing": broken.CHANGES,
    "test_gradients_flow_through_vmap": broken.IN_TRANSFORMS,
    "test_derivatives_are_those_of_the_definition": broken.AT_ZERO,
    "test_vectorized_derivatives_of_autograd_are_those_of_the_definition": broken.DOUBLED,
    "test_a_batch_of_gradients_goes_through_one_backward": broken.KEEPS_TENSORS,
    "test_transforms_compose_with_vmap": broken.IN_TRANSFORMS,
    "test_two_vmaps_of_a_gradient": broken.IN_TRANSFORMS,
    "test_transforms_of_mixed_dtypes_keep_them_and_the_values": broken.IN_TRANSFORMS,
    "test_functionalize_keeps_the_operator_and_removes_mutations_around_it": broken.WITHOUT_KERNELS,
    "test_the_schema_is_frozen": broken.WRONG_SCHEMA,
    "test_arguments_have_names_and_places": broken.SWAPPED,
    "test_every_key_has_a_kernel_of_its_own": broken.WITHOUT_KERNELS,
    "test_the_tags_promise_what_pt2_needs_and_nothing_random": broken.UNTAGGED,
    "test_opcheck_finds_nothing": broken.OTHER_STRIDES,
    "test_fake_and_meta_kernels_predict_shapes_dtypes_and_strides": broken.OTHER_STRIDES,
    "test_the_meta_kernel_knows_empty_tensors": broken.NO_SHAPE,
    "test_gradients_flow_on_meta_tensors": broken.NO_SHAPE,
    "test_fake_cuda_tensors_need_no_gpu": broken.NO_SHAPE,
    "test_arguments_are_not_changed": broken.TOUCHES,
    "test_copy_on_write_arguments_stay_unmaterialised": broken.TOUCHES,
    "test_exactly_what_is_promised_is_saved": broken.SAVES_MORE,
    "test_saving_on_the_cpu_changes_nothing": broken.CHANGES,
    "test_nothing_is_saved_where_no_gradient_is_needed": broken.SAVES_WITHOUT_GRAD,
    "test_changes_in_place_are_detected": broken.SAVES_COPIES,
    "test_mutation_of_saved_tensors_may_be_allowed": broken.CHANGES,
    "test_no_grad_and_inference_mode": broken.SAVES_WITHOUT_GRAD,
    "test_a_graph_may_be_used_twice_if_it_is_retained": broken.KEEPS_TENSORS,
    "test_bits_do_not_depend_on_the_number_of_threads": broken.CHANGES,
    "test_repeats_give_the_same_bits": broken.CHANGES,
    "test_bits_are_the_same_inside_a_parallel_region": broken.CHANGES,
    "test_eight_threads_do_not_disturb_one_another": broken.CHANGES,
    "test_fresh_memory_full_of_nan_never_shows": broken.HOLES,
    "test_other_derivatives_work_in_deterministic_mode": broken.CHANGES,
    "test_the_floating_point_environment_is_not_touched": broken.FLUSHES,
    "test_bad_arguments_are_refused_in_these_words": broken.OTHER_WORDS,
    "test_meta_rejects_what_the_kernels_reject": broken.ANY_META,
    "test_no_other_dtypes_are_accepted": broken.PROMOTES,
    "test_an_undefined_tensor_is_rejected_by_name": broken.MAKES_UP,
    "test_tensors_of_two_devices_are_rejected": broken.MOVES,
    "test_other_data_must_match_the_input": broken.BROADCASTS,
    "test_a_mask_has_an_entry_for_each_result": broken.ANY_MASK,
    "test_an_error_changes_nothing": broken.CHANGES_ON_ERROR,
    "test_random_problems": broken.TAIL,
    "test_dtypes_and_errors_under_autocast_are_pytorchs": broken.OUTSIDE_AUTOCAST,
    "test_values_under_autocast_are_pytorchs_and_gradients_have_the_leaves_dtypes": (
        broken.OUTSIDE_AUTOCAST
    ),
    "test_a_compiled_step_has_the_bits_of_eager": broken.WHILE_COMPILING,
    "test_a_compiled_step_of_every_dtype_has_the_bits_of_eager": broken.WHILE_COMPILING,
    "test_every_setting_compiles": broken.WHILE_COMPILING,
    "test_gradients_of_some_operands_compile": broken.WHILE_COMPILING,
    "test_another_size_does_not_compile_again": broken.WHILE_COMPILING,
    "test_inductor_keeps_the_results": broken.WHILE_COMPILING,
    "test_compiled_autograd_runs_the_backward": broken.COMPILED_GRADIENT,
    "test_compiled_autograd_runs_a_graph_that_holds_a_gradient": broken.COMPILED_GRADIENT,
    "test_an_exported_program_holds_the_operator_whole_for_any_sizes": broken.WITHOUT_KERNELS,
}

# What only a norm can get wrong.
BROKEN_NORMS = {
    "test_derivatives_equal_finite_differences": broken.CONSTANT_STATISTICS,
    "test_exact_data_give_exact_results_with_every_setting": broken.BIASED_VARIANCE,
}

# Batteries that look rows up in the table, in processes of their own; or take minutes.
APART = {
    "test_worker_threads_with_small_stacks",
    "test_nothing_outside_is_touched_whatever_tail_and_layout",
    "test_nothing_outside_is_touched_by_stores_past_the_caches",
    "test_any_allocation_may_fail",
    "test_a_sum_of_sixteen_million_terms_is_within_the_bound",
    "test_the_sum_is_exact_at_full_size",
    "test_many_random_problems",
    "test_longer_sums_of_all_dtypes_are_within_the_bound",
}


def _batteries():
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("test_battery_*.py")):
        module = importlib.import_module(path.stem)
        own = [f for f in vars(module).values() if getattr(f, "__module__", "") == path.stem]
        found |= {f.__name__: f for f in own if hasattr(f, "axes")}
    return found


BATTERIES = _batteries()
FAILURES = (AssertionError, RuntimeError, pytest.fail.Exception)


@pytest.fixture(autouse=True)
def _as_it_was():
    torch._dynamo.reset()  # what batteries compiled before counts towards its limits
    yield
    torch.set_flush_denormal(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_battery_has_a_row_that_it_must_fail():
    assert BATTERIES.keys() == BROKEN.keys() | APART


def test_every_row_has_a_name_of_its_own():
    names = [operator.name for operator in OPERATORS]
    assert len(names) == len(set(names)) >= 2


@pytest.mark.parametrize("name", BROKEN)
def test_a_battery_takes_up_a_new_row_and_passes_it_where_it_is_right(name):
    battery = BATTERIES[name]
    toys = [toy for toy in (broken.TOY, broken.TOY_BACKWARD) if battery.where(toy)]
    assert bool(toys) == (BROKEN[name] is not broken.WITHOUT_KERNELS)  # toys have none of their own
    if name == "test_random_problems":
        toys = [replace(toy, most=2) for toy in toys]  # for fewer of them
    for toy in toys:
        assert run(battery, toy, most=2) == min(2, len(list(rows_of(battery, toy)))) > 0


@pytest.mark.parametrize(("name", "row"), [*BROKEN.items(), *BROKEN_NORMS.items()])
def test_a_battery_fails_what_is_broken(name, row):
    assert BATTERIES[name].where(row)
    with pytest.raises(FAILURES):
        run(BATTERIES[name], row)
