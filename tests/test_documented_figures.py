"""Figures that the README and the manual quote are those of benchmarks/results, and of the sources."""

import json
import math
import re
import statistics

import pytest
from documentation import REPOSITORY, pages

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "benchmarks" / "results"


def results(name, machine="zen3"):
    record = RESULTS / f"cpu-{machine}-2threads-{name}.json"
    return json.loads(record.read_text(encoding="utf-8"))


def table(text, heading):
    """Cells of a table's rows, by the first words of its heading."""
    lines = text[text.index(f"| {heading}") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def ratio(row, part, contender):
    seconds = row[part]["seconds"]
    return seconds[contender] / seconds["ours"]


def ratios(row):
    return (
        ratio(row, "forward", "stock"),
        ratio(row, "backward", "stock"),
        ratio(row, "step", "compile"),
    )


def rounds_to(value, shown):
    """Whether a figure is what the text shows of it."""
    digits = len(shown.partition(".")[2])
    return abs(value - float(shown)) <= 0.5001 * 10**-digits


def all_round_to(values, shown):
    return all(rounds_to(*pair) for pair in zip(values, shown, strict=True))


def layer_rows(large=False, machine="zen3"):
    rows = results("layers", machine)["rows"]
    return [row for row in rows if not large or math.prod(row["case"]["shape"]) >= 65536]


@pytest.mark.parametrize("name, shown", [(r[0], r[1:]) for r in table(BENCHMARKS, "layer |")])
def test_a_layers_figures_are_those_of_a_row_that_was_measured(name, shown):
    shape = re.search(r"\d+(?:×\d+)+", name)
    candidates = [
        row
        for row in layer_rows()
        if shape is None or row["case"]["shape"] == [int(n) for n in shape[0].split("×")]
    ]
    assert any(all_round_to(ratios(row), shown) for row in candidates)


def test_the_means_and_the_smallest_ratios_are_those_of_the_rows_that_were_measured():
    rows = layer_rows(large=True)
    assert f"on {len(rows)} layers" in README
    shown = table(README, "CPU |")
    assert ["PyTorch" in shown[0][0], "PyTorch" in shown[1][0], "compile" in shown[2][0]] == [
        True
    ] * 3
    columns = list(zip(*map(ratios, rows), strict=True))
    for ratios_of_rows, (_, mean, least) in zip(columns, shown, strict=True):
        assert rounds_to(statistics.geometric_mean(ratios_of_rows), mean)
        assert rounds_to(min(ratios_of_rows), least)


def test_the_means_with_huge_pages_and_of_norms_are_those_that_were_measured():
    text = " ".join(README.split())
    assert_means_with_huge_pages(text, "zen3")
    shown = re.search(r"our PReLU: ([\d.]+) in float32, ([\d.]+) in bfloat16", text).groups()
    assert all_round_to(norm_means("zen3"), shown)


def assert_means_with_huge_pages(text, machine):
    count, *shown = re.search(
        r"the means of the (\d+) rows from 32 MiB are ([\d.]+), ([\d.]+) and (\d+\.\d+)", text
    ).groups()
    rows = results("huge-pages", machine)["rows"]
    assert len(rows) == int(count) and min(row["bytes"] for row in rows) >= 32 << 20
    columns = zip(*map(ratios, rows), strict=True)
    assert all_round_to(map(statistics.geometric_mean, columns), shown)


def norm_means(machine):
    """Of float32 and of bfloat16, compared with PyTorch's norm and our PReLU."""
    rows = results("layers", machine)["norm_rows"]
    by_dtype = [
        [ratio(row, "step", "apart") for row in rows if row["case"]["dtype"].startswith(dtype)]
        for dtype in ("float32", "bfloat16")
    ]
    assert [len(found) for found in by_dtype] == [12, 11]
    return map(statistics.geometric_mean, by_dtype)


def test_the_figures_of_avx_512_are_those_that_were_measured():
    number = r"([\d.]*\d)"
    means, smallest, norms = (
        f"means of {number}, {number} and {number}",
        f"the smallest {number}, {number} and {number}",
        f"norms {number} in float32, {number} in bfloat16",
    )
    text = " ".join(README.split())
    text = text[text.index("(AVX-512)") :]
    columns = list(zip(*map(ratios, layer_rows(large=True, machine="zen5")), strict=True))
    assert all_round_to(map(statistics.geometric_mean, columns), re.search(means, text).groups())
    assert all_round_to(map(min, columns), re.search(smallest, text).groups())
    assert all_round_to(norm_means("zen5"), re.search(norms, text).groups())
    page = " ".join(BENCHMARKS.split())
    assert_means_with_huge_pages(page[page.index("### On AVX-512") :], "zen5")


def _assert_fused(row, shown, kept):
    seconds, saved = row["training"]["timing"]["seconds"], row["saved_bytes"]
    assert rounds_to(seconds["stock"] / seconds["fused"], shown)
    assert rounds_to(100 * saved["fused"] / saved["stock"], kept.removesuffix(" %"))


def test_the_models_of_the_readme_are_those_that_were_measured():
    rows = {row["name"]: row for row in results("models", "zen5")["rows"]}
    shown = table(README, "whole model |")
    assert len(shown) >= 5
    for name, step, fused, kept in shown:
        assert rounds_to(ratio(rows[name]["training"], "timing", "stock"), step)
        _assert_fused(rows[name], fused, kept)


def test_the_models_figures_are_those_that_were_measured():
    shown = table(BENCHMARKS, "model |")
    rows = results("models")["rows"]
    assert len(shown) == len(rows) > 0
    for row, (_, share, step, fused, inference, kept) in zip(rows, shown, strict=True):
        training = row["training"]
        assert bool(fused) == bool(kept) == bool(row["fused_norms"])
        if fused:
            _assert_fused(row, fused, kept)
        shares = [100 * training[f"{who}_prelu_share"] for who in ("stock", "ours")]
        assert all_round_to(shares, re.findall(r"[\d.]+", share))
        assert rounds_to(ratio(training, "timing", "stock"), step)
        assert rounds_to(ratio(row["inference"], "timing", "stock"), inference)


@pytest.mark.parametrize("machine", ["zen3", "zen5"])
def test_what_fusing_norms_gains_is_what_was_measured(machine):
    shown = re.findall(
        r"a step ([\d.]+) times as fast as `replace_prelu` alone \(geometric mean\), from ([\d.]+) to ([\d.]+\d)",
        " ".join(BENCHMARKS.split()),
    )[["zen3", "zen5"].index(machine)]
    rows = [row["training"] for row in results("models", machine)["rows"] if row["fused_norms"]]
    gains = [1 / ratio(row, "timing", "fused") for row in rows]
    assert len(gains) >= 5
    assert all_round_to((statistics.geometric_mean(gains), min(gains), max(gains)), shown)


def test_the_error_bound_follows_from_the_length_of_a_chain():
    """As derived in how-it-works.md: chain + 3 roundings, and less than one for what is left out."""
    sums = (REPOSITORY / "csrc" / "kernels" / "accumulator.h").read_text(encoding="utf-8")
    page = (REPOSITORY / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    chains = [int(length) for length in re.findall(r"kChain(?:<double>)? = (\d+)", sums)]
    bounds = [int(bound) for bound in re.findall(r"(\d+)\\,u", page)][:2]
    assert bounds == [16, 8]
    assert all(chain + 3 + 1 <= bound for chain, bound in zip(chains, bounds, strict=True))


def test_no_page_says_that_cuda_has_not_run_when_the_readme_does_not():
    """Which says what `make gpu-status` says: tests/test_gpu_session.py."""
    if "They have not run on a GPU yet" not in README:
        texts = {page: page.read_text(encoding="utf-8") for page in pages()}
        late = [page for page, text in texts.items() if re.search("not (been )?run (on|yet)", text)]
        assert [page for page in late if page.name != "design.md"] == []
