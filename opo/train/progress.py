"""Progress on the terminal: one line with reward, rate and time left, and now and then a few responses."""

from pathlib import Path
from typing import Self

from rich.text import Text

from opo.config.schema import RunConfig
from opo.rollout.collect import Collected
from opo.system.console import PlainConsole
from opo.system.pace import Pace
from opo.system.terminal import printable


class Progress:
    """A line that is rewritten on a terminal and repeated now and then elsewhere."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.steps, self.path = config.steps, path
        self.samples_every = config.tracking.samples_every
        self.console = PlainConsole(highlight=False)
        self.status = self.console.status("") if self.console.is_terminal else None

    def __enter__(self) -> Self:
        self.pace = Pace(self.steps)
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def show(self, step: int, metrics: dict[str, float], batch: Collected) -> None:
        """Report that `step` steps are done."""
        reward = f"reward {metrics['train/reward_mean']:.3f}" if "train/reward_mean" in metrics else "no reward"
        mark = "  not exactly on-policy, corrected" if metrics["mismatch/corrected"] else ""
        line = (
            f"{self.path.name}  step {step}/{self.steps}  {reward}  length {metrics['length/tokens_mean']:.1f}  "
            f"{metrics['rollout/tokens_per_s']:,.0f} tok/s sampled  {self.pace.line(step, 'step')}{mark}"
        )
        if self.status:
            self.status.update(Text(printable(line)))
        elif self.pace.due(step):
            self.console.print(line, soft_wrap=True)
        if self.samples_every and (step - 1) % self.samples_every == 0:
            rewards = batch.rollouts.rewards_PG[0].tolist()
            for response, reward in list(zip(batch.responses[0], rewards, strict=True))[:3]:
                prompt = (batch.prompts[0].text.splitlines() or [""])[-1]
                parts = [
                    ("  ", ""),
                    (f"{reward:4.2f}", "dim"),
                    (f"  {printable(prompt)}", ""),
                    (printable(response), "bold"),
                ]
                self.console.print(Text.assemble(*parts), soft_wrap=True)
