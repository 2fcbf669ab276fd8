"""Markdown out of results.jsonl.

    python -m benchmarks.table WORK/results.jsonl
    python -m benchmarks.table WORK/results.jsonl --into docs/results.md

--into replaces what stands between the page's two comments, `<!-- table -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.results import Line
from benchmarks.variants import ABLATE, BRIDGING, COMPARE, DEFAULT, SOCKET_GRID, TOGETHER

Rows = dict[str, dict[int, Line]]
"""Variant -> seed -> line."""
BEST = "socket, best of grid"
BASELINES = ("source_only", "shot", "socket", BEST, "socket_tgmb", "tgmb")
ORDER = [*COMPARE, *SOCKET_GRID, BEST, *TOGETHER, *ABLATE, *BRIDGING]
BEGIN, END = "<!-- table -->", "<!-- /table -->"
NOTES = f"""\
Accuracy in per cent, mean and standard deviation (n - 1) over the seeds. A seed draws source training and adaptation anew; every
method of a seed has the same source weights. Held out: target images that nothing was adapted to. Transductive: the images adapted
to, as the papers report. Labels are seen by the evaluation alone, at the end. Seconds are the wall time of the whole process;
images/s are those through the last training loop; MiB is the process's peak of memory (of the device, where it has its own).
`tgmb` is stage 1 of the run of `{DEFAULT}`, the same model as its own run gives; seconds are that stage's.
`oracle` is trained on the target labels."""


def settled(lines: Iterable[Line]) -> tuple[dict[str, Rows], list[Line]]:
    """({data: rows}, lines that failed). Of a (data, variant, seed) the last line counts, if its settings are those of the
    variant's last line and its source weights those of the last line of (data, seed): figures of two campaigns never mix."""
    lines = list(lines)
    good = [line for line in lines if line["error"] is None]
    settings = {(line["data"], line["variant"]): line["digest"] for line in good}
    sources = {(line["data"], line["seed"]): line["source"]["sha256"] for line in good}
    found: dict[str, Rows] = {}
    for line in good:
        data, variant, seed = line["data"], line["variant"], line["seed"]
        if line["digest"] == settings[data, variant] and line["source"]["sha256"] == sources[data, seed]:
            found.setdefault(data, {}).setdefault(variant, {})[seed] = line
    last = {(line["data"], line["variant"], line["seed"]): line for line in lines}
    return found, [line for line in last.values() if line["error"] is not None]


def best_of_grid(rows: Rows) -> str | None:
    """The variant of SOCKET's grid, its published settings among it, with the best mean held-out accuracy, of those that
    have all of socket's seeds; None where no grid was run."""
    seeds = rows.get("socket", {}).keys()
    grid = [name for name in SOCKET_GRID if name in rows and rows[name].keys() >= seeds]
    if not seeds or not grid:
        return None
    return max(["socket", *grid], key=lambda name: statistics.mean(_held_out(rows[name][seed]) for seed in seeds))


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and standard deviation (n - 1); the mean alone of one value.

    >>> spread([1.0, 2.0, 3.0]), spread([1.0]), spread([])
    ('2.0 ± 1.0', '1.0', '–')
    """
    if not values:
        return "–"
    mean = format(statistics.mean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


def differences(rows: Rows, baseline: str) -> dict[int, float]:
    """Seed -> points of held-out accuracy by which the default method is better."""
    ours, theirs = rows.get(DEFAULT, {}), rows.get(baseline, {})
    return {seed: 100 * (_held_out(ours[seed]) - _held_out(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())}


def markdown(lines: Iterable[Line]) -> str:
    found, failed = settled(lines)
    parts = []
    for rows in found.values():
        if (best := best_of_grid(rows)) is not None:
            rows[BEST] = rows[best]
    for data, rows in found.items():
        parts += [f"### {data}", _caption(rows), _table(rows)]
    if len(found) > 1 and (average := _average(found)):
        parts += ["### Average over the data sets", average]
    if compared := _compared(found):
        parts += [f"### Points of held-out accuracy by which {DEFAULT} is better, by seed", compared]
    if failed:
        words = (f"- {line['data']}, {line['variant']}, seed {line['seed']}: {line['error']}" for line in failed)
        parts += ["### Failed", "\n".join(words)]
    if found:
        parts += [NOTES, _environments(found)]
    return "\n\n".join(parts or ["No run is done yet."]) + "\n"


def _held_out(line: Line, measure: str = "accuracy") -> float:
    return line["held_out"][measure]


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _label(name: str, rows: Rows) -> str:
    if name != BEST:
        return name
    of = next(iter(rows[BEST].values()))["variant"]
    return f"socket, best of grid ({of}), chosen with labels: an upper bound for the baseline"


def _table(rows: Rows) -> str:
    heads = ["method", "held out", "balanced", "transductive", "balanced", "seconds", "images/s", "peak MiB", "seeds"]
    body = []
    for name in _ordered(rows):
        lines = [rows[name][seed] for seed in sorted(rows[name])]
        shares = [
            spread([100 * line[column][measure] for line in lines if line[column] is not None])
            for column in ("held_out", "transductive")
            for measure in ("accuracy", "balanced_accuracy")
        ]
        costs = [
            spread([value for line in lines if (value := cost(line)) is not None], ".0f") for cost in (_seconds, _rate, _peak)
        ]
        body.append([_label(name, rows), *shares, *costs, str(len(lines))])
    return _grid(heads, body)


def _seconds(line: Line) -> float | None:
    seconds = line["seconds"]
    return seconds["bridging"] if line.get("part_of") else seconds["total"]


def _rate(line: Line) -> float | None:
    rates = line["images_per_s"]
    return rates.get("transferring", rates.get("bridging"))


def _peak(line: Line) -> float | None:
    peak = line["peak_mib"]
    return None if peak is None else peak["device"] or peak["host"]


def _average(found: dict[str, Rows]) -> str:
    """Of the methods that have figures on every set: for each seed the mean over the sets, then mean and deviation. Empty where
    no seed was run on every set."""
    body = []
    for name in _ordered(set.intersection(*(set(rows) for rows in found.values()))):
        seeds = sorted(set.intersection(*(set(rows[name]) for rows in found.values())))
        if not seeds:
            continue
        shares = [
            spread([100 * statistics.mean(_held_out(rows[name][seed], measure) for rows in found.values()) for seed in seeds])
            for measure in ("accuracy", "balanced_accuracy")
        ]
        body.append([name, *shares, str(len(seeds))])
    return _grid(["method", "held out", "balanced", "seeds"], body) if body else ""


def _compared(found: dict[str, Rows]) -> str:
    body = []
    for data, rows in found.items():
        for baseline in BASELINES:
            if by_seed := differences(rows, baseline):
                each = ", ".join(f"{seed}: {points:+.1f}" for seed, points in by_seed.items())
                body.append([data, _label(baseline, rows), each, spread([*by_seed.values()], "+.1f")])
    return _grid(["data", "over", "each seed", "mean"], body) if body else ""


def _caption(rows: Rows) -> str:
    lines = [line for of_variant in rows.values() for line in of_variant.values()]
    sources = {line["seed"]: line["source"] for line in lines}
    rgb = spread([100 * source["accuracy"] for source in sources.values()])
    told = {
        f"{line['settings']['bridging']['steps']} steps and {line['settings']['transfer']['epochs']} epochs" for line in lines
    }
    budget = next(iter(told)) if len(told) == 1 else f"rows of different budgets, not comparable ({'; '.join(sorted(told))})"
    return f"Source model on held-out RGB: {rgb} %. Budget: at most {budget}."


def _environments(found: dict[str, Rows]) -> str:
    told: list[str] = []
    for line in (line for rows in found.values() for of_variant in rows.values() for line in of_variant.values()):
        e = line["environment"]
        device = f"{e['gpu']}, " if e["gpu"] else ""
        words = (
            f"- {device}{e['cpu']}, {e['cores']} cores, {e['threads']} threads a run, {e['jobs']} runs at a time; Python {e['python']}, "
            f"torch {e['torch']}, {e['precision']}; commit {e['commit']}"
        )
        if words not in told:
            told.append(words)
    return "\n".join(["Measured on:", *told])


def _grid(heads: list[str], body: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *body])


def put_into(page: str, table: str) -> str:
    """Raises ValueError where the page lacks the comments."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--into", type=Path, metavar="PAGE")
    given = parser.parse_args(arguments)
    if not given.results.is_file():
        parser.error(f"{given.results} is not there")
    made = markdown(results.read(given.results))
    if given.into is None:
        print(made, end="")
    else:
        given.into.write_text(put_into(given.into.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
