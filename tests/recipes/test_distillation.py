"""Recipes of distillation, each to a result, on models so small and opinionated that a few steps show it; what their defaults reach is in docs/distillation.md."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import anyio
import attrs
import pytest

from actors import Schedule
from engine.completion import Reply, ScriptedCompleter
from engine.rendering import Message, ThinkingPart, assistant, user
from engine.rendering.messages import TextPart
from recipes import prompt_distillation, runs
from recipes.distillation import multi_teacher, off_policy_reasoning, on_policy, self_distillation
from recipes.distillation.pupils import TELEGRAPH, obeys, reasons, takes_hints, telegraphed, working
from recipes.distillation.teachers import TeacherConfig, check_same_tokens
from recipes.learning_rates import LearningRateConfig
from recipes.models import OpenedModel, open_model
from recipes.ports import Ports

WORDS = ("red", "blue", "green", "gold", "grey", "pink", "black", "white")


@attrs.frozen
class School:
    """A tiny model, and checkpoints of what it was taught: to each word of WORDS the one that follows, so often, and any other word otherwise."""

    model: Path
    directory: Path

    def checkpoint(self, right: float, hinted: bool = False) -> Path:
        """Taught once, kept."""
        directory = self.directory / f"{right}-{hinted}"
        if not directory.exists():
            anyio.run(self._teach, directory, right, hinted)
        return directory / "checkpoints" / f"{LESSONS:06d}"

    async def _teach(self, directory: Path, right: float, hinted: bool) -> None:
        from actors import RunSettings, train_supervised
        from engine.backends import AdamParams, local
        from recipes.models import ModelConfig, make_renderer
        from recipes.warm_up import WorkedConversations

        def conversation(number: int) -> list[Message]:
            random = Random(number)
            place = random.randrange(len(WORDS))
            answer = WORDS[(place + 1) % len(WORDS)]
            if hinted and number % 2:
                return [user(f"({answer}) {WORDS[place]}?"), assistant(answer)]
            return [
                user(f"{WORDS[place]}?"),
                assistant(answer if random.random() < right else random.choice(WORDS)),
            ]

        renderer = make_renderer(ModelConfig(model=str(self.model), renderer="role_colon"), self.model)
        async with local.open(self.model, threads=1) as backend:
            await train_supervised(
                backend,
                batches=WorkedConversations(renderer, conversation, LESSONS, 32),
                optimizer=AdamParams(6e-3, grad_clip_norm=3.0),
                run=RunSettings(directory, checkpoint_every=None),
            )

    def ports(self, student: Path) -> Ports:
        """The student begins where its checkpoint is."""

        @asynccontextmanager
        async def open_taught(config: Any, directory: Path, **options: Any) -> AsyncIterator[OpenedModel]:
            async with open_model(config, directory, **options) as opened:
                if not isinstance(config, TeacherConfig):
                    await opened.backend.load_state(student / "trainer").result()
                yield opened

        return Ports(open_model=open_taught)

    def teacher(self, *args: Any, **options: Any) -> TeacherConfig:
        """Who was taught so."""
        checkpoint = self.checkpoint(*args, **options)
        return TeacherConfig(model=str(self.model), renderer="role_colon", checkpoint=checkpoint)


LESSONS = 60


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    pytest.importorskip("torch")
    from engine.backends import local
    from recipes.tiny import make_tokenizer

    directory = tmp_path_factory.mktemp("school")
    words = [f" {word}\n\nUser: ({word}) {word}?\n\nAssistant: {word}" for word in WORDS]
    model = local.tiny_llama(
        directory / "model",
        make_tokenizer(words, vocabulary=300),
        hidden=48,
        layers=2,
        heads=4,
        context=48,
        initializer_range=0.06,
    )
    return School(model, directory)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{word}?"}) + "\n" for word in WORDS * 4), encoding="utf-8")
    return path


def shortened(config: Any, **changes: Any) -> Any:
    defaults = {
        "renderer": "role_colon",
        "steps": 20,
        "schedule": Schedule(groups_per_step=8),
        "group_size": 8,
        "answer_tokens": 3,
        "learning_rate": LearningRateConfig(peak=3e-3, warmup_steps=2),
        "evaluate_every": 20,
        "checkpoint_every": 10,
        "warm_up": 0,
    }
    return config(**{**defaults, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def held_out(directory: Path, metric: str) -> list[float]:
    return [row["metrics"][metric] for row in lines(directory / "evaluations.jsonl")]


def mean_kl(rows: Sequence[dict[str, Any]]) -> float:
    return fmean(row["teacher_kl"] for row in rows)


@pytest.mark.local
def test_on_policy_brings_the_student_to_the_teacher(
    school: School, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    config = shortened(
        on_policy.Config,
        model=str(school.model),
        teacher=school.teacher(1.0),
        data=prompts,
        test_data=prompts,
        run_dir=directory,
    )
    ports = school.ports(school.checkpoint(0.4))
    result = anyio.run(on_policy.run, config, ports)
    assert result is not None
    assert result.ending == "complete"
    before, after = held_out(directory, "all/teacher_kl")
    assert before > 0.5
    assert after < before / 2
    rows = lines(directory / "metrics.jsonl")
    assert mean_kl(rows[-5:]) < 0.6 * mean_kl(rows[:5])
    printed = capsys.readouterr().out
    assert "nats a token to the teacher over the first 3 steps" in printed
    assert "held out  KL to the teacher:" in printed
    # Cut off after its first checkpoint, it goes on: no step twice, no group twice, the same teacher.
    (directory / "checkpoints.jsonl").write_text(json.dumps(lines(directory / "checkpoints.jsonl")[0]) + "\n")
    anyio.run(on_policy.run, attrs.evolve(config, resume=True), ports)
    again = lines(directory / "metrics.jsonl")
    assert [row["step"] for row in again] == list(range(20))
    assert again[:10] == rows[:10]
    assert mean_kl(again[-5:]) == pytest.approx(mean_kl(rows[-5:]), abs=0.3)
    assert held_out(directory, "all/teacher_kl")[0] == before


@pytest.mark.local
def test_each_teacher_teaches_its_own_prompts(
    school: School, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {tag: tmp_path / f"{tag}.jsonl" for tag in ("first", "second")}
    for path, words in zip(files.values(), (WORDS[:4], WORDS[4:]), strict=True):
        path.write_text("".join(json.dumps({"prompt": f"{word}?"}) + "\n" for word in words * 8), encoding="utf-8")
    config = shortened(
        multi_teacher.Config,
        model=str(school.model),
        teachers=tuple(f"{tag}={school.model}" for tag in files),
        prompts=tuple(f"{tag}={path}" for tag, path in files.items()),
        held_out=16,
        schedule=Schedule(groups_per_step=16),
        steps=20,
        run_dir=tmp_path / "run",
    )
    taught = iter([school.checkpoint(1.0), school.checkpoint(1.0)])
    student = school.ports(school.checkpoint(0.4))

    @asynccontextmanager
    async def open_each(given: Any, directory: Path, **options: Any) -> AsyncIterator[OpenedModel]:
        async with student.open_model(given, directory, **options) as opened:
            if isinstance(given, TeacherConfig):
                await opened.backend.load_state(next(taught) / "trainer").result()
            yield opened

    anyio.run(multi_teacher.run, config, Ports(open_model=open_each))
    for tag in files:
        before, *_, after = held_out(tmp_path / "run", f"{tag}/teacher_kl")
        assert after < before / 2, tag
    row = lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["teacher_kl/first"] != row["teacher_kl/second"]
    assert "KL to the teacher, second:" in capsys.readouterr().out


@pytest.mark.local
@pytest.mark.parametrize("to", ["initial", "newest"])
def test_self_distillation_does_without_the_hint(to: Any, school: School, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"{word}?", "answer": other} for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = shortened(
        self_distillation.Config,
        model=str(school.model),
        to=to,
        data=problems,
        test_data=problems,
        hint="({answer}) {question}",
        run_dir=tmp_path / "run",
    )
    anyio.run(self_distillation.run, config, school.ports(school.checkpoint(0.4, hinted=True)))
    assert held_out(tmp_path / "run", "all/teacher_kl")[0] > 0.3
    # The newest weights are a teacher who moves: the two meet within a few steps, and drift apart again later.
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert mean_kl(rows[4:8]) < 0.6 * mean_kl(rows[:2])
    if to == "initial":
        before, after = held_out(tmp_path / "run", "all/teacher_kl")
        assert after < 0.35 * before


@pytest.mark.local
def test_prompt_distillation_answers_without_the_prompt(
    school: School, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    config = prompt_distillation.Config(
        model=str(school.model),
        renderer="role_colon",
        prompt="black white black gold gold gold",
        data=prompts,
        test_data=prompts,
        answer_tokens=16,
        batch_size=8,
        epochs=20,
        learning_rate=LearningRateConfig(peak=6e-3, warmup_steps=5),
        evaluate_every=100,
        run_dir=directory,
    )
    teacher = ScriptedCompleter(lambda messages: f"{messages[0].text.split()[0]} {messages[-1].text.strip('?')}")

    @asynccontextmanager
    async def open_completer(*args: Any, **options: Any) -> AsyncIterator[Any]:
        yield teacher

    ports = attrs.evolve(school.ports(school.checkpoint(0.4)), open_completer=open_completer)
    config = attrs.evolve(config, teacher=TeacherConfig(model="someone"))
    anyio.run(prompt_distillation.run, config, ports)
    assert held_out(directory, "agreement") == [0.0, 1.0]
    assert lines(directory / "answers" / "answers.jsonl")[1]["messages"] == [
        {"role": "user", "content": "blue?"},
        {"role": "assistant", "content": "black blue"},
    ]
    assert {messages[0].role for messages in teacher.asked} == {"system"}
    assert "blue?   black blue   (black blue)" in capsys.readouterr().out
    # Taken up again, nothing is asked and nothing is trained twice.
    asked = len(teacher.asked)
    anyio.run(prompt_distillation.run, attrs.evolve(config, resume=True), ports)
    assert len(teacher.asked) == asked == 64
    assert held_out(directory, "agreement") == [0.0, 1.0]


@pytest.mark.local
def test_reasoning_is_learnt_from_traces_that_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of what the teacher writes is wrong, and dropped."""
    pytest.importorskip("torch")
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12, 22)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked: dict[str, int] = {}

    def answer(messages: Sequence[Message]) -> Reply:
        n = int(messages[-1].text.split()[2])
        asked[messages[-1].text] = asked.get(messages[-1].text, 0) + 1
        right = asked[messages[-1].text] % 2 == 1
        return Reply(assistant([ThinkingPart(f"twice {n}"), TextPart(str(2 * n if right else n))]))

    @asynccontextmanager
    async def open_completer(*args: Any, **options: Any) -> AsyncIterator[Any]:
        yield ScriptedCompleter(answer)

    config = off_policy_reasoning.Config(
        data=problems,
        test_data=problems,
        teacher=TeacherConfig(model="someone"),
        batch_size=10,
        epochs=50,
        learning_rate=LearningRateConfig(peak=1e-2, warmup_steps=3),
        evaluate_every=100,
        run_dir=tmp_path / "run",
    )
    anyio.run(off_policy_reasoning.run, config, Ports(open_completer=open_completer))
    before, after = held_out(tmp_path / "run", "all/reward/total")
    assert before < 0.1
    assert after > 0.8
    printed = capsys.readouterr().out
    assert "10 answers kept, 10 dropped: wrong" in printed
    assert "What is 12 + 12?   [twice 12]   24   (24)" in printed
    # Those traces are data by themselves.
    traces = attrs.evolve(
        config,
        traces=True,
        data=tmp_path / "run" / "answers" / "answers.jsonl",
        test_data=None,
        held_out=2,
        epochs=1,
        run_dir=tmp_path / "again",
    )
    anyio.run(off_policy_reasoning.run, traces, Ports())
    assert lines(tmp_path / "again" / "evaluations.jsonl")[-1]["metrics"]["nll"] > 0


# ---- what is wrong is said before anything costs time


@pytest.mark.local
def test_a_teacher_of_another_vocabulary_is_refused(school: School, prompts: Path, tmp_path: Path) -> None:
    from recipes.tiny import make_model

    other = make_model(tmp_path / "other", 0)
    config = shortened(
        on_policy.Config,
        model=str(school.model),
        teacher=TeacherConfig(model=str(other), renderer="role_colon"),
        data=prompts,
        held_out=1,
        run_dir=tmp_path / "run",
    )
    with pytest.raises(ValueError, match="cuts text into other tokens than the student"):
        anyio.run(on_policy.run, config)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            multi_teacher.Config,
            {"teachers": ("a=x", "b=y"), "prompts": ("a=z",)},
            "tags of --teachers: those have a, b, --prompts a",
        ),
        (
            multi_teacher.Config,
            {"teachers": ("a",), "prompts": ("a=z",)},
            "teachers wants entries like math=something, not 'a'",
        ),
        (multi_teacher.Config, {"teachers": ("a=x", "a=y"), "prompts": ("a=z",)}, "teachers has the tag 'a' twice"),
        (multi_teacher.Config, {"dataset": "x"}, "prompts says the data of every tag"),
        (on_policy.Config, {"dataset": "x", "reward_weight": 1.0}, "rows of prompts have none"),
        (on_policy.Config, {"kl_coef": 0.0}, "'kl_coef' must be > 0"),
        (
            self_distillation.Config,
            {"hint": "{reply}"},
            "hint may hold {question}, {answer} and {solution}, not 'reply'",
        ),
        (
            prompt_distillation.Config,
            {"prompt": "a", "prompt_file": Path("b")},
            "prompt cannot be given beside --prompt-file",
        ),
        (off_policy_reasoning.Config, {"traces": True}, "traces needs --data or --dataset"),
    ],
)
def test_wrong_settings(config: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as wrong:
        config(**options)
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "x"}, "--data or --dataset must be given"),
        ({"model": "x", "dataset": "y"}, "--prompt or --prompt-file must be given"),
        ({"prompt_file": Path("/dev/null")}, "/dev/null is empty: what is to be distilled?"),
    ],
)
def test_prompt_distillation_needs_a_prompt_and_questions(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        anyio.run(prompt_distillation.run, prompt_distillation.Config(**options))
    assert list(tmp_path.iterdir()) == []


def test_other_models_have_other_defaults() -> None:
    config: Any
    for config, by_model in (
        (on_policy.Config, on_policy.FOR_REAL_MODELS),
        (prompt_distillation.Config, prompt_distillation.FOR_REAL_MODELS),
    ):
        real = runs.defaults(config, ["--model", "Qwen/Qwen3-0.6B"], by_model=by_model)
        assert (real.model, real.lora_rank) == ("Qwen/Qwen3-0.6B", 16)
        assert runs.defaults(config, [], by_model=by_model) == config()


def test_vocabularies_are_compared_by_what_they_cut() -> None:
    from engine.rendering import get_renderer
    from recipes.tiny import make_tokenizer

    same, other = (get_renderer("role_colon", make_tokenizer(texts)) for texts in (None, ["What is it? What is it?"]))
    check_same_tokens(same, get_renderer("role_colon", make_tokenizer()), "it")
    with pytest.raises(ValueError, match="the teacher it cuts text into other tokens"):
        check_same_tokens(same, other, "it")


# ---- the tiny pupils


def test_pupils_do_as_it_is_said_of_them() -> None:
    difficulty = off_policy_reasoning.DIFFICULTY
    hinted = [takes_hints(difficulty, "Hint: {answer}. {question}", 0, number) for number in range(1, 400, 2)]
    assert all(said[1].text == said[0].text.split()[1].rstrip(".") for said in hinted)
    plain = [takes_hints(difficulty, "{question}", 0, number) for number in range(0, 800, 2)]
    right = [said[1].text == str(sum(map(int, said[0].text[8:-1].split(" + ")))) for said in plain]
    assert 0.3 < sum(right) / len(right) < 0.7  # 4 in 5 with a carry, of which 65 % are forgotten
    told, untold = obeys(difficulty, 0, 1), obeys(difficulty, 0, 2)
    assert [message.role for message in told] == ["system", "user", "assistant"]
    assert told[0].text == TELEGRAPH
    assert untold[-1].text.isdigit()
    assert telegraphed(-52) == "- stop 5 stop 2 stop"
    for number in range(300):
        question, answer = reasons(difficulty, 0.5, 0, number)
        left, right_operand = map(int, question.text[8:-1].split(" + "))
        assert answer.thinking is not None
        units, tens = (int(step.split("=")[1]) for step in answer.thinking.split())
        assert units == left % 10 + right_operand
        assert int(answer.text) == tens * 10 + units % 10
    problem = difficulty.draw(0, 3)
    assert working(problem) != working(problem, slip=True) or not problem.carries
