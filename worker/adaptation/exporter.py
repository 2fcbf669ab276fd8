"""python -m worker.adaptation.exporter FORMAT FOLDER

Writes FOLDER/graph.pt, a module, as torch_export or onnx, loads what it has written, and answers FOLDER/images.npy with it, in
FOLDER/logits.npy. A process of its own, so that an exporter that crashes, or takes all memory, ends nothing else. Exit code 1:
why.json says why not. It ends when its standard input does, which its parent holds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from app.spec import FORMATS
from worker.adaptation.failures import first_line, problem_of

OPSET = 18
"""Of ONNX: the first that torch's exporter knows, so that as many runtimes as can be read the file."""
LARGEST_WHOLE = 2**31 - 2**27
"""Bytes of weights that an ONNX file holds: protobuf ends at 2 GiB. Larger ones lie beside it, in model.onnx.data."""
BATCH = 21
Answer = Callable[[np.ndarray], np.ndarray]
"""Images [n, C, H, W] to logits [n, K]."""


def write_torch_export(graph: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    torch.export.save(_program(graph, shape), path)


def read_torch_export(path: Path) -> Answer:
    graph = torch.export.load(path).module()
    return lambda images: graph(torch.from_numpy(images)).numpy()


def write_onnx(graph: nn.Module, shape: tuple[int, ...], path: Path, largest_whole: int = LARGEST_WHOLE) -> None:
    program = torch.onnx.export(
        _program(graph, shape),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        verbose=False,
    )
    nodes = program.model.graph.all_nodes()
    for described in (program.model, program.model.graph, *nodes):
        described.metadata_props.clear()  # of which line of which file on this machine each node is
    weights = sum(x.numel() * x.element_size() for x in (*graph.parameters(), *graph.buffers()))
    program.save(path, external_data=weights > largest_whole)


def read_onnx(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # unsaid, it binds threads to cores, which a container may forbid
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


WAYS = {"torch_export": (write_torch_export, read_torch_export), "onnx": (write_onnx, read_onnx)}


def _program(graph: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """With any number of images. The example is zeros: it stays in the file."""
    example = torch.zeros(2, *shape[1:])
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine
    return program


def batches(n: int) -> Iterator[slice]:
    """One image alone, then many: any number of images is to work."""
    yield slice(0, 1)
    yield from (slice(start, min(start + BATCH, n)) for start in range(1, n, BATCH))


@torch.no_grad()
def export(format: str, folder: Path) -> None:
    write, read = WAYS[format]
    # By this job's own process, a moment ago; no file of a client's is read in this way.
    graph = torch.load(folder / "graph.pt", weights_only=False)
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    path = folder / FORMATS[format]
    write(graph, images.shape, path)
    del graph
    answer = read(path)
    logits = [answer(np.array(images[part])) for part in batches(len(images))]
    np.save(folder / "logits.npy", np.concatenate(logits), allow_pickle=False)


def _end_with_parent() -> None:
    os.read(0, 1)  # not by sys.stdin, whose lock this thread would hold when the interpreter ends
    os._exit(2)


def main(format: str, folder: Path) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        export(format, folder)
    except Exception as error:  # noqa: BLE001  an exporter may raise anything, and the parent is to know what
        traceback.print_exc()
        problem = problem_of(error, folder)
        why = {"code": problem.code, "detail": first_line(problem.detail.replace(str(folder), ""))}
        (folder / "why.json").write_text(json.dumps(why), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
