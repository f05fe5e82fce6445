"""MLflow: metrics of a run, by name and step; what is there is asked, as it takes nothing back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from bundlerun.launcher.trackers.interface import Ending, Row, TrackerRun
from bundlerun.launcher.trackers.tensorboard_files import without

EXPERIMENT = "bundlerun"
_KEY = "bundlerun_key"
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 500
"""What servers take in one request, and of one value."""


class MlflowRun:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, else in files of the run folder.

    Args:
        run: which one.

    Raises:
        Exception: the server does not answer.
    """

    keeps_told = True

    def __init__(self, run: TrackerRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or run.folder.absolute().as_uri()
        # Its files do all that is needed here; without the word it refuses them.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._id = self._found(run) or self._made(run)

    def _found(self, run: TrackerRun) -> str:
        experiment = self._client.get_experiment_by_name(_experiment())
        if experiment is None:
            return ""
        text = f"tags.`{_KEY}` = '{run.key}'"
        found = self._client.search_runs([experiment.experiment_id], text)
        return found[0].info.run_id if found else ""

    def _made(self, run: TrackerRun) -> str:
        from mlflow.entities import Param

        client, name = self._client, _experiment()
        experiment = client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else client.create_experiment(name)
        tags = {_KEY: run.key, "bundlerun_group": run.group}
        made: str = client.create_run(where, run_name=run.name, tags=tags).info.run_id
        params = [Param(name, str(v)[:_LONGEST_PARAM]) for name, v in _flat(run.config)]
        for begin in range(0, len(params), _MOST_PARAMS):
            client.log_batch(made, params=params[begin : begin + _MOST_PARAMS])
        return made

    def lacking(self, rows: Sequence[Row]) -> list[Row]:
        """See `Tracker`."""
        names = {name for row in rows for name in row.scalars}
        return without(rows, {(name, step) for name in names for step in self._steps_of(name)})

    def _steps_of(self, name: str) -> list[int]:
        from mlflow.exceptions import MlflowException

        try:
            return [m.step for m in self._client.get_metric_history(self._id, name)]
        except MlflowException as exc:
            if exc.error_code == "RESOURCE_DOES_NOT_EXIST":  # files have it so; a server has none
                return []
            raise

    def tell(self, rows: Sequence[Row]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(row.time * 1000), row.step)
            for row in rows
            for name, value in row.scalars.items()
        ]
        for begin in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[begin : begin + _MOST_METRICS])

    def close(self, ending: Ending) -> None:
        """See `Tracker`."""
        if ending == "replaced":
            self._client.set_tag(self._id, "bundlerun_replaced", "true")
        if ending != "open":
            status = "FINISHED" if ending == "done" else "KILLED"
            self._client.set_terminated(self._id, status=status)


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    result: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            result += _flat(value, f"{prefix}{name}.")
        else:
            result.append((prefix + name, value))
    return result
