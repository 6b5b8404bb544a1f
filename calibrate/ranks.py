"""Several processes at one job, as torchrun starts them: who does what, what they tell rank 0, and an error of one that ends all.

Bytes go over gloo, never through pickle. Statistics and clips lie in the host's memory, so this is the same with and without GPUs.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

import vditc.errors
from vditc.errors import InputError, VditcError

_PIECE = 64 << 20  # bytes of one message
_FOREVER = datetime.timedelta(days=30)  # a rank waits for the clips of the others, which may take days
_PAUSE = 0.02  # seconds between two looks at the store


class Ranks:
    """This process among `size`."""

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0, store: Store | None = None) -> None:
        """`local`: number on its machine. `store`: what all of them see."""
        self.rank, self.size, self.local, self._store = rank, size, local, store
        self._meetings = self._groups = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which merges and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` parts are this rank's."""
        return range(self.rank, count, self.size)

    def device(self, name: str) -> str:
        """`auto` and `cuda` are a GPU for each rank of a machine, as far as there are GPUs."""
        gpus = torch.cuda.device_count()
        return f"cuda:{self.local % gpus}" if self.size > 1 and gpus and name in ("auto", "cuda") else name

    def look(self) -> None:
        """Raise the error of another rank, if there is one."""
        if self._store is not None and self._store.check(["error"]):
            told = json.loads(self._store.get("error"))
            raise getattr(vditc.errors, told.pop("kind"))(**told)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work that each rank does for itself. At its end all wait for each other; an error of one is raised by all."""
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise
        self._meetings += 1
        if self._store is None:
            return
        key = f"meeting {self._meetings}"
        self._store.add(key, 1)
        while self._store.add(key, 0) < self.size:
            self.look()
            time.sleep(_PAUSE)
        self.look()

    def _tell(self, error: BaseException) -> None:
        if self._store is None or self._store.check(["error"]):
            return
        if isinstance(error, VditcError):
            told = {"kind": type(error).__name__, "where": error.where, "found": error.found, "wanted": error.wanted, "fix": error.fix}
        else:
            found = f"{type(error).__name__}{f' ({error})' if str(error) else ''}"
            told = {"kind": "VditcError", "found": found, "wanted": "no error", "where": f"rank {self.rank}", "fix": "see its own message"}
        self._store.set("error", json.dumps(told))

    @contextlib.contextmanager
    def group(self) -> Iterator[None]:
        """torch.distributed's default group, for as long as the block runs; all must enter it.

        It is not there otherwise, because nvidia-modelopt, which rank 0 calls alone, synchronizes all ranks where it finds one.
        """
        if self._store is None:
            yield
            return
        self._groups += 1
        # Gradients of a training are summed on the GPUs.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = PrefixStore(f"group {self._groups}", self._store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=_FOREVER)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def collect(self, data: bytes) -> Iterator[bytes]:
        """What the others give, in the order of their ranks and one at a time, on rank 0; nothing elsewhere. All must call this."""
        with self.group():
            if not self.first:
                self._send(data)
            for rank in range(1, self.size if self.first else 1):
                yield self._receive(rank)

    def _send(self, data: bytes) -> None:
        dist.send(torch.tensor([len(data)]), 0)
        for start in range(0, len(data), _PIECE):
            dist.send(torch.from_numpy(np.frombuffer(data[start : start + _PIECE], np.uint8).copy()), 0)

    def _receive(self, rank: int) -> bytes:
        length = torch.zeros(1, dtype=torch.int64)
        dist.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        for start in range(0, len(data), _PIECE):
            dist.recv(data[start : start + _PIECE], rank)  # a view
        return data.numpy().tobytes()


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """This process among those that torchrun started (RANK, WORLD_SIZE, ...); alone without it.

    An error that leaves the block is told to all others. InputError when the environment is not whole.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_FOREVER)))
    except ValueError as error:
        raise InputError(
            found=str(error),
            wanted="what torchrun sets",
            where="the environment",
            fix="start with torchrun",
        ) from error
    ranks = Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)), PrefixStore("vditc", store))
    with ranks.together():
        yield ranks
