"""Engines built on the workers of a Dask cluster (dask.distributed), each on a worker that says it can build it."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker, LocalCluster

from vditc.build_memory import available_memory, gigabytes
from vditc.errors import InputError, VditcError
from vditc.files import room_for
from vditc.pipeline.cluster_worker import (
    GPU,
    MEMORY,
    all_sent,
    build_on_worker,
    drop_folder,
    get_piece,
    own_resources,
    put_piece,
    wanted_resources,
)
from vditc.pipeline.local_builds import Event, Order

LOCAL = "local:"
WAIT = 60.0  # seconds without a worker that can build it, after which a job fails
_CONNECT = 30  # seconds
_POLL = 0.2
_PIECE = 8 << 20  # bytes in one message


class ClusterBuilds:
    """Builds on the workers of the scheduler at `address`, or on N new processes of this machine for "local:N".

    `send`: files go to the workers and back in pieces; without it, every worker sees the bundle's folder under the same path.
    """

    def __init__(self, address: str, note: Callable[[str], None], *, send: bool = False, wait: float = WAIT) -> None:
        self.address, self.note, self.send, self.wait = address, note, send, wait
        self.local = _workers(address) if address.startswith(LOCAL) else None

    def run(self, orders: list[Order]) -> Generator[Event]:
        """See `vditc.pipeline.local_builds.Builds`. A worker that is lost is Dask's business: another one builds."""
        if not orders:
            return
        with contextlib.ExitStack() as stack:
            yield from _Run(self, orders, self._client(stack)).events()

    def _client(self, stack: contextlib.ExitStack) -> Client:
        if self.local is not None:
            return stack.enter_context(Client(stack.enter_context(_local_cluster(self.local))))
        try:
            return stack.enter_context(Client(self.address, timeout=_CONNECT))
        except (OSError, ValueError, TimeoutError) as error:
            raise VditcError(
                found=f"no answer ({error})",
                wanted="a Dask scheduler",
                where=f"--cluster {self.address}",
                fix="start one with `dask scheduler`, and workers with `vditc worker`; --cluster local:2 needs neither",
            ) from error


class _Run:
    """One command: the jobs that were given to the scheduler and have not ended."""

    def __init__(self, builds: ClusterBuilds, orders: list[Order], client: Client) -> None:
        self.builds, self.orders, self.client, self.note = builds, orders, client, builds.note
        self.futures: dict[str, tuple[Order, Future]] = {}
        self.since: dict[str, float] = {}  # key -> when it was first seen without a worker for it
        self.seen = 0
        self.token = f"vditc-{uuid.uuid4().hex[:8]}"
        self.given = 0

    def events(self) -> Generator[Event]:
        """Until every job has ended; those of a command that ends early are taken back."""
        try:
            while self.orders or self.futures:
                self._give()
                yield from self._begun()
                for key, (order, future) in list(self.futures.items()):
                    if future.done():
                        del self.futures[key]
                        yield self._ended(order, future)
                    elif (why := self._hopeless(key, order)) is not None:
                        del self.futures[key]
                        future.cancel(force=True)
                        yield Event(order, "", {"error": why})
                time.sleep(_POLL)
        finally:
            self.client.cancel([future for _, future in self.futures.values()], force=True)

    def _give(self) -> None:
        """All orders that there are to the scheduler."""
        while self.orders:
            order, key = self.orders.pop(0), f"{self.token}-{self.given}"
            self.given += 1
            self.futures[key] = order, self._submit(key, order)

    def _submit(self, key: str, order: Order) -> Future:
        return self.client.submit(
            build_on_worker,
            order.request.to_json(),
            key,
            self.builds.send,
            key=key,
            pure=False,
            retries=0,
            resources=wanted_resources(order.target, order.memory),
        )

    def _begun(self) -> Generator[Event]:
        events = self.client.get_events(self.token)
        for number, (_, said) in enumerate(events):
            if number >= self.seen and said["key"] in self.futures:
                order, _ = self.futures[said["key"]]
                yield Event(order, said["where"])
                if self.builds.send:
                    self._put(order, said)
        self.seen = len(events)

    def _put(self, order: Order, said: Mapping[str, Any]) -> None:
        """The files of an order to the worker that has begun it. One that is lost meanwhile begins elsewhere."""
        root, folder = Path(order.request.root), said["folder"]
        with contextlib.suppress(OSError, KeyError, ValueError):
            for name in order.request.inputs:
                with (root / name).open("rb") as file:
                    offset = 0
                    while (piece := file.read(_PIECE)) or not offset:
                        self.client.run(put_piece, folder, name, offset, piece, workers=[said["worker"]])
                        offset += len(piece)
                        if not piece:
                            break
            self.client.run(all_sent, folder, workers=[said["worker"]])

    def _ended(self, order: Order, future: Future) -> Event:
        if future.status != "finished":
            error = future.exception() if future.status == "error" else None
            if isinstance(error, KilledWorker):
                return Event(order, "", {"error": f"{error}; its workers probably had too little memory"})
            return Event(order, "", {"error": f"found {error or future.status} on the cluster; wanted an engine"})
        result = dict(future.result())
        if self.builds.send and "error" not in result:
            try:
                self._get(order, result)
            except (VditcError, OSError, KeyError, ValueError) as error:
                result = {**result, "error": f"the engine did not come back from {result['where']} ({error}); --retry-failed"}
        return Event(order, result["where"], result)

    def _get(self, order: Order, result: Mapping[str, Any]) -> None:
        """The engine's files from the worker; who takes the event checks their hashes."""
        out, worker = Path(order.request.root) / order.request.out, result["worker"]
        out.mkdir(parents=True)
        with room_for(out / "all", sum(about["bytes"] for about in result["files"].values())):
            for name, about in result["files"].items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                with (out / name).open("wb") as file:
                    while (offset := file.tell()) < about["bytes"]:
                        place = f"{order.request.out}/{name}"
                        piece = self.client.run(get_piece, result["folder"], place, offset, _PIECE, workers=[worker])[worker]
                        if not piece:
                            raise ValueError(f"{name} ends after {offset} bytes")
                        file.write(piece)
        self.client.run(drop_folder, result["folder"], workers=[worker])

    def _hopeless(self, key: str, order: Order) -> str | None:
        """Why no worker can build it, when that has been so for long."""
        wanted = wanted_resources(order.target, order.memory)
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        if any(all(worker["resources"].get(name, 0) >= count for name, count in wanted.items()) for worker in workers):
            self.since.pop(key, None)
            return None
        if time.monotonic() - self.since.setdefault(key, time.monotonic()) < self.builds.wait:
            return None
        has = "; ".join(sorted({_words(worker["resources"]) for worker in workers})) or "no workers at all"
        return (
            f"found {len(workers)} workers, none that can build it ({has}); wanted {_words(wanted)} for {self.builds.wait:g} s; "
            "start one with `vditc worker` where the target's GPU and runtime are"
        )


def _local_cluster(workers: int) -> LocalCluster:
    """Of processes that share this machine's memory; the first one has the GPU."""
    own = own_resources()
    share = {**own, MEMORY: available_memory() // workers}
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=True, resources=share, memory_limit=0, dashboard_address=None)
    others = {name: count for name, count in share.items() if name != GPU}
    cluster.new_spec = {**cluster.new_spec, "options": {**cluster.new_spec["options"], "resources": others}}
    cluster.scale(workers)
    return cluster


def _words(resources: Mapping[str, float]) -> str:
    """Resources for people."""
    named = [name for name in resources if name != MEMORY]
    return " ".join([*named, *([gigabytes(int(resources[MEMORY]))] if MEMORY in resources else [])]) or "nothing"


def _workers(address: str) -> int:
    text = address.removeprefix(LOCAL)
    if not text.isdigit() or int(text) < 1:
        raise InputError(found=address, wanted="local:N with N from 1", where="--cluster", fix="write local:2, or a scheduler's address")
    return int(text)
