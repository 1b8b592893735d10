"""Streams that are pure functions of their number and never meet; scorers that read answers as documented."""

import json
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import conf
from opo.config.read import read
from opo.errors import UserError
from opo.rewards.runner import RewardRunner
from opo.tasks import TASKS, make_task, render
from opo.tasks.arithmetic import ALPHABET, SHARES, Arithmetic, ArithmeticConfig
from opo.tasks.math import Math, MathConfig
from opo.tasks.reasoning_gym import Example, ReasoningGym, ReasoningGymConfig

CONF = Path(conf.__file__).parent / "task"


@pytest.fixture
def questions_file(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {a} / {a + 1}?", "answer": f"\\frac{{{a}}}{{{a + 1}}}"} for a in range(1, 61)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(params=["arithmetic", "chain_sum", "gsm_symbolic", "math"])
def task(request, questions_file):
    if request.param == "arithmetic":
        return Arithmetic(ArithmeticConfig(seed=3))
    if request.param == "math":
        return Math(MathConfig(path=str(questions_file)))
    return ReasoningGym(ReasoningGymConfig(dataset=request.param))


def test_prompts_are_numbered_and_resume_anywhere(task):
    forward = [task.prompt(i) for i in range(12)]
    assert [task.prompt(i) for i in reversed(range(12))] == forward[::-1]
    assert [p.index for p in forward] == list(range(12))
    assert pickle.loads(pickle.dumps(task)).prompt(7) == forward[7]
    assert len({p.text for p in forward}) > 6


def test_train_and_eval_never_meet(task):
    train = {task.prompt(i).text for i in range(300)}
    held = {task.prompt(i, "eval").text for i in range(5)}
    assert train
    assert held
    assert not train & held


def test_prompts_are_the_same_in_another_process_and_differ_by_seed():
    script = (
        "from opo.tasks.reasoning_gym import *; from opo.tasks.arithmetic import *; "
        "print([t.prompt(i, s).text for t in (Arithmetic(ArithmeticConfig()), ReasoningGym(ReasoningGymConfig())) "
        "for s in ('train', 'eval') for i in (0, 10**9)])"
    )
    tasks = [Arithmetic(ArithmeticConfig()), ReasoningGym(ReasoningGymConfig())]
    here = [t.prompt(i, s).text for t in tasks for s in ("train", "eval") for i in (0, 10**9)]
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)
    for task in tasks:
        other = type(task)(replace(task.config, seed=1))
        shared = {task.prompt(i).text for i in range(40)} & {other.prompt(i).text for i in range(40)}
        assert len(shared) < 10


def test_prompts_touch_no_global_randomness(task):
    state = random.getstate()
    task.prompt(5)
    assert random.getstate() == state


def test_every_gold_answer_earns_one_and_junk_nothing(task):
    with RewardRunner(task, workers=1) as runner:
        prompts = [task.prompt(i) for i in range(12)]
        scored = runner.score(prompts, [[f"so = {p.answer}", "so = 98765", "no idea", ""] for p in prompts])
    assert not scored.reasons
    assert scored.rewards_PG.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 12


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("10", "10"),
        ("7+3=10", "10"),
        ("7+3= 10 ", "10"),
        ("", None),
        ("7+3=", None),
        ("7+3", None),
        ("=10?", None),
        ("10=7+3", None),
        ("1 0", None),
    ],
)
def test_arithmetic_reads_what_follows_the_last_equals_sign(response, answer):
    assert Arithmetic(ArithmeticConfig()).extract(response) == answer


def test_demonstrations_are_an_instrument():
    task = Arithmetic(ArithmeticConfig())
    pairs = task.demonstrations(random.Random(0), 20_000)
    assert pairs == task.demonstrations(random.Random(0), 20_000)
    assert set("".join(p + r for p, r in pairs)) <= set(ALPHABET)
    held = {task.prompt(i, "eval").text for i in range(200)}
    assert not held & {p for p, _ in pairs}
    right = {p: str(sum(map(int, p[:-1].split("+")))) for p, _ in pairs}
    scores = [float(task.extract(r) == right[p]) for p, r in pairs]
    assert 0.3 < sum(scores) / len(scores) < 0.6
    guesses = [s for (_, r), s in zip(pairs, scores, strict=True) if "=" not in r and "+" not in r]
    worked = [s for (_, r), s in zip(pairs, scores, strict=True) if "=" in r]
    assert sum(guesses) / len(guesses) == pytest.approx(1 / 7, abs=0.02)
    assert sum(worked) / len(worked) > 0.75
    assert len(guesses) / len(pairs) == pytest.approx(SHARES["guess"], abs=0.02)
    lengths = {}
    for prompt, response in pairs:
        lengths.setdefault(prompt, []).append(len(response))
    spreads = sorted(max(all_) / min(all_) for all_ in lengths.values() if len(all_) >= 8)
    assert spreads[len(spreads) // 10] >= 5  # nine questions of ten, from a few answers each


def test_reasoning_gym_answers_come_from_the_tag_then_the_number_of_the_first_line():
    examples = [Example("1 + 1", "1 + 1 = 2")]
    task = ReasoningGym(ReasoningGymConfig(template="few_shot", examples=examples, question="{metadata[expression]}"))
    prompt = task.prompt(0)
    assert prompt.text.startswith("Question: 1 + 1\nAnswer: 1 + 1 = 2\nQuestion: ")
    assert prompt.text.endswith("\nAnswer:")
    assert task.stop == ("\n",)
    assert task.extract(" 4\nQuestion: 5 + 5\nAnswer: 10") == "4"
    assert task.extract("<answer>3</answer> or <answer> 4 </answer> not 5") == "4"
    assert ReasoningGym(ReasoningGymConfig(answer="text")).extract(" a b ") == "a b"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<answer>7</answer> no, <answer>8</answer>", "8"),
        ("<answer> 7\n</answer>", "7"),
        ("7 <answer>8", "8"),
        ("<answer><answer>7</answer>", "7"),
        ("</answer> <answer>7</answer>", "7"),
        ("<answer>007.0</answer>", "7"),
        ("It is \u22127.", "-7"),
        ("= 6/8", "3/4"),
        ("The total is 72 clips, altogether.", "72"),
    ],
)
def test_reasoning_gym_votes_by_the_value_of_the_last_complete_tag(response, answer):
    assert ReasoningGym(ReasoningGymConfig()).extract(response) == answer


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [("spell_backward", "text"), ("prime_factorization", "text"), ("countdown", "text"), ("chain_sum", "number")],
)
def test_only_the_full_mark_is_paid_and_a_malformed_answer_is_wrong(dataset, answer):
    task = ReasoningGym(ReasoningGymConfig(dataset=dataset, answer=answer, allow_eval=True))
    graded = ReasoningGym(replace(task.config, binary=False))
    for index in range(12):
        prompt = task.prompt(index)
        assert task.score(prompt, prompt.answer) == 1
        junk = [
            "",
            "dunno",
            "(" * 3000,
            "()",
            "1 x",
            "9**9",
            "-",
            "\0",
            f"{prompt.answer}x",
            f"{prompt.answer}xyz",
            f"{prompt.answer}xyzzy",
        ]
        assert [task.score(prompt, text) for text in junk if answer == "text"] == [0] * (
            len(junk) if answer == "text" else 0
        )
        assert all(0 <= graded.score(prompt, text) <= 1 for text in junk)


def test_a_scorer_that_cannot_judge_its_own_gold_answer_is_at_fault_itself():
    task = ReasoningGym(ReasoningGymConfig())
    prompt = task.prompt(0)
    broken = replace(prompt, metadata={"item": {"answer": None}})
    with pytest.raises(Exception, match=r".+"):
        task.score(broken, "5")


def test_datasets_that_run_answers_as_code_are_refused():
    config = ReasoningGymConfig(dataset="n_queens")
    with pytest.raises(UserError, match=r"task.dataset=n_queens: .*Python code.*task.allow_eval=true"):
        ReasoningGym(config)
    ReasoningGym(replace(config, allow_eval=True))
    composite = ReasoningGymConfig(dataset="composite", options={"datasets": [{"name": "n_queens", "weight": 1}]})
    with pytest.raises(UserError, match=r"task.dataset=n_queens"):
        ReasoningGym(composite)


def test_a_dataset_that_pays_wrong_answers_is_named(capsys):
    make_task(ReasoningGymConfig(dataset="game_of_life_halting", answer="text"))
    make_task(ReasoningGymConfig(dataset="game_of_life_halting", answer="text"))
    assert (
        capsys.readouterr().err.count(
            "task.dataset=game_of_life_halting: its scorer gives the full mark to wrong answers"
        )
        == 1
    )
    assert ReasoningGym(ReasoningGymConfig(dataset="chain_sum", question="{question}")).warnings == []


def test_the_survey_covers_every_dataset():
    from reasoning_gym.factory import DATASETS

    from opo.tasks.reasoning_gym import surveyed

    assert {name for name in DATASETS if not surveyed(name)} == set()


def test_a_dataset_that_prints_while_it_is_made_is_silent(capfd):
    make_task(ReasoningGymConfig(dataset="bf", answer="text"))
    assert capfd.readouterr().out == ""


def test_partial_credit_only_on_request():
    graded, binary = (ReasoningGym(ReasoningGymConfig(binary=b, answer="text")) for b in (False, True))
    prompt = graded.prompt(0)
    response = f"The answer is {prompt.answer}"
    assert 0 < graded.score(prompt, response) < 1
    assert binary.score(prompt, response) == 0
    assert binary.score(prompt, prompt.answer) == 1


def test_a_dataset_without_gold_answers_is_scored_from_its_metadata():
    task = ReasoningGym(ReasoningGymConfig(dataset="propositional_logic", answer="text"))
    prompt = task.prompt(0)
    assert prompt.answer == ""
    assert task.score(prompt, prompt.metadata["item"]["metadata"]["example_answer"]) == 1
    assert task.score(prompt, "P") == 0  # the dataset itself gives junk a little


def test_composites_mix_datasets():
    options = {
        "datasets": [{"name": "gcd", "weight": 1}, {"name": "chain_sum", "weight": 1, "config": {"max_terms": 2}}]
    }
    task = ReasoningGym(ReasoningGymConfig(dataset="composite", options=options))
    prompts = [task.prompt(i) for i in range(20)]
    assert {p.metadata["item"]["metadata"]["source_dataset"] for p in prompts} == {"gcd", "chain_sum"}
    assert all(task.score(p, p.answer) == 1 for p in prompts)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"dataset": "chain_sums"}, r"task.dataset=chain_sums: .*did you mean chain_sum\?"),
        ({"options": {"term_max": 3}}, r"task.options: .*term_max.* options of chain_sum are .*max_terms"),
        ({"options": {"min_terms": 9}}, r"task.options: max_terms must be >= min_terms"),
        ({"options": {"seed": 1}}, r"task.options.seed: not an option"),
        ({"template": "few_shot"}, r"task.template=few_shot: task.examples"),
        ({"template": "few"}, r"task.template=few: not one of plain"),
        ({"question": "{metadata[sum]}"}, r"task.question=.*'sum'.*expression"),
        ({"dataset": "composite"}, r"task.options: .*at least one dataset"),
        (
            {"dataset": "coin_flip", "options": {"min_trials": 3, "max_trials": 3, "allow_invalid": True}},
            r"task.options: ",
        ),
    ],
)
def test_reasoning_gym_refuses_in_one_line(values, says):
    with pytest.raises(UserError, match=says) as caught:
        make_task(read(ReasoningGymConfig, values, "task"))
    assert "\n" not in str(caught.value)


def test_questions_that_follow_the_hash_seed_are_refused_without_one(monkeypatch):
    config = ReasoningGymConfig(dataset="ransom_note")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UserError, match="PYTHONHASHSEED"):
        ReasoningGym(config)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    ReasoningGym(config)


@pytest.mark.parametrize(
    "values", [{"terms_min": 1}, {"terms_min": 5, "terms_max": 4}, {"terms_max": 9}, {"addend_max": 1}]
)
def test_arithmetic_refuses_sums_that_do_not_fit(values):
    with pytest.raises(UserError, match=next(iter(values))):
        read(ArithmeticConfig, values, "task")


# task=file has no reward of its own: test_own.py
@pytest.mark.parametrize("path", sorted({*CONF.glob("*.yaml")} - {CONF / "file.yaml"}), ids=lambda path: path.stem)
def test_every_task_config_builds(path, questions_file):
    values = yaml.safe_load(path.read_text())
    assert next(iter(values)) == "name"
    if values["name"] == "math":
        values["path"] = str(questions_file)
    task = make_task(read(TASKS[values["name"]][0], values, "task"))
    prompt = task.prompt(0)
    assert task.score(prompt, prompt.answer) == 1


def test_chat_prompts_wear_the_template_of_the_tokenizer():
    class Tokenizer:
        chat_template = "of its own"

        def apply_chat_template(self, messages, add_generation_prompt, tokenize, **_):
            assert add_generation_prompt
            assert not tokenize
            return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    prompt = ReasoningGym(ReasoningGymConfig(template="chat")).prompt(0)
    assert render(prompt, Tokenizer()) == f"<user>{prompt.text}<assistant>"
    assert render(replace(prompt, chat=False), Tokenizer()) == prompt.text
