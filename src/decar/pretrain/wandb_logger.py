"""A run of wandb that goes on after a kill as one run, with each figure of each step once.

wandb only adds rows, and none can be taken back. Of an offline file its process keeps up to 32 KiB in memory, which are
lost when the training is killed: rows of before the last checkpoint too. So `wandb.jsonl` in the run's folder holds the
figures of each row, a line written before wandb is given the row, and the row's number, which is its `_step` in wandb.
A run that is resumed asks how many rows wandb has (the server, or the offline files), logs those again that it lacks of
the steps before the checkpoint, and leaves out those that it has of the steps after it.

Pictures, sounds and tables are not in that file: those that wandb has lost by a kill are lost.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from glob import escape
from numbers import Real
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from decar.errors import TrainingError
from decar.files import advice, whole
from decar.metrics import JOURNAL, read_sealed, sealed_line

log = logging.getLogger(__name__)

X_AXIS = "trainer/global_step"  # Lightning's name
_BLOCK = 32768  # bytes of a .wandb file, a log of LevelDB
_HEADER = 7  # bytes of such a file, and of a part of a record

Row = dict[str, Any]  # n, step, figures, media


class ResumableWandbLogger(WandbLogger):
    """Logs to wandb; a resumed run goes on in the run of wandb that its folder names.

    Args:
        save_dir: The run's folder.
        offline: Whether wandb writes files only.
        log_model: Whether the bundle of a finished run becomes an artifact of wandb.
        options: As of Lightning's logger and `wandb.init`.
    """

    def __init__(self, save_dir: str | Path, *, offline: bool = False, log_model: bool = False, **options: Any) -> None:
        self._journal, self.log_model = Path(save_dir) / JOURNAL, log_model
        self._facts, self._rows = read_journal(self._journal)
        self._lost: list[Row] = []
        self._known: dict[int, set[str]] = {}  # keys that wandb has, by step
        self._next, self._begun = 0, False
        self.cut_short = False  # whether training ends within the epoch, whose row comes when it is continued
        options = {"id": self._facts.get("id"), "resume": None if offline else "allow", **options}
        super().__init__(save_dir=save_dir, offline=offline, **options)

    @property
    def experiment(self) -> Any:
        """The run of wandb."""
        run: Any = super().experiment
        if not self._begun and self._experiment is not None:  # else of another rank
            self._begun = True
            self._begin(run)
        return run

    @property
    def n_rows(self) -> int:
        """Rows that wandb has; the next one has this number, of which wandb takes none twice."""
        assert self.experiment is not None  # it says how many there are
        return self._next

    def _begin(self, run: Any) -> None:
        """Compare what has been logged with what wandb has."""
        self._facts = {key: getattr(run, key, None) for key in ("id", "project", "entity")}
        self._next = count_offline(Path(run.dir).parent, run.id) if run.offline else int(run.starting_step)
        self._lost = [row for row in self._rows if row["n"] >= self._next]
        self._rows = [row for row in self._rows if row["n"] < self._next]
        for row in self._rows:
            self._learn(row)
        self._write([*self._rows, *self._lost])  # without half a line at its end

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row, without what wandb has of this step; before it, the rows of earlier steps that wandb has lost."""
        run, step = self.experiment, int(step or 0)
        self._catch_up(run, step)
        if self.cut_short and "loss_epoch" in metrics:
            return
        known = self._known.get(step, set()) - {"epoch"}  # which each row has
        new = {key: value for key, value in metrics.items() if key not in known}
        if new.keys() <= {"epoch"}:
            return
        row = self._row(step, new)
        try:
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise TrainingError(
                f"{self._journal}: a row could not be written ({error.strerror}): {advice(error)}"
            ) from error
        self._rows.append(row)
        self._give(run, row, new)

    @rank_zero_only
    def put_back(self, row: Mapping[str, float], step: int) -> None:
        """Log a row unless it is there: a kill came between its checkpoint and itself."""
        run = self.experiment
        self._catch_up(run, step + 1)
        self.log_metrics(row, step)

    @rank_zero_only
    def log_bundle(self, file: Path, suffix: str = "") -> None:
        """Log a bundle as an artifact of type `model`, named after the run: `encoder-ID`."""
        run = self.experiment
        run.log_artifact(str(file), name=f"encoder-{run.id}{suffix}", type="model")

    def end(self) -> None:
        """End the run of wandb. From then on the journal's facts have `ended`: wandb has got all."""
        self.experiment.finish()
        self._facts["ended"] = True
        self._write(self._rows)

    def _catch_up(self, run: Any, step: int) -> None:
        """Log the lost rows of the steps before `step`; those from there on come anew. Once after the start."""
        if not self._lost:
            return
        lost, self._lost = [row for row in self._lost if row["step"] < step and row["figures"]], []
        again = [{**row, "n": self._next + i, "media": []} for i, row in enumerate(lost)]
        self._write([*self._rows, *again])
        self._rows += again
        for row in again:
            self._give(run, row, row["figures"])

    def _row(self, step: int, values: Mapping[str, Any]) -> Row:
        figures = {key: float(value) for key, value in values.items() if isinstance(value, Real)}
        return {"n": self._next, "step": step, "figures": figures, "media": sorted(values.keys() - figures.keys())}

    def _give(self, run: Any, row: Row, values: Mapping[str, Any]) -> None:
        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        named = {f"{prefix}{key}": value for key, value in values.items()}
        run.log({**named, X_AXIS: row["step"]}, step=row["n"], commit=True)
        self._next = row["n"] + 1
        self._learn(row)

    def _learn(self, row: Row) -> None:
        self._known.setdefault(row["step"], set()).update(row["figures"], row["media"])

    def _write(self, rows: list[Row]) -> None:
        """Write the journal anew."""
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with whole(self._journal) as part:
            part.write_text("".join(map(_line, [self._facts, *rows])), encoding="utf-8")


def read_journal(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """The facts of the run of wandb that belongs to a run's folder (id, project, entity), and its rows.

    Both are empty where there is none. Rows behind a damaged line are left out, with a line in the log.
    """
    lines, problem = read_sealed(file)
    if problem:
        log.warning("%s: %s", file, problem)
    facts, *rows = [json.loads(line) for line in lines] or [{}]
    return facts, rows


def _line(values: Mapping[str, Any]) -> str:
    return sealed_line(json.dumps(values))


def count_offline(current: Path, run_id: str) -> int:
    """How many rows the offline files of a run of wandb hold, without that in the folder `current` beside them.

    Files that a kill has cut are made to end with a whole record: `wandb sync` stops at half of one, and at a file
    without any.
    """
    found = 0
    for file in sorted(current.parent.glob(f"offline-run-*-{escape(run_id)}/run-{escape(run_id)}.wandb")):
        if file.parent != current:
            found = max(found, _mend(file))
    return found


def _mend(file: Path) -> int:
    """The number behind the last row of a .wandb file, which is cut behind its last whole record."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, number, named = file.read_bytes(), 0, False
    found = list(_records(data))
    for _, content in found:
        record = proto.Record.FromString(content)  # type: ignore[attr-defined]
        named |= record.HasField("run")
        if record.HasField("history"):
            number = max(number, record.history.step.num + 1)
    if not named:
        file.unlink()
    elif found[-1][0] < len(data):
        os.truncate(file, found[-1][0])
    return number


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole records of a .wandb file, each with the place of its end.

    After 7 bytes it is a log of LevelDB: blocks of 32 KiB with parts of records, each with a checksum (4 bytes), length
    (2), type (1: whole, 2 to 4: first, middle, last).
    """
    position, content = _HEADER, b""
    while position + _HEADER <= len(data):
        if (room := _BLOCK - position % _BLOCK) < _HEADER:
            position += room
            continue
        checksum, length, kind = (int.from_bytes(data[position + a : position + b], "little") for a, b in _FIELDS)
        part = data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if position > len(data) or kind not in (1, 2, 3, 4) or zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        content = part if kind in (1, 2) else content + part
        if kind in (1, 4):
            yield position, content


_FIELDS = ((0, 4), (4, 6), (6, 7))
