"""What the embedded datasets say of a scene besides its captions: parts of them, Chinese, paragraphs, conversations.

English stays within the words of ``VOCABULARY_FILE``, except for the letters of options and the class templates.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ivt2.data.synthetic import MOTIONS, SAID_OF_MOTION, Colour, Motion, Relation, Scene, Shape, Size, Tone

CLASS_SENTENCES: tuple[str, ...] = tuple(f"the object {SAID_OF_MOTION[motion][0]}" for motion in MOTIONS)
"""What each class says, in the order of their numbers."""
TEMPLATES: tuple[str, ...] = tuple(f"[something] {SAID_OF_MOTION[motion][0]}" for motion in MOTIONS)
"""The classes as templates whose place is in brackets, in the order of their numbers."""
SEEN_IN_A_PICTURE = (0, 1, 2, 4, 5, 6)
"""Questions that one frame answers; the others ask for the motion and the tone."""
MOTION_QUESTION = 3

_ZH_COLOUR: dict[Colour, str] = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "white": "白色",
}
_ZH_SHAPE: dict[Shape, str] = {"ring": "圆环", "square": "方块", "triangle": "三角形", "cross": "十字"}
_ZH_SIZE: dict[Size, str] = {"small": "小", "big": "大"}
_ZH_MOTION: dict[Motion, str] = {
    "left": "向左移动",
    "right": "向右移动",
    "up": "向上移动",
    "down": "向下移动",
    "grow": "变大",
    "shrink": "变小",
}
_ZH_RELATION: dict[Relation, str] = {"above": "上方", "below": "下方", "left of": "左边", "right of": "右边"}
_ZH_TONE: dict[Tone, str] = {"low": "低音", "middle": "中音", "high": "高音"}


def class_of(scene: Scene) -> int:
    """Number of the scene's class: the place of its motion among ``MOTIONS``."""
    return MOTIONS.index(scene.combination.motion)


def still(scene: Scene) -> str:
    """What one picture shows: everything but the motion."""
    words = scene.combination
    return f"a {words.size} {thing(scene)} {words.relation} a {words.second_colour} {words.second_shape}"


def seen(scene: Scene) -> str:
    """What eyes alone can tell."""
    return f"{still(scene)} {SAID_OF_MOTION[scene.combination.motion][0]}"


def heard(scene: Scene) -> str:
    """What ears alone can tell."""
    return f"a {scene.tone} tone sounds"


def spoken(scene: Scene) -> str:
    """What a speaker would say; no one speaks in the clip."""
    return f"the {thing(scene)} {SAID_OF_MOTION[scene.combination.motion][1]}"


def thing(scene: Scene) -> str:
    """Colour and shape of the first object."""
    return f"{scene.combination.colour} {scene.combination.shape}"


def sentences(scene: Scene) -> list[str]:
    """The content of a caption as a paragraph of three sentences."""
    motion = SAID_OF_MOTION[scene.combination.motion][0]
    return [f"There is {still(scene)}.", f"The {thing(scene)} {motion}.", f"A {scene.tone} tone sounds."]


def chinese(scene: Scene) -> list[str]:
    """Two captions in Chinese that name every attribute and the tone."""
    words = scene.combination
    first = f"{_ZH_SIZE[words.size]}的{_ZH_COLOUR[words.colour]}{_ZH_SHAPE[words.shape]}"
    second = f"{_ZH_COLOUR[words.second_colour]}{_ZH_SHAPE[words.second_shape]}"
    where, motion, tone = _ZH_RELATION[words.relation], _ZH_MOTION[words.motion], _ZH_TONE[scene.tone]
    comma = "\uff0c"
    return [
        f"{second}的{where}有一个{first}{comma}它{motion}{comma}声音是{tone}",
        f"伴着{tone}{comma}{second}{where}的那个{first}{motion}",
    ]


def question(scene: Scene, number: int) -> tuple[str, list[str], str]:
    """One of the eight questions about a scene.

    Returns:
        The question, its candidate answers and the right one.
    """
    facts: dict[str, Any] = replace(scene, variant=4 * number).facts()
    return facts["question"], facts["answers"], facts["answer"]


def turns(scene: Scene, numbers: Sequence[int], instruction: str) -> list[dict[str, str]]:
    """A conversation: the first question is open, those after it have lettered options.

    Args:
        scene: what is asked about.
        numbers: of the questions.
        instruction: stands before the first turn.
    """
    talk = []
    for place, number in enumerate(numbers):
        text, options, answer = question(scene, number)
        if place:
            lettered = [f"({letter}) {option}" for letter, option in zip("ABCDEF", options, strict=False)]
            text, answer = f"{text} {' '.join(lettered)}", lettered[options.index(answer)]
        talk.append({"i": "" if place else instruction, "q": text, "a": answer})
    return talk
