"""What wandb has written to its offline files, read back without wandb's own reader."""

import json
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768


def records(file: Path) -> Iterator[object]:
    """The records of a .wandb file: 7 bytes, then a LevelDB log, blocks of 32 KiB, records in parts."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # too little room for a part's header: filled with zeros
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the only part, or the last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def files(folder: Path) -> list[Path]:
    """The offline files of a run's folder, from the first on."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def history(folder: Path) -> list[dict[str, object]]:
    """All rows of a run's folder, in the order of its files."""
    skipped, rows = ("_timestamp", "_runtime", "_wandb"), []
    for record in (record for file in files(folder) for record in records(file)):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items() if key not in skipped})
    return rows


def run_ids(folder: Path) -> set[str]:
    """The ids in the run records."""
    found = (record for file in files(folder) for record in records(file))
    return {record.run.run_id for record in found if record.WhichOneof("record_type") == "run"}
