"""Target features of training batches: computed for each batch, or once and kept in memory or on disk."""

import hashlib
import shutil
import sys
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from specauf_cli.config.schema import TrainerConfig
from specauf_cli.data.spool import lengths
from specauf_cli.errors import InputError
from specauf_cli.models.blocks import Batch, collate
from specauf_cli.models.target import Target
from specauf_cli.runtime import ranks
from specauf_cli.runtime.products import autocast
from specauf_cli.runtime.progress import track
from specauf_cli.store.files import atomic, digest
from specauf_cli.types import Example

TOKENS = 16_384
"""Tokens of one target pass when everything is computed first."""


class Features:
    """Target features of training batches: ``online`` (for each batch), or all first, in ``memory`` or on ``disk``.

    Batches depend on the seed and not on the objective, so drafters trained one after another with one seed read the
    same features: what was computed online is kept, up to ``KEEP`` bytes, and a later drafter gets the very same
    tensors. Under bf16 autocast they are rounded to bf16 at once, which the drafter's first product would do anyway; in
    fp32 nothing is rounded anywhere. Only the target's layers up to the last tapped one run, and no head.

    ``with_last``: the target's last hidden state is kept too, from which an objective with soft labels gets the
    target's distribution; D numbers a token instead of V.
    """

    KEEP = 1_500_000_000

    def __init__(
        self,
        target: Target,
        examples: Sequence[Example],
        trainer: TrainerConfig,
        folder: Path,
        *,
        with_last: bool = False,
        keep: int | None = None,
    ) -> None:
        """``folder``: where ``disk`` keeps them, below a name of their own. ``keep``: bytes kept of what is computed
        online (None: ``KEEP``). Errors: InputError when they do not fit on the disk."""
        self.most = self.KEEP if keep is None else keep
        self.target, self.examples, self.trainer = target, examples, trainer
        self.with_last = with_last
        self.kept: dict[tuple[tuple[int, ...], int], Tensor] = {}
        self.bytes, self.seed = 0, -1
        self.last: tuple[tuple[tuple[int, ...], int], Tensor] = ((), 0), torch.empty(0)
        self.store: Memory | Disk | None = None
        if trainer.features == "online":
            return
        self.lengths = lengths(examples)
        size = sum(self.lengths) * self.width * self.dtype.itemsize
        print(
            f"target features of {len(examples)} examples: {size / 1e9:.2f} GB in {trainer.features}", file=sys.stderr
        )
        if trainer.features == "memory":
            self.store = Memory(self._rows(range(len(examples))), len(examples))
        else:
            tokens = hashlib.sha256()
            for example in examples:
                tokens.update(torch.tensor(example.tokens).numpy().tobytes())
            what = [target.fingerprint, str(target.model.dtype), list(target.taps), str(self.dtype), tokens.hexdigest()]
            self.store = Disk(self, folder / digest([*what, "last"] if with_last else what, 16), size)

    @property
    def dtype(self) -> torch.dtype:
        """In which precision they are kept."""
        return torch.bfloat16 if self.trainer.precision == "bf16" else torch.float32

    @property
    def width(self) -> int:
        """Numbers that are kept of a token."""
        return (len(self.target.taps) + self.with_last) * self.target.hidden_size

    def begin(self, seed: int) -> None:
        """A drafter with this seed is about to train; what was kept for another seed would never be asked for again."""
        if seed != self.seed:
            self.kept, self.bytes, self.seed = {}, 0, seed

    def of(self, batch: Batch) -> tuple[Float[Tensor, "B T F"], Float[Tensor, "B T D"] | None]:
        """Features of a batch, and the target's last hidden state if it is kept; zero where padded when they come from
        memory or disk."""
        states = self._of(batch)
        if not self.with_last:
            return states, None
        features = self.width - self.target.hidden_size
        return states[..., :features].contiguous(), states[..., features:].contiguous()

    def _of(self, batch: Batch) -> Float[Tensor, "B T W"]:
        width = batch.tokens.shape[1]
        if self.store is not None:
            rows = [F.pad(x, (0, 0, 0, width - len(x))) for x in self.store.read(batch.index)]
            return torch.stack(rows).to(self.target.device)
        key = (batch.index, width)
        if key == self.last[0]:  # drafters that are trained together ask one after the other
            return self.last[1]
        if key not in self.kept:
            features = self._compute(batch.tokens)
            self.last = key, features
            if self.bytes + features.nbytes > self.most:
                return features
            self.kept[key], self.bytes = features, self.bytes + features.nbytes
        return self.kept[key]

    def ahead(self, index: Sequence[int]) -> None:
        """The next batch will hold these examples: those stored on disk are read while the present one is trained
        on."""
        if isinstance(self.store, Disk):
            self.store.ahead(index)

    def _rows(self, index: Iterable[int]) -> Iterable[tuple[int, Tensor]]:
        """Each example with its features ``[T, F]``, without padding; neighbours in length go through the target
        together."""
        order = sorted(index, key=lambda i: (self.lengths[i], i))
        while order:
            longest = self.lengths[order[:64][-1]]
            some = order[: max(1, min(64, TOKENS // longest))]
            batch = collate(self.examples, some, self.target.chat.pad_id)
            for i, row in zip(some, self._compute(batch.tokens), strict=True):
                yield i, row[: self.lengths[i]].to("cpu", self.dtype, copy=True)
            order = order[len(some) :]

    def _compute(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        with autocast(self.target.device.type, self.trainer.precision):
            compute = self.target.features_and_last if self.with_last else self.target.features
            features = compute(tokens.to(self.target.device))
        return features.to(self.dtype)


class Memory:
    """All features in this process."""

    def __init__(self, rows: Iterable[tuple[int, Tensor]], count: int) -> None:
        self.rows = [torch.empty(0)] * count
        with track("target features", count) as show:
            for done, (i, row) in enumerate(rows, 1):
                self.rows[i] = row
                show(done, "")

    def read(self, index: Sequence[int]) -> list[Tensor]:
        """The features of some examples, ``[T, F]`` each."""
        return [self.rows[i] for i in index]


class Disk:
    """All features in ``folder``, in shards of ``SHARD`` bytes named by their number and the hash of their content.

    A shard is written whole or not at all, so what an interrupted run has made is used by the next one. Its hash is
    compared with its name when it is first read.
    """

    SHARD = 128_000_000

    def __init__(self, source: Features, folder: Path, size: int) -> None:
        self.folder = folder
        width = source.width * source.dtype.itemsize
        self.shard_of = array("L")
        filled, number = 0, 0
        for length in source.lengths:
            more = length * width
            if filled and filled + more > self.SHARD:
                filled, number = 0, number + 1
            filled += more
            self.shard_of.append(number)
        members: dict[int, list[int]] = {}
        for i, shard in enumerate(self.shard_of):
            members.setdefault(shard, []).append(i)
        known = self._files()
        missing = [n for n in members if n not in known]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            free, wanted = shutil.disk_usage(folder).free, size * len(missing) // len(members)
            if wanted > free:
                raise InputError(
                    f"trainer.features=disk needs {wanted / 1e9:.1f} GB more in {folder}, where {free / 1e9:.1f} GB "
                    "are free; use trainer.features=online or another folder (runs=...)"
                )
        # Dealt out by number: what is missing may differ between ranks that look at different times.
        mine = [n for n in range(ranks.RANK, len(members), ranks.WORLD) if n in missing]
        with track("target features", len(mine)) as show:
            for done, shard in enumerate(mine, 1):
                content = to_bytes({str(i): row for i, row in source._rows(members[shard])})
                name = f"{shard:05d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
                with atomic(folder / name) as temporary:
                    temporary.write_bytes(content)
                show(done, "")
        ranks.wait()
        self.paths = self._files()
        self.open: dict[int, safe_open] = {}
        self.reader = ThreadPoolExecutor(1)
        nothing: tuple[tuple[int, ...], Future[list[Tensor]]] = ((), self.reader.submit(self._read, ()))
        self.now = self.next = nothing

    def read(self, index: Sequence[int]) -> list[Tensor]:
        """The features of some examples, ``[T, F]`` each; those of the batch announced by ``ahead`` are there
        already."""
        for members, rows in (self.now, self.next):
            if set(index) <= set(members):
                row_of = dict(zip(members, rows.result(), strict=True))
                return [row_of[i] for i in index]
        return self.reader.submit(self._read, index).result()

    def ahead(self, index: Sequence[int]) -> None:
        """Begins to read one batch in the background; never more than one."""
        if self.next[0] != tuple(index):
            self.now, self.next = self.next, (tuple(index), self.reader.submit(self._read, tuple(index)))

    def _read(self, index: Sequence[int]) -> list[Tensor]:
        return [self._shard(self.shard_of[i]).get_tensor(str(i)) for i in index]  # type: ignore[no-untyped-call]

    def _shard(self, number: int) -> safe_open:
        if number not in self.open:
            path = self.paths[number]
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                if not path.stem.endswith(content[:16]):
                    raise InputError(
                        f"{path} is damaged (its content is not what was saved); delete it, it is made anew"
                    )
                self.open[number] = safe_open(path, "pt")
            except SafetensorError as error:
                raise InputError(f"{path} cannot be read: {error}") from error
        return self.open[number]

    def _files(self) -> dict[int, Path]:
        return {int(p.name[:5]): p for p in sorted(self.folder.glob("[0-9][0-9][0-9][0-9][0-9]-*.safetensors"))}
