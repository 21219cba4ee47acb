"""MLflow: a tracking server, or a folder."""

import importlib.util
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rn50.errors import UsageError
from rn50.observe.trackers.rows import Row
from rn50.observe.trackers.sink import Ended, Tracked, require

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "rn50.id"
_LAST = "schedule/epoch"
"""The value that comes last in a row, and in every row: its newest step is whole."""
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_AT_ONCE = 100
"""Parameters that MLflow takes in one request."""
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    # What fails is tried again anyhow, and until then the thread should hear that the run ended.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class MLflow:
    """Shows rows in one run of MLflow, which is found by a tag; but no histograms, which it lacks.

    Args:
        uri: Of the server or the folder.

    Raises:
        UsageError: MLflow is not installed, or lacks what this kind of store needs.
    """

    name = "MLflow"
    closing_s = 30.0

    def __init__(self, uri: str) -> None:
        require("mlflow", self.name, "mlflow")
        if uri.startswith(_DATABASES) and importlib.util.find_spec("sqlalchemy") is None:
            raise UsageError(
                f"log.mlflow is {uri}, but databases need the whole of MLflow: pip install mlflow; "
                "or give the URL of a server, or a folder"
            )
        self._uri = uri

    def open(self, run: Tracked) -> int:
        """Begin the run, or go on with the one that bears the id."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._place = run.place
        self._client = MlflowClient(tracking_uri=self._uri)
        experiment = _experiment(self._client, run.project)
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            known = found[0].data.params
        else:
            tags = {_TAG: run.id}
            self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            known = {}
        new = {name: str(value) for name, value in run.hparams.items() if name not in known}
        for some in _in_parts(new):
            self._client.log_batch(self._id, params=some)
        return max((m.step for m in self._client.get_metric_history(self._id, _LAST)), default=-1)

    def log(self, row: Row) -> None:
        """Send a row in one request."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        order = sorted(row.scalars, key=lambda name: name == _LAST)
        metrics = [Metric(name, float(row.scalars[name]), now, row.step) for name in order]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)
        for file in row.pictures.values():
            self._client.log_artifact(self._id, str(self._place / file))

    def close(self, end: Ended | None) -> None:
        """Say what became of the run."""
        self._client.set_terminated(self._id, "KILLED" if end is None else "FINISHED")


def _experiment(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    identity: str = client.create_experiment(name) if found is None else found.experiment_id
    return identity


def _in_parts(params: dict[str, str]) -> Iterator[list[Any]]:
    from mlflow.entities import Param

    pairs = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(pairs), _AT_ONCE):
        yield pairs[start : start + _AT_ONCE]
