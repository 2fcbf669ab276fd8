"""make demo: from an RGB classifier to a depth classifier, over HTTP, on this machine, with nothing but this repository."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import save_file

from demo import held_out, processes, source, splits

console = Console()
STEPS, EPOCHS = 300, 8
"""Of the two stages: what two CPU cores can do in three minutes."""
SCALING = {"kind": "millimetres", "high": 5000}
"""The rooms are at most 5 m deep."""


def prepare(folder: Path, seed: int) -> tuple[Path, float]:
    """Scenes and a source classifier: its weights, and its accuracy on held-out RGB. The labelled RGB that trained it is
    gone afterwards, so the job cannot have seen it."""
    weights, kept = folder / "source.safetensors", folder / "source.json"
    made_of = splits.digest(seed, "source_rgb") + hashlib.sha256(Path(source.__file__).read_bytes()).hexdigest()
    if kept.is_file() and weights.is_file() and json.loads(kept.read_text())["made_of"] == made_of:
        known = json.loads(kept.read_text())
        for split in ("target", "pairs", "test"):
            splits.prepare(folder, seed, split)
        console.print("Scenes and source classifier are there from an earlier run.")
        return weights, known["rgb_accuracy"]
    with bar() as progress:
        say("Rendering rooms, RGB and depth")
        task = progress.add_task("Rendering rooms, RGB and depth", total=sum(splits.COUNTS.values()), note="")
        for split, count in splits.COUNTS.items():
            if splits.is_ready(folder, seed, split):
                progress.advance(task, count)
            splits.prepare(folder, seed, split, advance=lambda: progress.advance(task))
        images, labels = source.read_labelled(folder / "source_rgb", splits.CLASSES)
        how = source.Training()
        steps = how.epochs * (len(images) // how.batch_size)
        say("Training the source classifier on labelled RGB")
        task = progress.add_task("Training the source classifier on labelled RGB", total=steps, note="")
        model = source.train(images, labels, len(splits.CLASSES), seed, how, advance=lambda: progress.advance(task))
    rgb_accuracy = source.accuracy(model, *source.read_labelled(folder / "test" / "rgb", splits.CLASSES))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    kept.write_text(json.dumps({"made_of": made_of, "rgb_accuracy": rgb_accuracy}))
    shutil.rmtree(folder / "source_rgb")
    console.print("The labelled RGB images are deleted: nothing after this has seen them.")
    return weights, rgb_accuracy


def request(folder: Path, seed: int) -> dict[str, Any]:
    return {
        "name": "demo: rooms, RGB to depth",
        "source_model": source.description(splits.CLASSES),
        "data": {
            "target": {"uri": f"file://{folder}/target", "modality": "depth", "scaling": SCALING},
            "pairs": {"uri": f"file://{folder}/pairs", "scaling": SCALING},
        },
        "settings": {"bridging": {"steps": STEPS}, "transfer": {"epochs": EPOCHS}},
        "seed": seed,
    }


def bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console)


def say(step: str) -> None:
    """Where nobody sees a bar, because the output goes into a file."""
    if not console.is_terminal:
        console.print(step)


def submit(client: httpx.Client, weights: Path, wanted: dict[str, Any]) -> str:
    with weights.open("rb") as file:
        parts = {"request": (None, json.dumps(wanted), "application/json"), "source_model": (weights.name, file)}
        answer = client.post("/jobs", files=parts)
    if answer.status_code != 202:
        raise RuntimeError(f"the service refused the job: {answer.text}")
    return answer.headers["location"]


def follow(client: httpx.Client, address: str) -> dict[str, Any]:
    """Polls with If-None-Match and ?wait until the job is in a final state; a bar shows its progress."""
    etag, said = "", ""
    with bar() as progress:
        task = progress.add_task("Adapting: waiting for a worker", total=100, note="")
        while True:
            answer = client.get(address, params={"wait": 5}, headers={"If-None-Match": etag}, timeout=30)
            if answer.status_code == 304:
                continue
            job = answer.raise_for_status().json()
            etag = answer.headers["etag"]
            if job["status"] in ("succeeded", "failed", "cancelled"):
                progress.update(task, completed=100, description=f"Adapting: {job['status']}", note="")
                return job
            if told := job["progress"]:
                eta = f", {told['eta_s']:.0f} s left" if told["eta_s"] is not None else ""
                losses = " ".join(f"{name} {value:.3f}" for name, value in told["losses"].items())
                note = f"step {told['step']} of {told['of']}{eta}  {losses}"
                progress.update(task, completed=100 * told["fraction"], note=note)
            step = f"Adapting: {job['phase'] or job['status']}"
            progress.update(task, description=step)
            if step != said:
                say(step)
                said = step


def download(client: httpx.Client, address: str, to: Path) -> Path:
    """model.safetensors, checked against the sha256 that the service gives."""
    digest = hashlib.sha256()
    with client.stream("GET", address + "/model") as answer, to.open("wb") as file:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            digest.update(chunk)
            file.write(chunk)
        promised = answer.headers["etag"].strip('"')
    if digest.hexdigest() != promised:
        raise RuntimeError(f"the download's sha256 is {digest.hexdigest()}, the service gave {promised}")
    return to


def run(folder: Path, seed: int, keep: bool) -> None:
    began = time.monotonic()
    weights, rgb_accuracy = prepare(folder, seed)
    prepared = time.monotonic()
    with processes.service(folder / "service", [folder]) as url, httpx.Client(base_url=url, timeout=60) as client:
        console.print(f"The service listens at {url}; its logs are in {folder / 'service'}.")
        address = submit(client, weights, request(folder, seed))
        job = follow(client, address)
        if job["status"] != "succeeded":
            raise RuntimeError(f"the job ended as {job['status']}: {json.dumps(job['error'], indent=1)}")
        adapted = download(client, address, folder / "adapted.safetensors")
        card = client.get(f"{address}/artifacts/model.json").raise_for_status().json()
        (folder / "report.html").write_bytes(client.get(f"{address}/artifacts/report.html").raise_for_status().content)
        inputs, labels = held_out.read_depth(folder / "test" / "depth", card)
        as_it_is, after = (held_out.accuracy(held_out.load(file, card), inputs, labels) for file in (weights, adapted))
        ended = time.monotonic()

        table = Table(title=f"Accuracy on {len(labels)} held-out labelled images, {len(card['classes'])} classes, seed {seed}")
        for heading in ("model", "images", "accuracy"):
            table.add_column(heading, justify="right" if heading == "accuracy" else "left")
        table.add_row("source model", "RGB", f"{rgb_accuracy:.1%}")
        table.add_row("source model as it is", "depth", f"{as_it_is:.1%}")
        table.add_row("adapted model", "depth", f"{after:.1%}", style="bold")
        console.print(table)
        console.print(f"Gained: {100 * (after - as_it_is):+.1f} points. Verdict without labels: {job['result']['verdict']}.")
        console.print(
            f"Took {ended - began:.0f} s: {prepared - began:.0f} s to prepare, {ended - prepared:.0f} s for the service."
        )
        figures = {
            "seed": seed, "source_rgb": rgb_accuracy, "source_depth": as_it_is, "adapted_depth": after,
            "verdict": job["result"]["verdict"], "prepare_s": round(prepared - began), "service_s": round(ended - prepared),
        }  # fmt: skip
        (folder / "figures.json").write_text(json.dumps(figures))
        console.print(f"Adapted model: {adapted}")
        console.print(f"Report:        {folder / 'report.html'}")
        if keep:
            console.print(
                f"               {url}{address}/artifacts/report.html\nDashboard:     {url}/dashboard{address}\n"
                f"API's page:    {url}/docs\nCtrl-C ends the service."
            )
            signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="where everything is kept (default: var/demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        default=sys.stdin.isatty(),
        help="leave the service running afterwards, until Ctrl-C (default: at a terminal)",
    )
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run(folder, given.seed, given.keep)
    except KeyboardInterrupt:
        console.print("Stopped; every process that was started has ended.")
        sys.exit(130)
    except RuntimeError as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(1)


if __name__ == "__main__":
    main()
