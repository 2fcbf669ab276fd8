"""python -m demo.screenshots: takes the pictures of docs/screenshots anew, of the demo's own rooms. Needs Chromium (`make browser`)."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from demo import __main__ as demo
from demo import processes

TO = Path(__file__).parents[1] / "docs" / "screenshots"
WIDTH, HEIGHT = 1120, 780
SHOWN_STEPS = 50
"""Of the running job, so that it has curves."""


def jobs(folder: Path, steps: int, epochs: int, batch_size: int) -> list[dict[str, Any]]:
    """Two to compare, each with labels to measure by; one to be caught while it runs, one while it waits, and one to be cancelled."""
    asked = demo.request(folder, 0)
    asked["data"]["evaluation"] = {"uri": f"file://{folder}/test/depth"}
    bridging = {"steps": steps, "validate_every": 10, "batch_size": batch_size}
    settings = {"bridging": bridging, "transfer": {"epochs": epochs, "batch_size": batch_size}}
    first = asked | {"name": "rooms, RGB to depth", "labels": {"site": "rooms"}, "settings": settings}
    second = first | {"name": "rooms, without L_feat", "settings": settings | {"weights": {"feat": 0.0}}}
    third = first | {"name": "rooms, longer", "settings": settings | {"bridging": bridging | {"steps": 2000}}}
    fourth, fifth = first | {"name": "rooms, another seed", "seed": 1}, first | {"name": "rooms, by mistake"}
    return [first, second, third, fourth, fifth]


def over(client: httpx.Client, address: str) -> None:
    """Once the job has succeeded. Raises RuntimeError if it ended otherwise."""
    while (job := client.get(address, params={"wait": 30}).json())["status"] not in ("succeeded", "failed", "cancelled"):
        pass
    if job["status"] != "succeeded":
        raise RuntimeError(f"{job['id']} {job['status']}: {job['error']}")


def take(browser: Browser, url: str, pages: dict[str, str]) -> None:
    TO.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT})  # type: ignore[arg-type]
        page = context.new_page()
        for name, address in pages.items():
            page.goto(url + address)
            figures = page.locator("#curves > figure").count()
            while page.locator("#curves canvas").count() < figures:
                page.wait_for_timeout(100)
            path = TO / f"{name}-{scheme}.png"
            page.screenshot(path=path, full_page=name in ("job", "compare"))
            shrink(path)
        context.close()


def shrink(path: Path) -> None:
    """To 256 colours, which is enough for a page and its pictures: a third of the bytes."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.screenshots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="the demo's (default: var/demo)")
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--epochs", type=int, default=demo.EPOCHS)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    weights, _ = demo.prepare(folder, 0)
    data_dir = folder / "screenshots"
    shutil.rmtree(data_dir, ignore_errors=True)
    with processes.service(data_dir, [folder]) as url, httpx.Client(base_url=url, timeout=60) as client:
        addresses = [demo.submit(client, weights, asked) for asked in jobs(folder, given.steps, given.epochs, given.batch_size)]
        client.post(f"{addresses[4]}/cancel").raise_for_status()
        for address in addresses[:2]:
            over(client, address)
        while ((client.get(addresses[2]).json()["progress"] or {}).get("step") or 0) < SHOWN_STEPS:
            time.sleep(1)
        done, other, running = (address.rpartition("/")[2] for address in addresses[:3])
        pages = {
            "jobs": "/dashboard/jobs",
            "job": f"/dashboard/jobs/{done}",
            "running": f"/dashboard/jobs/{running}",
            "compare": f"/dashboard/compare?job={done}&job={other}",
            "new": f"/dashboard/jobs/new?like={other}",
            "workers": "/dashboard/workers",
        }
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            take(browser, url, pages)
            browser.close()


if __name__ == "__main__":
    main()
