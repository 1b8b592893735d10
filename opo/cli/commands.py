"""The commands: what each is for, who judges its config, what runs it, and the schema of its keys."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A Hydra application: its root config is `conf/<name>.yaml`; `judge`, `run` and `schema` are `module:name`."""

    summary: str
    judge: str  # (config dict) -> anything, raises UserError; called before anything is written
    run: str  # (config dict, folder) -> None
    schema: str  # the dataclass of its keys
    after: str = ""  # (folders of the jobs) -> None, once a multirun is over


COMMANDS = {
    "train": Command(
        "one training run, or many with -m",
        "opo.config.load:load_config",
        "opo.cli.train:train",
        "opo.config.schema:RunConfig",
        after="analysis.commands.ranking:after_sweep",
    ),
    "variance": Command(
        "gradient variance of every estimator on frozen rollouts",
        "analysis.study.config:load_config",
        "analysis.commands.variance:main",
        "analysis.study.config:VarianceConfig",
    ),
    "audit": Command(
        "what rewards and lengths alone say of rollouts from elsewhere",
        "analysis.config.audit:load_config",
        "analysis.commands.audit:main",
        "analysis.config.audit:AuditConfig",
    ),
    "verify": Command(
        "train OPO and other algorithms, measure variance, judge each claim",
        "analysis.config.verify:load_config",
        "analysis.commands.verify:main",
        "analysis.config.verify:VerifyConfig",
    ),
    "zoo": Command(
        "every algorithm trained alike, measured on the same rollouts, in one gallery",
        "analysis.zoo.config:load_config",
        "analysis.commands.zoo:main",
        "analysis.zoo.config:ZooConfig",
    ),
    "evaluate": Command(
        "pass@k, mean@k, maj@k and diversity of a checkpoint",
        "analysis.config.evaluate:load_config",
        "analysis.commands.evaluate:main",
        "analysis.config.evaluate:EvaluateConfig",
    ),
    "report": Command(
        "one HTML page from what is on disk",
        "analysis.config.report:load_config",
        "analysis.commands.report:main",
        "analysis.config.report:ReportConfig",
    ),
    "runs": Command(
        "where the runs of a study stand: state, step, reward, why failed",
        "analysis.config.runs:load_config",
        "analysis.commands.runs:main",
        "analysis.config.runs:RunsConfig",
    ),
    "plan": Command(
        "memory a rank and hours of a training or a study before it is started",
        "analysis.config.plan:load_config",
        "analysis.commands.plan:main",
        "opo.config.plan:PlanTrain",
    ),
    "export": Command(
        "a training for verl, or a checkpoint as a model folder with a card",
        "opo.export.config:load_config",
        "opo.export:main",
        "opo.export.config:VerlExport",
    ),
    "track": Command(
        "the W&B record of a run, a study or an evaluation made anew from its folder",
        "opo.config.track:load_config",
        "analysis.commands.track:main",
        "opo.config.track:TrackConfig",
    ),
    "doctor": Command(
        "checks of a model on this machine: gradients, log-probabilities, sampler",
        "analysis.config.doctor:load_config",
        "analysis.commands.doctor:main",
        "analysis.config.doctor:DoctorConfig",
    ),
}

FIRST_WORD = {
    "export": "what",
    "plan": "planned",
}  # command -> the key that its first word gives, as in `opo export verl`


ON_RANKS = ("train", "variance", "evaluate", "doctor")  # commands that torchrun may start on several ranks
OTHERS_SPEAK_S = 5.0
