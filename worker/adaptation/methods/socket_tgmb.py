"""socket_tgmb: SOCKET on T(x) in place of x. Shows which half of the method earns the gain: the translator or the transfer."""

from __future__ import annotations

from app.spec import AdaptationSpec
from worker.adaptation.events import Phase
from worker.adaptation.job import Adapted, Job
from worker.adaptation.methods import socket, tgmb


def work(spec: AdaptationSpec, target: int, pairs: int) -> dict[Phase, float]:
    return tgmb.work(spec, target, pairs) | socket.work(spec, target, pairs)


def adapt(job: Job) -> Adapted:
    T = tgmb.train(job)
    return Adapted(socket.train(job, feed=T), T, translated=True)
