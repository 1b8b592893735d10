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
from opo.tasks.base import last_number
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
    held = {task.prompt(i, "eval").text for i in range(60)}
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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 - 7 = 5, so 5 - 9 = -4", "-4"),
        ("10-8", "8"),
        ("about 1,234.50.", "1234.50"),
        ("x = 3.", "3"),
        ("1,2,3", "3"),
        ("none", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


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


def test_math_is_equal_as_mathematics(questions_file):
    task = Math(MathConfig(path=str(questions_file)))
    prompt = next(p for p in map(task.prompt, range(60)) if p.answer == "\\frac{1}{2}")
    assert prompt.chat
    for response in ("so \\boxed{\\frac12}", "$0.5$", "the answer is 1/2", "\\boxed{\\frac{2}{4}}"):
        assert task.score(prompt, response) == 1, response
    for response in ("\\boxed{\\frac13}", "", "half of it", "\\boxed{2}"):
        assert task.score(prompt, response) == 0, response
    assert task.extract("\\boxed{1}, then \\boxed{ \\frac{1}{2} }.") == "\\frac{1}{2}"
    assert task.extract("\\boxed{1") is None
    assert task.extract("it is 1,000") == "1000"


def test_math_visits_every_question_once_a_lap(questions_file):
    task = Math(MathConfig(path=str(questions_file), seed=5))
    count = next(i for i in range(1, 60) if len({task.prompt(j).text for j in range(i + 1)}) == i)
    first, second = ([task.prompt(lap * count + i).text for i in range(count)] for lap in (0, 1))
    assert len(set(first)) == count
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("not json", ":1: needs an object"),
        ('{"question": "a", "answer": "1"}\n{"question": "b"}', ":2: needs an object"),
        ('{"question": "a", "answer": 1}', ":1: question and answer must be text"),
        ("[1]", ":1: needs an object"),
        ('{"question": "a", "answer": ""}', ":1: question and answer must be text"),
    ],
)
def test_math_names_the_line_it_cannot_read(tmp_path, content, says):
    path = tmp_path / "q.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=says):
        Math(MathConfig(path=str(path)))


@pytest.mark.parametrize(
    "values", [{"terms_min": 1}, {"terms_min": 5, "terms_max": 4}, {"terms_max": 9}, {"addend_max": 1}]
)
def test_arithmetic_refuses_sums_that_do_not_fit(values):
    with pytest.raises(UserError, match=next(iter(values))):
        read(ArithmeticConfig, values, "task")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
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
        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            assert add_generation_prompt
            assert not tokenize
            return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    prompt = ReasoningGym(ReasoningGymConfig(template="chat")).prompt(0)
    assert render(prompt, Tokenizer()) == f"<user>{prompt.text}<assistant>"
    assert render(replace(prompt, chat=False), Tokenizer()) == prompt.text
