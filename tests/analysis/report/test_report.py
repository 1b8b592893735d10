"""The page: one file that fetches nothing, escapes what it shows, can be found one's way in, and says what cannot be concluded."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from studies import bandit_study, write_run

from analysis.claims.evidence import Material
from analysis.claims.files import write_ledgers
from analysis.claims.ledger import judge, save
from analysis.claims.records import evidence_of
from analysis.commands.report import load_config, main
from analysis.report.page import write_report
from analysis.report.wandb import markdown_table
from analysis.runs.groups import with_groups
from analysis.runs.load import load
from opo.errors import UserError

VOID = {"meta", "link", "br", "img", "hr", "input"}


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
    sections = ["ledger", "variance", "assumptions", "policies", "training", "runs", "limits", "repeat"]
    assert [link[1:] for link in page.links[1:]] == sections


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
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert {f"ledger-{policy['name']}" for policy in study.policies} <= set(page.ids)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report on"):
        write_report(tmp_path)
    with pytest.raises(UserError, match=r"path: give a folder"):
        load_config({"path": ""})
    with pytest.raises(UserError, match="no such folder"):
        load_config({"path": str(tmp_path / "absent")})
    with pytest.raises(UserError, match="publish=twitter: not one of wandb"):
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
