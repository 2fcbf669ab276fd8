"""python -m worker.adaptation SPEC.json --out DIR [--roots DIR ...]

Runs one adaptation. Events go to stdout as JSON lines (events.py) and into DIR/events.jsonl; whatever libraries print goes
to stderr. It may run in several processes, each on a GPU (parallel.py). Exit codes: 0 with a `result` or `stopped`
event, 1 with a `failed` event. Started again with the same DIR, it goes on where it was.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from app.errors import Problem
from app.spec import AdaptationSpec
from worker.adaptation.events import Failed
from worker.adaptation.journal import Journal, added_to, say
from worker.adaptation.printing import spilling

LOCK_WAIT_S = 30.0
ANOTHER_S = 3.0
"""Where one of several processes dies, the others' calls to it fail: whoever started them has this long to end them, before they say
that it was they who failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.adaptation", description="Adapt a source model to another sensor.")
    parser.add_argument("spec", type=Path, metavar="SPEC.json", help="an AdaptationSpec")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="artifacts, events, checkpoint and cache go here")
    parser.add_argument("--roots", type=Path, nargs="+", metavar="DIR", help="data may be read below these folders alone")
    parser.add_argument("--checkpoint-every", type=float, default=30.0, metavar="SECONDS")
    given = parser.parse_args(arguments)

    descriptor = os.dup(1)
    os.dup2(2, 1)
    given.out.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")) > 0:
        return _assist(given, descriptor)
    journal = Journal(descriptor, given.out)
    journal.listen()
    try:
        with _lock(given.out):
            spec = _read(given.spec)
            from worker.adaptation.run import run  # torch takes seconds to import; SIGTERM is heard meanwhile

            journal(run(spec, given.out, journal, given.spec.resolve().parent, given.roots, given.checkpoint_every))
    except BrokenPipeError:  # the supervisor is gone: nobody would hear why
        traceback.print_exc()
        return 1
    except Exception as error:  # noqa: BLE001  every end of the process needs its `failed` event
        journal(_failed(error, given.out))
        return 1
    finally:
        journal.close()
    return 0


def _assist(given: argparse.Namespace, descriptor: int) -> int:
    """Any process of a job but the first: it works, and says nothing but what went wrong."""
    with tempfile.TemporaryDirectory() as silent, Path(os.devnull).open("wb") as nobody:
        journal = Journal(nobody.fileno(), Path(silent))
        journal.listen()
        try:
            from worker.adaptation.run import run

            run(_read(given.spec), given.out, journal, given.spec.resolve().parent, given.roots, given.checkpoint_every)
        except Exception as error:  # noqa: BLE001  as in main
            with added_to(given.out) as file:
                say(_failed(error, given.out), descriptor, file)
            return 1
        finally:
            journal.close()
    return 0


def _failed(error: Exception, folder: Path) -> Failed:
    from worker.adaptation.failures import problem_of

    problem = problem_of(error, folder)
    if problem is not error:
        traceback.print_exc()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            time.sleep(ANOTHER_S)
    return Failed(problem=problem.document())


def _read(path: Path) -> AdaptationSpec:
    try:
        return AdaptationSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Problem("reference_missing", f"{path.name}: {error.strerror}") from error
    except ValidationError as error:
        first, count = error.errors()[0], error.error_count()
        code = "unknown_field" if first["type"] == "extra_forbidden" else "invalid_request"
        pointer = first.get("ctx", {}).get("pointer") or "".join(f"/{part}" for part in first["loc"])
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise Problem(code, f"{first['msg']}{more}", pointer=pointer) from error


def _lock(folder: Path) -> IO[bytes]:
    """One process a folder. A former one that was killed may take a moment to be gone. Released when closed, or by death."""
    file = (folder / "lock").open("wb")
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > until:
                file.close()
                raise Problem("internal", f"another process works in {folder.name}/") from None
            time.sleep(0.2)


if __name__ == "__main__":
    sys.stdout = sys.stderr = spilling(2)
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)  # a group that was not left, as after a failure, may abort the process while Python takes it down
    sys.exit(code)
