"""Runs as the W&B service has them. Needs a login, and WANDB_BASE_URL where the service is one's own."""

import json
from collections.abc import Iterator
from typing import Any

from opo.errors import UserError
from opo.tracking.offline_file import TrackedRun, dotted

PREFIX = "wandb:"
TIMEOUT_S = 60  # of one request


def read_service(address: str) -> Iterator[TrackedRun]:
    """The trainings of `wandb:ENTITY/PROJECT` or, of one study, `wandb:ENTITY/PROJECT/STUDY`, oldest first.

    Raises UserError where there is no login, no such project, or no answer.
    """
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # no wandb.Error, unlike its others

    parts = address.removeprefix(PREFIX).split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UserError(f"{address}: give {PREFIX}ENTITY/PROJECT, or {PREFIX}ENTITY/PROJECT/STUDY for one study")
    filters = {"jobType": "train"} | ({"group": parts[2]} if len(parts) == 3 else {})
    try:
        if not wandb.login(prompt=False):
            raise UserError(f"{address}: not logged in to W&B; `wandb login`")
        for run in wandb.Api(timeout=TIMEOUT_S).runs(
            f"{parts[0]}/{parts[1]}", filters=filters, order="+created_at", lazy=False
        ):
            yield _read(run, parts[1])
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        raise UserError(f"{address}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _read(run: Any, project: str) -> TrackedRun:
    rows = [dotted({key: value for key, value in row.items() if not key.startswith("_")}) for row in run.scan_history()]
    return TrackedRun(
        id=run.id,
        name=run.name,
        group=run.group or "",
        job_type=run.job_type or "",
        project=project,
        tags=list(run.tags),
        config=json.loads(json.dumps(run.config)),
        rows=rows,
        summary=dict(run.summary_metrics or {}),
        exit_code={"finished": 0, "running": None}.get(run.state, 1),
    )
