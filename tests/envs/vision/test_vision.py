"""Images from pixels to datums: drawing, reading, asking, grading, and training on what is claimed to take images."""

from __future__ import annotations

import io
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import RLSettings, RunResult, Schedule, train_rl, train_supervised
from engine.backends import ImageChunk, SampleRequest, SamplingParams, TokenChunk
from engine.backends.simulated import Draw, SamplerModel, SimulatedBackend
from engine.data import BadRow, DataError, rows_of
from engine.data.images import LabelledImage, classes_of, image_directory, read_labelled_images
from engine.rendering import ImagePart, get_renderer
from engine.rendering.images import image_size
from engine.rendering.registry import control_tokens
from engine.rendering.vocabulary import byte_vocabulary
from engine.runtime.simulation import simulate
from engine.training.supervised import supervised_datum
from envs import conformance
from envs.contracts import GroupDataset
from envs.registry import open_env
from envs.rollout import RolloutSettings, play_group
from envs.vision.classification import ImageGroup, ImageGroups, answered, labelled_images, match_class
from envs.vision.drawing import COLOURS, SHAPES, DrawnShapes, draw, png
from recipes.warm_up import WorkedConversations

VOCABULARY = byte_vocabulary(control_tokens("qwen3_vl_instruct"))
RENDERER = get_renderer("qwen3_vl_instruct", VOCABULARY)
DRAWN = DrawnShapes(seed=3)


# ---- drawing


def test_a_png_is_what_was_drawn() -> None:
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (5, 9, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as read:
        assert (read.mode, read.size) == ("RGB", (9, 5))
        assert np.array_equal(np.asarray(read), pixels)
    assert image_size(ImagePart(png(pixels))) == (9, 5)
    with pytest.raises(ValueError, match=r"not shape \(5, 9\) of uint8"):
        png(pixels[..., 0])


def test_pictures_follow_from_seed_and_index_and_show_what_they_say() -> None:
    again = DrawnShapes(seed=3)
    for index in range(20):
        assert DRAWN[index] == again[index]
    assert DrawnShapes(seed=4)[0] != DRAWN[0]
    assert {DRAWN[index].label for index in range(60)} == set(SHAPES)
    both = DrawnShapes("both", seed=3)
    assert [both[index].label.split()[1] for index in range(9)] == [DRAWN[index].label for index in range(9)]
    assert len(both.classes) == len(COLOURS) * len(SHAPES)
    with pytest.raises(IndexError, match="picture 9 of 9"):
        DrawnShapes(count=9)[9]


@pytest.mark.parametrize(
    ("shape", "share"), [("circle", np.pi / 4), ("square", 0.85**2), ("triangle", 0.5), ("cross", 0.33 * 2 - 0.33**2)]
)
def test_shapes_have_their_areas(shape: str, share: float) -> None:
    """Of the square around them, whose side follows from the drawing itself."""
    pixels = draw(shape, (0, 0, 0), 400, np.random.default_rng(1))
    inside = (pixels == 0).all(axis=2)
    side = np.ptp(np.flatnonzero(inside.any(axis=0))) + 1
    if shape == "square":
        side /= 0.85
    assert inside.sum() / side**2 == pytest.approx(share, abs=0.02)


def test_colours_are_those_of_the_label() -> None:
    coloured = DrawnShapes("colour", noise=0.0, seed=1)
    for index in range(12):
        example = coloured[index]
        assert isinstance(example.image.source, bytes)
        raw = zlib.decompress(example.image.source.split(b"IDAT")[1].split(b"IEND")[0][:-8])
        pixels = np.frombuffer(raw, np.uint8).reshape(64, -1)[:, 1:].reshape(64, 64, 3)
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        assert tuple(colours[np.argsort(counts)[-2]].tolist()) == COLOURS[example.label]


# ---- reading


PNG = png(np.zeros((4, 6, 3), np.uint8))


def test_rows_with_images_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    rows: list[dict[str, Any]] = [
        {"image": PNG, "label": "cat"},
        {"image": {"bytes": PNG, "path": None}, "label": 1},
        {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "label": "dog"},
        {"image": str(tmp_path / "a.png"), "label": 0},
    ]
    examples = read_labelled_images(rows_of(rows, "mine"), classes=("cat", "dog"))
    assert [example.label for example in examples] == ["cat", "dog", "dog", "cat"]
    assert {(each.image.width, each.image.height) for each in examples} == {(6, 4)}
    assert examples[3].image.source == str(tmp_path / "a.png")
    renamed = read_labelled_images(rows_of([{"x": PNG, "y": "cat"}], "mine"), image="x", label="y")
    assert renamed[0] == LabelledImage(ImagePart(PNG, 6, 4), "cat")
    assert classes_of(examples) == ("cat", "dog")


def test_pictures_that_datasets_has_decoded() -> None:
    Image = pytest.importorskip("PIL.Image")
    with Image.fromarray(np.full((3, 5, 3), 7, np.uint8)) as picture:
        (example,) = read_labelled_images(rows_of([{"img": picture, "fine_label": "seven"}], "mine"))
    assert (example.image.width, example.image.height, example.label) == (5, 3, "seven")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "cat"}, "row 1.*field 'image' is missing; there are label"),
        ({"image": PNG}, "field 'label' is missing"),
        ({"image": 3, "label": "cat"}, "field 'image': an image is wanted, not a number"),
        ({"image": b"nothing", "label": "cat"}, "field 'image': .*"),
        ({"image": "not/there.png", "label": "cat"}, r"field 'image': the image not/there\.png cannot be read"),
        ({"image": PNG, "label": "cow"}, "'cow' is none of the classes cat, dog"),
        ({"image": PNG, "label": 2}, "is 2, but there are 2 classes"),
        ({"image": PNG, "label": 1.5}, "a class's name or number is wanted, not a number"),
        ({"image": PNG, "label": ""}, "field 'label' is empty"),
    ],
)
def test_rows_that_do_not_fit_are_named(row: dict[str, Any], message: str) -> None:
    examples = read_labelled_images(rows_of([row], "mine"), classes=("cat", "dog"))
    with pytest.raises(BadRow, match=message):
        examples[0]


def test_a_number_needs_the_classes_names() -> None:
    with pytest.raises(BadRow, match="is the number 1: the classes' names are needed"):
        read_labelled_images(rows_of([{"image": PNG, "label": 1}], "mine"))[0]


def test_a_directory_of_classes(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.PNG").write_bytes(PNG)
        (tmp_path / name / "notes.txt").write_text("no image")
    images, classes = labelled_images(tmp_path)
    assert classes == ("cat", "dog")
    assert [images[index].label for index in range(len(images))] == ["cat", "dog"]
    with pytest.raises(DataError, match="is no directory of images"):
        image_directory(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images in subdirectories"):
        image_directory(tmp_path / "empty")


# ---- asking and grading


CLASSES = ("car", "sports car", "bus", "T-shirt")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("bus", "bus"),
        (" Bus. ", "bus"),
        ("It is a sports car!", "sports car"),
        ("a car", "car"),
        ("a car, surely a CAR", "car"),
        ("a t-shirt", "T-shirt"),
        ("buses", None),
        ("a car or a bus", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_the_class_that_an_answer_names(answer: str, found: str | None) -> None:
    assert match_class(answer, CLASSES) == found


def test_classes_must_differ() -> None:
    for classes in ((), ("cat",), ("cat", "Cat")):
        with pytest.raises(ValueError, match="at least two different classes"):
            ImageGroups(RENDERER, DRAWN, classes)


def answers(*texts: str) -> SamplerModel:
    def script(request: SampleRequest, index: int) -> Draw:
        end = RENDERER.stop_sequences()[0]
        return Draw(np.array([*VOCABULARY.encode(texts[index % len(texts)]), end], np.int32))

    return SamplerModel(vocabulary=(0, VOCABULARY.vocab_size), script=script)


def test_a_group_is_asked_once_with_the_image_in_the_prompt_and_graded() -> None:
    label = DRAWN[0].label
    other = next(name for name in SHAPES if name != label)
    asked: list[SampleRequest] = []

    async def program() -> Any:
        backend = SimulatedBackend(answers(label, f"It is a {other}", "I cannot tell", f"{label} or {other}"))
        snapshot = await backend.snapshot().result()

        class Policy:
            async def sample(self, request: SampleRequest) -> Any:
                asked.append(request)
                return await backend.sample(snapshot, request)

        return await play_group(ImageGroups(RENDERER, DRAWN, SHAPES, 4)[0], Policy(), RolloutSettings(), 1)

    group = simulate(program).unwrap()
    assert group.rewards_G.tolist() == [1.0, 0.0, -0.1, -0.1]
    assert group.trajectories[0].turns[0].logs["reference"] == label
    (request,) = asked
    before, image, after = request.prompt.chunks
    assert isinstance(image, ImageChunk)
    assert image.source == DRAWN[0].image.source
    assert image.expected_tokens == 64  # 64 x 64 is shown at 256 x 256, in blocks of 32 x 32
    assert isinstance(before, TokenChunk)
    assert isinstance(after, TokenChunk)
    text = VOCABULARY.decode(before.tokens.tolist()) + "[]" + VOCABULARY.decode(after.tokens.tolist())
    assert text == (
        "<|im_start|>user\n<|vision_start|>[]<|vision_end|>Which of these is it: circle, square, triangle, cross? "
        "Answer with one of them.<|im_end|>\n<|im_start|>assistant\n"
    )
    vision = [VOCABULARY.special_tokens[name] for name in ("<|vision_start|>", "<|vision_end|>")]
    assert [before.tokens[-1], after.tokens[0]] == vision  # control tokens, not their letters


def test_an_image_of_no_class_is_said() -> None:
    group = ImageGroup(RENDERER, [LabelledImage(ImagePart(PNG, 6, 4), "cow")], 0, ("cat", "dog"), 2)
    with pytest.raises(ValueError, match="image 0 is a 'cow', which is none of the classes cat, dog"):
        simulate(group.make_envs).unwrap()


# ---- training


def test_supervised_datums_train_the_answer_and_nothing_of_the_image() -> None:
    (example,) = RENDERER.supervised_examples(answered(DRAWN[0], SHAPES))
    datum = supervised_datum(example.model_input, example.weights_T)
    assert datum is not None
    images = [chunk for chunk in datum.model_input.chunks if isinstance(chunk, ImageChunk)]
    assert [image.expected_tokens for image in images] == [64]
    targets, weights = datum.loss_inputs["target_tokens"], datum.loss_inputs["weights"]
    assert len(targets) == datum.model_input.length
    assert VOCABULARY.decode(targets[weights > 0].tolist()).startswith(DRAWN[0].label)


def test_both_kinds_of_training_fit_a_backend_that_takes_images() -> None:
    async def reinforced() -> RunResult:
        return await train_rl(
            SimulatedBackend(answers("circle", "square", "triangle", "what?")),
            groups=ImageGroups(RENDERER, DRAWN, SHAPES, 4),
            schedule=Schedule(3),
            steps=2,
            settings=RLSettings(RolloutSettings(SamplingParams(max_tokens=16)), seed=1, drop_constant_groups=False),
        )

    async def supervised() -> RunResult:
        batches = WorkedConversations(RENDERER, lambda n: answered(DRAWN[n], SHAPES), 2, batch_size=4)
        return await train_supervised(SimulatedBackend(), batches=batches)

    found = simulate(reinforced).unwrap()
    assert [row["optim/datums"] for row in found.rows] == [12, 12]
    assert 0 < found.rows[0]["env/images/correct"] < 1
    assert simulate(supervised).unwrap().version == 2


@asynccontextmanager
async def opened() -> AsyncIterator[GroupDataset]:
    async with open_env("images", RENDERER, group_size=3, seed=2, asks="both", size=32) as groups:
        yield groups


SUBJECT = conformance.Subject(opened, RENDERER, ["red circle", "a blue cross", "a circle"])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Callable[[conformance.Subject], Any]) -> None:
    if reason := conformance.gap(check, SUBJECT):
        pytest.skip(reason)
    await check(SUBJECT)
