"""The page: one file that fetches nothing, escapes what it shows, can be found one's way in, and says what cannot be concluded."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
import yaml
from studies import bandit_study, write_run

from analysis.claims.evidence import Material
from analysis.claims.files import write_ledgers
from analysis.claims.ledger import judge, save
from analysis.claims.records import evidence_of
from analysis.commands.report import load_config, main
from analysis.report.answer import sentence
from analysis.report.page import write_report
from analysis.report.sources import Sources
from analysis.report.wandb import markdown_table
from analysis.runs.groups import with_groups
from analysis.runs.load import load
from analysis.study.result import load as load_study
from opo.cli.compose import composed
from opo.errors import UserError

MEASURE = """
addEventListener("load", () => setTimeout(() => {
  document.querySelectorAll("details").forEach(fold => fold.open = true);
  const width = document.documentElement.clientWidth;
  const drawn = [...document.querySelectorAll("main *")].filter(e => !e.parentElement.closest("svg, h2#answer, thead") && !e.matches("h2#answer, thead"));
  const wide = drawn.filter(e => e.getBoundingClientRect().right > width + 1 || e.getBoundingClientRect().left < -1
    || (getComputedStyle(e).display != "inline" && e.clientWidth && e.scrollWidth > e.clientWidth + 1));
  document.title = "too wide: " + wide.slice(0, 5).map(e => e.tagName + " " + e.textContent.slice(0, 30)).join(", ");
}, 100))
"""
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """Ids, links, requests and the text of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.requests: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        elif found.get("href") or found.get("src"):
            self.requests += [
                str(value) for key, value in attrs if key in ("href", "src") and not str(value).startswith("#")
            ]
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `opo verify` leaves it, with a hostile name in it."""
    folder = tmp_path_factory.mktemp("verify")
    for seed in range(3):
        write_run(folder / f"opo-{seed}", "opo", seed, 0.02)
        write_run(folder / f"grpo-{seed}", "grpo", seed, 0.01)
    write_run(folder / "grpo <script>alert(1)<!--", "grpo", 3, 0.01, done=False)
    study = bandit_study()
    study.save(folder / "variance")
    save(judge(evidence_of(Material(study, runs=with_groups(load(folder))))), folder)
    write_report(folder)
    return folder


def test_page_is_whole_and_fetches_nothing(verified: Path) -> None:
    html = (verified / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    assert page.requests == []
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "@import" not in html
    assert "url(http" not in html
    assert html.startswith("<!doctype html>")
    assert 'lang="en"' in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_contents_lead_to_every_section(verified: Path) -> None:
    page = Page((verified / "report.html").read_text(encoding="utf-8"))
    sections = ["variance", "training", "assumptions", "limits", "cite"]
    assert [link[1:] for link in page.links[1:]] == sections


def test_the_page_answers_first(verified: Path) -> None:
    """Sentence, figure, at most six verdicts that are not folded, each with what it was measured on; all others are there, folded."""
    html = (verified / "report.html").read_text(encoding="utf-8")
    answer = html[html.index('id="answer"') : html.index('id="variance"')]
    opened = re.sub(r"<details>.*?</details>", "", answer, flags=re.DOTALL)
    assert opened.index('class="lead"') < opened.index("<svg") < opened.index('class="ledger"')
    lead = re.findall(r'<p class="lead">(.*?)</p>', opened)
    assert len(lead) == 1
    study = load_study(verified / "variance")
    row = study.compare().filter(estimator="length_weighted").row(0, named=True)
    numbers = f"{row['value']:.3g} times (95 % interval {row['low']:.3g} to {row['high']:.3g})"
    assert numbers in lead[0]
    assert "at step 20 (groups of 8, 10 prompts)" in lead[0]
    measured_on = re.findall(r'data-label="Measured on">(.*?)<', opened)
    assert 1 <= len(measured_on) <= 6
    assert all(re.search(r"task arithmetic, \d+ (prompts|seeds)", words) for words in measured_on)
    claims = json.loads((verified / "claims.json").read_text())["claims"]
    assert answer.count('class="verdict') == len(claims)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.5, 0.4, 0.7), "less noise"),
        ((1.5, 1.2, 1.9), "more noise, not less"),
        ((1.0, 0.98, 1.02), "no difference that matters"),
        ((1.0, 0.7, 1.4), "does not tell"),
        ((1.0, None, None), "does not tell"),
    ],
)
def test_the_sentence_says_what_its_interval_says(
    interval: tuple[float | None, ...], words: str, tmp_path: Path
) -> None:
    value, low, high = interval
    study = bandit_study(group_sizes=[2])
    chosen = (pl.col("estimator") == "length_weighted") & (pl.col("measure") == "relative_variance")
    changes = {"value": value, "low": low, "high": high}
    changed = study.comparisons.with_columns(
        pl.when(chosen).then(pl.lit(x, pl.Float64)).otherwise(pl.col(name)).alias(name) for name, x in changes.items()
    )
    replace(study, comparisons=changed).save(tmp_path)
    assert words in sentence(Sources.of(tmp_path)).split(";")[0]


def test_nothing_scrolls_or_is_cut(verified: Path) -> None:
    """No style hides or scrolls what is too wide, and on paper what is folded is open."""
    html = (verified / "report.html").read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "overflow-x" not in style
    assert "overflow: hidden" not in style
    assert "nowrap" not in re.sub(r"\.verdict {.*?}", "", style)
    assert "details::details-content { content-visibility: visible" in style[style.index("@media print") :]


def test_code_machine_and_commands_can_be_cited(tmp_path: Path) -> None:
    """From the record that a measurement left; several shards are all named, and what was not recorded is said to be."""
    study = bandit_study(group_sizes=[2])
    record = {
        "started": "2026-11-26T10:00:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "code": {"project": {"commit": "c0ffee", "dirty": True}},
        "device": {"system": "Linux", "processor": "Some CPU", "cpus": 2, "threads": 1, "accelerators": []},
        "command": "opo variance model=tiny shard=0/2",
        "model": "tiny",
        "parameters": 6_600_000,
        "task": {"name": "arithmetic"},
        "sampling": {"temperature": 1.0, "max_new_tokens": 48},
    }
    other = record | {"command": "opo variance model=tiny shard=1/2", "device": record["device"] | {"cpus": 8}}
    replace(study, provenance=[record, other]).save(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    cited = html[html.index('id="cite"') :]
    for words in (
        "commit c0ffee, with uncommitted changes",
        "2026-11-26",
        "Some CPU, 2 cores, 1 thread",
        "Some CPU, 8 cores",
    ):
        assert words in cited
    for words in (
        "torch 2.13.0",
        "tiny (6.6M parameters)",
        "arithmetic",
        "git checkout c0ffee",
        "shard=0/2",
        "shard=1/2",
    ):
        assert words in cited
    assert "On arithmetic with tiny (6.6M parameters)" in html
    study.save(tmp_path)
    assert "not recorded" in write_report(tmp_path).read_text(encoding="utf-8")


def test_trainings_are_repeated_by_commands_that_make_their_configs(tmp_path: Path) -> None:
    """The command of a training composes to the config that it is read from, and seeds are one sweep."""
    changes = [
        "algo=grpo",
        "algo.updates_per_rollout=4",
        "algo.minibatches=4",
        "steps=7",
        "study=s",
        "optim.learning_rate=0.003",
    ]
    for seed in (0, 1):
        folder = write_run(tmp_path / f"run-{seed}", "grpo", seed, 0.01)
        config = composed("train", [*changes, f"seed={seed}"])
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    lines = [unescape(line) for line in re.findall(r"opo train [^<\n]*", html[html.index('id="cite"') :])]
    assert len(lines) == 1
    words = shlex.split(lines[0])[2:]
    assert words[0] == "-m"
    assert words[-1] == "seed=0,1"
    assert composed("train", [*words[1:-1], "seed=1"]) == config


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_element_is_wider_than_the_window(width: int, verified: Path, tmp_path: Path) -> None:
    """In a browser, with all that is folded open, nothing reaches beyond the page; a window of 390 is a frame in a wider one."""
    html = (verified / "report.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(html.replace("</body>", f"<script>{MEASURE}</script></body>"), encoding="utf-8")
    frame = f'<iframe id="f" src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (tmp_path / "frame.html").write_text(
        f"{frame}<script>setTimeout(() => document.title = f.contentDocument.title, 1500)</script>"
    )
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    options = [f"--{name}" for name in quiet.split()]
    options += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile", "--window-size=1500,1000"]
    command = ["chromium", *options, "--virtual-time-budget=8000", "--dump-dom", f"file://{tmp_path}/frame.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.findall("<title>(.*?)</title>", shown)[:1] == ["too wide:"]


def test_what_shows_nothing_is_a_sentence(tmp_path: Path) -> None:
    """Shares whose intervals cover everything, and trainings of two steps."""
    study = bandit_study(group_sizes=[2])
    wide = pl.col("measure") == "within_share"
    moments = study.moments.with_columns(
        pl.when(wide).then(pl.lit(bound)).otherwise(pl.col(name)).alias(name)
        for name, bound in (("low", 0.0), ("high", 1.0))
    )
    replace(study, moments=moments).save(tmp_path)
    write_run(tmp_path / "runs" / "one", "opo", 0, 0.01, steps=2)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "share of the variance of a batch gradient" not in html
    assert "cover more than 90 % of the range" in html
    assert "2 steps, too few for a curve" in html
    assert "The same audits at each checkpoint" not in html


def test_every_claim_is_shown_with_its_verdict(verified: Path) -> None:
    page = Page((verified / "report.html").read_text(encoding="utf-8"))
    claims = json.loads((verified / "claims.json").read_text())["claims"]
    words = [word.strip() for word in page.words]
    assert all(claim["claim"] in words for claim in claims)
    for verdict in {claim["verdict"] for claim in claims}:
        assert words.count(verdict) == sum(claim["verdict"] == verdict for claim in claims)


def test_what_is_not_ours_is_escaped(verified: Path) -> None:
    html = (verified / "report.html").read_text(encoding="utf-8")
    assert "grpo &lt;script&gt;alert(1)&lt;!--" in html


def test_limits_name_seeds_and_prompts(verified: Path) -> None:
    text = " ".join(Page((verified / "report.html").read_text(encoding="utf-8")).words)
    assert "10 of which were seen" in text
    assert "4 seeds of 20 rollout batches" in text
    assert "Not finished:" in text


def test_a_study_or_runs_alone(tmp_path: Path) -> None:
    bandit_study(group_sizes=[2]).save(tmp_path / "study")
    write_run(tmp_path / "runs" / "one", "opo", 0, 0.01)
    for name, there, absent in (("study", "assumptions", "training"), ("runs", "training", "assumptions")):
        page = Page(write_report(tmp_path / name).read_text(encoding="utf-8"))
        assert there in page.ids
        assert absent not in page.ids
        assert not any("ledger" in i for i in page.ids)
    text = " ".join(page.words)
    assert "one seed has no interval" in text


def test_the_ledgers_of_a_study_are_in_its_report(tmp_path: Path) -> None:
    study = bandit_study(group_sizes=[2])
    study.save(tmp_path)
    write_ledgers(study, tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    claims = [json.loads(file.read_text())["claims"] for file in tmp_path.glob("ledger/*/claims.json")]
    assert html.count('class="verdict') == sum(map(len, claims))
    assert "The claims about variance at start" in html


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report on"):
        write_report(tmp_path)
    with pytest.raises(UserError, match=r"path: give a folder"):
        load_config({"path": ""})
    with pytest.raises(UserError, match="no such folder"):
        load_config({"path": str(tmp_path / "absent")})
    with pytest.raises(UserError, match=r"publish=twitter: not one of wandb, null$"):
        load_config({"path": str(tmp_path), "publish": "twitter"})
    with pytest.raises(UserError, match=r"pth: unknown key.*did you mean path"):
        load_config({"pth": "x"})


def test_publishing_without_a_login_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "runs" / "one", "opo", 0, 0.01)
    with pytest.raises(UserError, match="publish=wandb: not logged in"):
        main({"path": str(tmp_path / "runs"), "publish": "wandb"}, tmp_path)
    assert (tmp_path / "runs" / "report.html").exists()


def test_markdown_table_escapes_bars() -> None:
    assert markdown_table(["a"], [["|z|"]]).splitlines()[-1] == r"| \|z\| |"
