"""What the stand-in for the W&B server knows of artifacts: versions by digest, their files, who made them and who used them."""

import base64
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoredArtifact:
    """One version of a collection."""

    id: str
    collection: str
    type: str
    digest: str
    made_by: str  # the run that was first
    aliases: set[str] = field(default_factory=set)
    used_by: list[str] = field(default_factory=list)  # runs
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class ArtifactStore:
    """The artifact operations of the client, each answered as the real server does; `None` for another operation."""

    def __init__(self) -> None:
        self.artifacts: list[StoredArtifact] = []
        self.url = ""

    def of(self, type: str) -> list[StoredArtifact]:
        """The versions of a type, oldest first."""
        return [artifact for artifact in self.artifacts if artifact.type == type]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if operation == "CreateArtifact":
            return {"createArtifact": {"artifact": self._create(variables["input"])}}
        if operation == "UseArtifact":
            used = self._by_id(variables["input"]["artifactID"])
            run = variables["input"]["runName"]
            used.used_by += [run] if run not in used.used_by else []  # an edge of the graph, not a count
            return {"useArtifact": {"artifact": {"id": used.id, "digest": used.digest}}}
        if operation == "CommitArtifact":
            committed = self._by_id(variables["artifactID"])
            committed.committed = True
            return {"commitArtifact": {"artifact": {"id": committed.id, "digest": committed.digest}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            id = variables.get("artifactID") or variables["artifactManifestID"].removeprefix("manifest-")
            place = {
                "id": f"file-{id}",
                "uploadUrl": f"{self.url}/artifact/{id}/wandb_manifest.json",
                "uploadHeaders": [],
            }
            verb = operation[0].lower() + operation[1:]
            return {
                verb: {"artifactManifest": {"id": f"manifest-{id}", "file": {**place, "name": "x", "displayName": "x"}}}
            }
        if operation == "CreateArtifactFiles":
            return {
                "createArtifactFiles": {
                    "files": {"edges": [self._place(file) for file in variables["input"]["artifactFiles"]]}
                }
            }
        return None

    def put(self, id: str, name: str, content: bytes) -> None:
        """One uploaded file; a name in the store is base64, so that it can hold any path."""
        path = name if name == "wandb_manifest.json" else base64.urlsafe_b64decode(name).decode()
        self._by_id(id).files[path] = content

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A version of the collection with this digest: the one that is there, else a new one."""
        collection, digest = asked["artifactCollectionName"], asked["digest"]
        versions = [one for one in self.artifacts if one.collection == collection]
        same = [one for one in versions if one.digest == digest]
        if not same:
            new = StoredArtifact(
                str(len(self.artifacts)), collection, asked["artifactTypeName"], digest, asked["runName"]
            )
            self.artifacts.append(new)
            same = [new]
        aliases = {alias["alias"] for alias in asked["aliases"] or []}
        for version in versions:
            version.aliases -= aliases
        same[0].aliases |= aliases
        latest = {"id": versions[-1].id, "versionIndex": len(versions) - 1} if versions else None
        sequence = {"id": f"sequence-{collection}", "name": collection, "latestArtifact": latest}
        state = "COMMITTED" if same[0].committed else "PENDING"
        return {"id": same[0].id, "digest": digest, "state": state, "artifactSequence": sequence}

    def _place(self, file: dict[str, Any]) -> dict[str, Any]:
        name = base64.urlsafe_b64encode(file["name"].encode()).decode()
        url = f"{self.url}/artifact/{file['artifactID']}/{name}"
        node = {"id": name, "name": file["name"], "displayName": file["name"], "storagePath": name, "uploadUrl": url}
        return {
            "node": node | {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
        }

    def _by_id(self, id: str) -> StoredArtifact:
        return next(artifact for artifact in self.artifacts if artifact.id == id)
