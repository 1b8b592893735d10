"""What the stand-in for the W&B server answers to who reads it or writes reports: the public API of the client, and wandb-workspaces."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEYS = {"group": "groupName", "jobType": "jobType", "displayName": "displayName"}  # of a filter -> of UpsertBucket


@dataclass
class PublicApi:
    """Runs as they are read, and the reports that were saved."""

    runs: Mapping[str, Any]  # StoredRun by name
    reports: list[dict[str, Any]] = field(default_factory=list)  # the variables of upsertView, `spec` read

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "1", "entity": "me"}}
        if operation == "ProjectInternalId":
            return {"project": {"id": "1", "internalId": "internal-1"}}
        if operation == "GetProjects":
            return {"models": {"pageInfo": _LAST, "edges": [{"node": _PROJECT, "cursor": "1"}]}}
        if operation == "upsertView":
            self.reports.append(variables | {"spec": json.loads(variables["spec"])})
            shown = {key: variables[key] for key in ("name", "displayName", "description", "spec", "type")}
            return {
                "upsertView": {
                    "inserted": True,
                    "view": {"id": f"report{len(self.reports)}", **shown, "project": _PROJECT},
                }
            }
        if operation == "Runs":
            found = [
                self._node(name) for name in self.runs if self._matches(name, json.loads(variables["filters"] or "{}"))
            ]
            edges = [{"node": node, "cursor": str(place)} for place, node in enumerate(found)]
            runs = {"edges": edges, "pageInfo": _LAST}
            return {"project": {"internalId": "internal-1", "runCount": len(found), "readOnly": False, "runs": runs}}
        if operation == "RunHistoryKeys":
            return {"project": {"run": {"historyKeys": self._node(variables["name"])["historyKeys"]}}}
        if operation == "RunParquetHistory":
            return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}
        if operation == "HistoryPage":
            rows = [
                row
                for row in self.runs[variables["run"]].rows
                if variables["minStep"] <= row["_step"] < variables["maxStep"]
            ]
            return {"project": {"run": {"history": [json.dumps(row) for row in rows]}}}
        return None

    def _matches(self, name: str, filters: Mapping[str, Any]) -> bool:
        return all(self.runs[name].about.get(KEYS[key]) == value for key, value in filters.items())

    def _node(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        steps = [row["_step"] for row in run.rows]
        return {
            "id": name,
            "name": name,
            "projectId": "1",
            "displayName": run.about.get("displayName"),
            "group": run.about.get("groupName"),
            "jobType": run.about.get("jobType"),
            "tags": run.about.get("tags", []),
            "state": "running" if run.exit_code is None else "finished" if run.exit_code == 0 else "failed",
            "config": run.about.get("config", "{}"),
            "summaryMetrics": run.summary,
            "systemMetrics": "{}",
            "historyLineCount": len(run.lines),
            "historyKeys": {"lastStep": max(steps, default=-1), "keys": {}},
            "createdAt": "2026-11-26T00:00:00Z",
            "heartbeatAt": "2026-11-26T00:00:00Z",
            "readOnly": False,
            "user": {"name": "me", "username": "me"},
        }


_LAST = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
_PROJECT = {
    "__typename": "Project",
    "id": "1",
    "name": "opo",
    "entityName": "me",
    "createdAt": "2026-11-26T00:00:00Z",
} | {
    "isBenchmark": False,
    "user": None,
}
