"""Runs a table of variants over data sets and seeds, several at a time, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from benchmarks import results, sheet, source_models, table
from benchmarks.datasets import DATASETS, VARIABLE, Dataset, MissingDataError
from benchmarks.environment import cores
from benchmarks.runs import Run, execute, tidy
from benchmarks.runs import going as runs_going
from benchmarks.variants import DEFAULT, Variant

QUICK = {"source_epochs": 3, "steps": 60, "epochs": 2}


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get(VARIABLE)
    made.add_argument("--data", nargs="+", required=True, choices=DATASETS)
    made.add_argument(
        "--root",
        type=Path,
        default=Path(root) if root else None,
        help=f"the folder of nyu/, drone_ir/ and weights/; or {VARIABLE}",
    )
    made.add_argument(
        "--work", type=Path, default=Path("var/benchmarks"), help="where everything is kept (default: var/benchmarks)"
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    made.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="the same for every run, so that runs compare"
    )
    made.add_argument("--steps", type=int, help="of stage 1, in place of the set's own")
    made.add_argument("--epochs", type=int, help="of stage 2, in place of the set's own")
    made.add_argument(
        "--quick",
        action="store_true",
        help="a few minutes: a budget that shows that it runs, not what it gains; kept apart in WORK/quick",
    )
    return made


def carry_out(variants: Mapping[str, Variant], given: argparse.Namespace) -> int:
    """The exit code: 0; 1 where a run failed; 2 where data are missing."""
    work = given.work.resolve() / ("quick" if given.quick else "")
    try:
        datasets = [_budget(DATASETS[name](given.root, given.work.resolve()), given) for name in given.data]
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    planned = plan(variants, datasets, given.seeds, given.precision, work)
    log = work / "results.jsonl"
    missing = to_do(planned, results.done(results.read(log)))
    _say(f"{len(planned) - len(missing)} of {len(planned)} rows are there, or come with another; {len(missing)} runs to do")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = run_all(missing, log, given.jobs)
    except KeyboardInterrupt:
        _say("Stopped. The same command goes on from here.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    table_file = log.with_suffix(".md")
    table_file.write_text(table.markdown(results.read(log)), encoding="utf-8")
    for made in _sheets(planned, work):
        _say(f"picture sheet: {made}")
    print(table_file.read_text(encoding="utf-8"))
    return 1 if failed else 0


def plan(
    variants: Mapping[str, Variant], datasets: Sequence[Dataset], seeds: Sequence[int], precision: str, work: Path
) -> list[Run]:
    """Every row, a seed after the other, so that early figures are of all. Trains the source classifiers that are missing."""
    sources = {}
    for seed in seeds:
        for dataset in datasets:
            _say(f"{dataset.name}, seed {seed}: the source classifier")
            source = source_models.source(dataset, seed, work / "sources" / dataset.name)
            _say(f"{dataset.name}, seed {seed}: {source.accuracy:.1%} on held-out RGB")
            sources[dataset.name, seed] = source
    return [
        Run(dataset, name, variant, seed, sources[dataset.name, seed], precision, work, others if variant.together else ())
        for seed in seeds
        for dataset in datasets
        for others in [tuple(sources[dataset.name, other] for other in seeds if other != seed)]
        for name, variant in variants.items()
        if others or not variant.together
    ]


def to_do(planned: Sequence[Run], done: set[results.Key]) -> list[Run]:
    """Those whose row is neither there nor given by another of them."""
    missing = [run for run in planned if results.key(run.head()) not in done]
    given_besides = {(run.dataset.name, name, run.seed) for run in missing for name in run.variant.also}
    return [run for run in missing if (run.dataset.name, run.name, run.seed) not in given_besides]


def run_all(runs: Sequence[Run], log: Path, jobs: int) -> int:
    """How many failed. Each is told on stderr and written to `log` as it ends."""
    failed, began = 0, time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        going = {pool.submit(execute, run, max(1, cores() // jobs), jobs): run for run in runs}
        try:
            for count, future in enumerate(as_completed(going), 1):
                run, lines = going[future], future.result()
                results.append(log, lines)
                error = lines[0]["error"]
                failed += error is not None
                if error is None:
                    tidy(run)
                outcome = f"failed: {error}" if error else f"{lines[0]['held_out']['accuracy']:.1%} held out"
                _say(
                    f"[{count}/{len(runs)}, {time.monotonic() - began:.0f} s] {run.dataset.name}, {run.name}, seed {run.seed}: {outcome}"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(runs_going):
                process.terminate()
            raise
    return failed


def _budget(dataset: Dataset, given: argparse.Namespace) -> Dataset:
    wanted = {name: value for name in ("steps", "epochs") if (value := getattr(given, name)) is not None}
    return replace(dataset, **((QUICK if given.quick else {}) | wanted))


def _sheets(planned: Sequence[Run], work: Path) -> list[Path]:
    """One a data set, of the default method's first seed, beside results.jsonl."""
    made = []
    for run in planned:
        path = work / f"sheet-{run.dataset.name}.png"
        whole = (run.folder() / "out/artifacts/translator.safetensors").is_file()
        if run.name == DEFAULT and whole and path not in made:
            sheet.draw(run.folder(), path)
            made.append(path)
    return made


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
