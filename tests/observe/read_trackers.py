"""Prints as JSON what trackers hold of a run, read with their own libraries.

python read_trackers.py RUN_DIR MLFLOW_FOLDER

{tracker: [{"values": {name: [[step, value], …]}, …}, …]}, one entry for each run of the tracker.
"""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

PROJECT = "tests"


def tensorboard(place: Path) -> list[dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "tensorboard"), {"histograms": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return [
        {
            "values": {
                tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]
            },
            "histograms": {
                tag: [[e.step, e.histogram_value.num] for e in events.Histograms(tag)]
                for tag in tags["histograms"]
            },
            "pictures": {
                tag: [[e.step, e.width, e.height] for e in events.Images(tag)]
                for tag in tags["images"]
            },
            "hparams": _hparams(plugin),
        }
    ]


def _hparams(content: bytes) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData.FromString(content)
    return {k: MessageToDict(v) for k, v in data.session_start_info.hparams.items()}


def wandb(place: Path) -> list[dict[str, Any]]:
    """Join the files of each run in the order of their names, as ``wandb sync`` does."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, dict[str, Any]] = {}
    for path in sorted(place.glob("wandb/offline-run-*/run-*.wandb")):
        run = runs.setdefault(path.stem, {"values": {}, "hparams": {}, "artifacts": [], "exits": 0})
        for entry in _entries(path.read_bytes()):
            record = Record.FromString(entry)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.resume
                run["name"], run["project"] = record.run.display_name, record.run.project
                update = record.run.config.update
                run["hparams"] |= {one.key: json.loads(one.value_json) for one in update}
            if kind == "history":
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    values = run["values"].setdefault(key, [])
                    values.append([record.history.step.num, json.loads(item.value_json)])
            if kind == "artifact":
                run["artifacts"].append([record.artifact.type, sorted(record.artifact.aliases)])
            run["exits"] += kind == "exit"
    return list(runs.values())


def _entries(data: bytes) -> list[bytes]:
    """Read LevelDB's log format block by block, comparing the checksums."""
    assert data[:4] == b":W&B"
    found: list[bytes] = []
    whole = True
    for start in range(0, len(data), 32_768):
        block = data[start : start + 32_768]
        at = 7 if start == 0 else 0
        while at + 7 <= len(block):
            checksum = int.from_bytes(block[at : at + 4], "little")
            length, kind = int.from_bytes(block[at + 4 : at + 6], "little"), block[at + 6]
            chunk = block[at + 7 : at + 7 + length]
            if kind == 0 or zlib.crc32(bytes([kind]) + chunk) != checksum:
                break  # padding, or torn
            if kind in (1, 2):
                found.append(b"")
            found[-1] += chunk
            at += 7 + length
            whole = kind in (1, 4)
    return found if whole else found[:-1]


def trackio(place: Path) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    found = []
    for record in SQLiteStorage.get_run_records(PROJECT):
        if record["name"].startswith(f"{place.name}"):
            values: dict[str, list[Any]] = {}
            for row in SQLiteStorage.get_logs(PROJECT, record["name"]):
                for name in row.keys() - {"timestamp", "step"}:
                    values.setdefault(name, []).append([row["step"], row[name]])
            config = SQLiteStorage.get_run_config(PROJECT, record["name"])
            found.append({"values": values, "hparams": config, "name": record["name"]})
    return found


def mlflow(place: Path, store: str) -> list[dict[str, Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(PROJECT)
    found = []
    for run in client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]):
        if run.info.run_name.startswith(place.name):
            histories = {
                name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            }
            found.append(
                {
                    "values": histories,
                    "hparams": run.data.params,
                    "name": run.info.run_name,
                    "status": run.info.status,
                    "pictures": [one.path for one in client.list_artifacts(run.info.run_id)],
                }
            )
    return found


if __name__ == "__main__":
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    folder, mlflow_store = Path(sys.argv[1]), sys.argv[2]
    sys.stdout.write(
        json.dumps(
            {
                "TensorBoard": tensorboard(folder),
                "W&B": wandb(folder),
                "trackio": trackio(folder),
                "MLflow": mlflow(folder, mlflow_store),
            }
        )
    )
