"""python -m worker.adaptation.trial N

Computes something on each of the N CUDA devices that a job of N processes would take, as such a job's processes do before they begin.
Exit code 0; or 1, and to stderr why not.
"""

from __future__ import annotations

import os
import sys

from app.errors import Problem
from worker.adaptation import device


def main(processes: int) -> None:
    """Raises SystemExit with the reason."""
    for place in range(processes):
        os.environ["LOCAL_RANK"] = str(place)
        try:
            device.choose("cuda")
        except Problem as problem:
            raise SystemExit(problem.detail) from problem


if __name__ == "__main__":
    main(int(sys.argv[1]))
