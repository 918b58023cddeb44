"""The stories of examples/python that use ActivationMonitor, at small size: what they claim holds,
and each leaves its picture."""

import importlib
import itertools
import math
import statistics
import sys
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[1] / "examples" / "python"


@pytest.fixture(scope="module")
def examples():
    """Imports an example by name; they import each other, so their folder has to be on the path."""
    sys.path.insert(0, str(EXAMPLES))
    import dead_units
    import gradient_flow
    import two_pieces

    yield {"dead_units": dead_units, "gradient_flow": gradient_flow, "two_pieces": two_pieces}
    sys.path.remove(str(EXAMPLES))


class Told:
    """A story's results, computed once, and whether its command line drew and wrote them."""

    def __init__(self, example, folder, threads):
        threads(1)
        self.results = example.run(quick=True)
        self.run = example.run
        example.run = lambda quick: self.results
        self.path = folder / "made" / "picture.png"
        try:
            self.status = example.main(["--quick", "--output", str(self.path)])
        finally:
            example.run = self.run

    def is_complete(self):
        return self.status == 0 and self.path.read_bytes().startswith(b"\x89PNG")


# ---- Dead units --------------------------------------------------------------------------------


def test_dead_units_have_their_causes_and_each_cause_its_remedy(
    examples, tmp_path, threads, capsys
):
    told = Told(examples["dead_units"], tmp_path, threads)
    assert told.is_complete()
    outcomes = {key: outcome for key, [outcome] in told.results.items()}

    # Too high a rate: units that were alive die; only a lower rate keeps them.
    none = outcomes["high rate", "none"]
    assert none.dead[0] < 0.2 and none.dead[-1] > 0.5 and none.accuracy < 0.9
    lower = outcomes["high rate", "lower rate"]
    assert max(lower.dead) < 0.2 and lower.accuracy > 0.9
    assert outcomes["high rate", "better initialisation"].dead[-1] > 0.5
    assert outcomes["high rate", "learnable slopes"].diverged

    # A large negative bias: dead from the start, and no rate wakes them.
    for remedy in ("none", "lower rate"):
        outcome = outcomes["negative bias", remedy]
        assert min(outcome.dead) > 0.8 and outcome.accuracy < 0.5
    better = outcomes["negative bias", "better initialisation"]
    assert max(better.dead) < 0.2 and better.accuracy > 0.9
    slopes = outcomes["negative bias", "learnable slopes"]
    assert slopes.silent[0] > 0.8 and max(slopes.dead) == 0 and not slopes.diverged

    printed = capsys.readouterr().out
    assert "non-positive" in printed and "learnable slopes" in printed


# ---- Gradient flow -----------------------------------------------------------------------------


def test_gradients_vanish_explode_or_keep_their_size(examples, tmp_path, threads):
    told = Told(examples["gradient_flow"], tmp_path, threads)
    assert told.is_complete()
    ratio = {name: outcome.ratio for name, outcome in told.results.items()}
    assert ratio["sigmoid"] < 1e-8 and ratio["ReLU, weights × ½"] < 1e-4
    assert ratio["ReLU, weights × 2"] > 1e4
    for name in ("tanh", "ReLU", "PReLU"):
        assert 0.1 < ratio[name] < 10

    losses = {name: outcome.losses for name, outcome in told.results.items()}
    guess = math.log(3)
    for name in ("sigmoid", "ReLU, weights × ½"):
        assert abs(statistics.mean(losses[name][-20:]) - guess) < 0.05
    for name in ("tanh", "PReLU"):
        assert statistics.mean(losses[name][-20:]) < 0.7 * guess
    assert min(losses["ReLU"][-20:]) < 0.9 * guess  # it oscillates
    assert not math.isfinite(losses["ReLU, weights × 2"][-1])


# ---- Two pieces --------------------------------------------------------------------------------


def test_a_bias_moves_the_kink_a_sum_follows_a_curve_two_inputs_interact(
    examples, tmp_path, threads
):
    told = Told(examples["two_pieces"], tmp_path, threads)
    assert told.is_complete()
    results = told.results
    assert results.kinks == {7.0: -7.0, 0.0: 0.0, -4.0: 4.0}
    assert results.kinks_of_a == {-4.0: 6.0, 0.0: 0.0, 4.0: -6.0}
    errors = [(values - results.target).abs().max().item() for values in results.sums.values()]
    assert errors[0] > 2 * errors[1] and errors[1] > 4 * errors[2]
    assert results.interaction == 3.0
    assert results.interaction_of_a_line == 0.0


# ---- Times -------------------------------------------------------------------------------------


def test_repeats_that_a_busy_machine_disturbs_do_not_count(monkeypatch):
    """Calls of 1 and 2 ms by a clock of our own; most repeats find a core taken for a second."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("report", "rich", "rich.console", "rich.progress"):  # to show a table with
        monkeypatch.setitem(sys.modules, name, mock.MagicMock())
    timing = importlib.import_module("timing")
    monkeypatch.delitem(sys.modules, "timing")
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call_of(seconds):
        calls = itertools.count()

        def call():
            now[0] += seconds + (next(calls) % 3 > 0)

        return call

    times = timing.interleaved([call_of(0.001), call_of(0.002)], target=0.001)
    assert now[0] > timing.REPEATS  # more than half of them took seconds
    assert times == pytest.approx([0.001, 0.002])
