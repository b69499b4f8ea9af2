"""What is to be seen in an image: one of some classes, named in one answer.

user       [image] Which of these is it: circle, cross, square, triangle? Answer with one of them.
assistant  circle
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs

from engine.data.images import LabelledImage, classes_of, image_directory, read_labelled_images
from engine.rendering import ImagePart, Message, Renderer, TextPart, assistant, user
from engine.runtime.offload import offload
from envs.contracts import Env, GroupBuilder
from envs.problem import ProblemEnv
from envs.vision.drawing import DrawnShapes

WORDING = "Which of these is it: {}? Answer with one of them."


class LabelledImages(Protocol):
    """Labelled images by position; `Examples[LabelledImage]`, `DrawnShapes`, a list."""

    def __getitem__(self, index: int, /) -> LabelledImage: ...

    def __len__(self) -> int: ...


def match_class(answer: str, classes: Sequence[str]) -> str | None:
    """The class that an answer names: alone, or somewhere in a sentence. None where it names none, or several.

    Whole words count, capitals do not; where one class's name holds another's (`car`, `sports car`), the longer one is meant.
    """
    found = {match.lower() for match in _names(tuple(classes)).findall(answer[-2000:])}
    if len(found) != 1:
        return None
    name = found.pop()
    return next(each for each in classes if each.lower() == name)


@lru_cache(maxsize=64)
def _names(classes: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(classes, key=lambda name: (-len(name), name))
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


class ImageEnv(ProblemEnv):
    """One attempt at an image: 1 for its class, 0 for any other answer. An answer that names no class, or several, is in the wrong form."""

    def __init__(
        self, renderer: Renderer, example: LabelledImage, classes: Sequence[str], wording: str = WORDING
    ) -> None:
        """`wording`: the question, with {} where the classes stand."""
        super().__init__(renderer)
        self.example = example
        self.classes = classes
        self._question = wording.format(", ".join(classes))

    def question(self) -> str:
        """The text beside the image."""
        return self._question

    def messages(self) -> Sequence[Message]:
        """The image, then the question."""
        return [asked(self.example.image, self._question)]

    def well_formed(self, answer: str) -> bool:
        """Whether exactly one class is named."""
        return match_class(answer, self.classes) is not None

    def grade(self, answer: str) -> float:
        """Compares the class that is named."""
        return float(match_class(answer, self.classes) == self.example.label)

    def reference(self) -> str:
        """The right class."""
        return self.example.label


def asked(image: ImagePart, question: str) -> Message:
    """The user's message: image first, as most families were trained."""
    return user([image, TextPart(question)])


def answered(example: LabelledImage, classes: Sequence[str], wording: str = WORDING) -> list[Message]:
    """An example as a conversation, for supervised training."""
    return [asked(example.image, wording.format(", ".join(classes))), assistant(example.label)]


class ImageGroup(GroupBuilder):
    """Several answers to one image, asked for in one sampling request. The image is read when the group is made."""

    single_turn = True

    def __init__(
        self,
        renderer: Renderer,
        images: LabelledImages,
        index: int,
        classes: Sequence[str],
        size: int,
        wording: str = WORDING,
        tags: Sequence[str] = ("images",),
    ) -> None:
        self._renderer = renderer
        self._images = images
        self._index = index
        self._classes = tuple(classes)
        self._size = size
        self._wording = wording
        self.tags = tuple(tags)

    async def make_envs(self) -> Sequence[Env]:
        """The attempts; the image is read, and its size with it, off the event loop."""
        example = await offload(self._images.__getitem__, self._index)
        if example.label not in self._classes:
            raise ValueError(
                f"image {self._index} is a {example.label!r}, which is none of the classes {', '.join(self._classes)}"
            )
        envs = [ImageEnv(self._renderer, example, self._classes, self._wording) for _ in range(self._size)]
        for env in envs[1:]:
            env.share_prompt(envs[0])
        return envs


@attrs.frozen
class ImageGroups:
    """A dataset of groups: image `index`, answered by `group_size` members."""

    renderer: Renderer
    images: LabelledImages
    classes: Sequence[str]
    group_size: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    wording: str = WORDING
    tags: tuple[str, ...] = ("images",)

    def __attrs_post_init__(self) -> None:
        folded = [name.lower() for name in self.classes]
        if len(folded) < 2 or len(set(folded)) != len(folded):
            raise ValueError(f"at least two different classes are needed, got {', '.join(self.classes) or 'none'}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> GroupBuilder:
        if not 0 <= index < len(self.images):
            raise IndexError(f"image {index} of {len(self.images)}")
        return ImageGroup(self.renderer, self.images, index, self.classes, self.group_size, self.wording, self.tags)


def groups(
    renderer: Renderer,
    *,
    group_size: int = 8,
    seed: int = 0,
    data: str | Path | None = None,
    classes: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    asks: Literal["shape", "colour", "both"] = "shape",
    size: int = 64,
) -> ImageGroups:
    """What `envs.registry` opens as "images": a directory of classes, rows by hub name or file, or drawn shapes. Reads every label where `classes` are not given."""
    images, names = labelled_images(
        data, classes=classes, columns=columns, split=split, asks=asks, size=size, seed=seed
    )
    return ImageGroups(renderer, images, names, group_size)


def labelled_images(
    data: str | Path | None = None,
    *,
    classes: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    asks: Literal["shape", "colour", "both"] = "shape",
    size: int = 64,
    seed: int = 0,
    load_rows: Any = None,
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Labelled images and their classes. `data` None: drawn shapes (`asks`, `size`, `seed`); a directory of subdirectories; else rows, with `columns` such as
    `{"image": "img", "label": "fine_label"}`. Blocks where there are files."""
    if data is None:
        drawn = DrawnShapes(asks, size, seed=seed)
        return drawn, drawn.classes
    path = Path(data).expanduser()
    if path.is_dir() and any(each.is_dir() for each in path.iterdir()):
        rows = image_directory(path)
    else:
        from engine.data import load_rows as from_hub_or_file

        rows = (load_rows or from_hub_or_file)(data, split=split)
    chosen = columns or {}
    images = read_labelled_images(rows, image=chosen.get("image"), label=chosen.get("label"), classes=classes)
    return images, tuple(classes) or classes_of(images)
