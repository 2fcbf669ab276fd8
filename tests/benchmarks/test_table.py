"""The figures of the tables, by hand."""

from __future__ import annotations

import pytest

from benchmarks import results, table
from tests.benchmarks.conftest import line


def cells(markdown: str, heading: str, first: str) -> list[str]:
    """The cells after `first` in the first row that begins with it, below the heading."""
    part = markdown.partition(f"### {heading}\n")[2]
    row = next(row for row in part.splitlines() if row.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.split("|")[2:-1]]


def two_sets() -> list[dict]:
    """Held out: on a, ours 0.60 0.70 0.80 and socket 0.50 0.60 0.40; on b, ours 0.40 0.40 0.40 and socket 0.50 0.50 0.50."""
    ours = {"a": (0.6, 0.7, 0.8), "b": (0.4, 0.4, 0.4)}
    theirs = {"a": (0.5, 0.6, 0.4), "b": (0.5, 0.5, 0.5)}
    return [
        line(data, variant, seed, value)
        for variant, of in (("tgmb_tgkt", ours), ("socket", theirs))
        for data, values in of.items()
        for seed, value in enumerate(values)
    ]


def test_mean_and_standard_deviation_are_over_the_seeds():
    made = table.markdown(two_sets())
    assert cells(made, "a", "tgmb_tgkt") == [
        "70.0 ± 10.0",
        "35.0 ± 5.0",
        "25.0 ± 0.0",
        "25.0 ± 0.0",
        "10 ± 0",
        "100 ± 0",
        "500 ± 0",
        "3",
    ]
    assert cells(made, "b", "socket")[0] == "50.0 ± 0.0"


def test_the_average_is_over_the_sets_seed_by_seed():
    """ours: 50, 55, 60; socket: 50, 55, 45."""
    made = table.markdown(two_sets())
    assert cells(made, "Average over the data sets", "tgmb_tgkt")[0] == "55.0 ± 5.0"
    assert cells(made, "Average over the data sets", "socket")[0] == "50.0 ± 5.0"


def test_a_method_that_one_set_lacks_is_not_averaged():
    made = table.markdown([*two_sets(), line("a", "shot", 0, 0.9)])
    assert "shot" not in made.partition("### Average")[2].partition("###")[0]


def test_sets_with_no_seed_in_common_have_no_average():
    assert "Average" not in table.markdown([line("a", "socket", 0, 0.5), line("b", "socket", 1, 0.5)])


def test_differences_are_of_the_same_seed():
    """On a: +10, +10, +40: mean 20, deviation sqrt((100 + 100 + 400) / 2) = 17.3."""
    made = table.markdown(two_sets())
    row = next(row for row in made.splitlines() if row.startswith("| a | socket |"))
    assert row == "| a | socket | 0: +10.0, 1: +10.0, 2: +40.0 | +20.0 ± 17.3 |"
    without_seed_1 = [one for one in two_sets() if (one["variant"], one["seed"]) != ("socket", 1)]
    assert "| a | socket | 0: +10.0, 2: +40.0 | +25.0 ± 21.2 |" in table.markdown(without_seed_1)


def test_the_best_of_sockets_grid_is_named_as_chosen_with_labels():
    name = next(iter(table.SOCKET_GRID))
    grid = [line("a", name, seed, value) for seed, value in enumerate((0.5, 0.9, 0.7))]
    made = table.markdown([*two_sets(), *grid])
    best = next(row for row in made.splitlines() if row.startswith("| socket, best of grid"))
    assert f"({name}), chosen with labels" in best and "| 70.0 ± 20.0 |" in best
    published_is_better = table.markdown(
        [*two_sets(), *(one | {"held_out": {"accuracy": 0.1, "balanced_accuracy": 0.1}} for one in grid)]
    )
    assert "socket, best of grid (socket)" in published_is_better


def test_a_grid_with_fewer_seeds_than_socket_is_not_chosen():
    name = next(iter(table.SOCKET_GRID))
    assert "best of grid" not in table.markdown([*two_sets(), line("a", name, 0, 0.99)])


def test_figures_of_other_settings_or_other_source_weights_do_not_mix():
    older_settings = [line("a", "tgmb_tgkt", seed, 0.0, digest="d0") for seed in range(5)]
    older_source = line("a", "shot", 0, 0.0, source={"sha256": "before", "accuracy": 0.1, "balanced_accuracy": 0.1})
    made = table.markdown([*older_settings, older_source, *two_sets()])
    assert cells(made, "a", "tgmb_tgkt")[0] == "70.0 ± 10.0"
    assert "| shot |" not in made
    assert "Source model on held-out RGB: 80.0 ± 0.0 %" in made


def test_rows_of_different_budgets_are_told():
    other = {"bridging": {"steps": 600}, "transfer": {"epochs": 2}}
    assert "different budgets" not in table.markdown(two_sets())
    assert "different budgets" in table.markdown([*two_sets(), line("a", "shot", settings=other)])


def test_what_is_not_there_is_a_dash_and_what_failed_is_told():
    oracle = line("a", "oracle", transductive=None, peak_mib=None)
    failed = line("a", "shot", 1, error="training_diverged: L_IM is nan")
    made = table.markdown([*two_sets(), oracle, failed])
    assert cells(made, "a", "oracle")[2:4] == ["–", "–"] and cells(made, "a", "oracle")[6] == "–"
    assert "- a, shot, seed 1: training_diverged: L_IM is nan" in made
    for digest in ("d1", "other settings"):
        assert "Failed" not in table.markdown([*two_sets(), failed, line("a", "shot", 1, digest=digest)])


def test_the_command_puts_the_tables_between_the_pages_comments(tmp_path):
    path, page = tmp_path / "results.jsonl", tmp_path / "results.md"
    results.append(path, two_sets())
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    assert table.main([str(path), "--into", str(page)]) == 0
    assert "old" not in page.read_text() and page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    once = page.read_text()
    table.main([str(path), "--into", str(page)])
    assert page.read_text() == once and table.markdown(two_sets()) in once
    with pytest.raises(ValueError, match="lacks"):
        table.put_into("no comments", "table")


def test_without_a_finished_run_there_is_no_empty_table():
    assert table.markdown([]) == "No run is done yet.\n"
    made = table.markdown([line(error="disk_full: no room")])
    assert "disk_full" in made and "Measured on" not in made and "| method |" not in made
