"""Exact: the split by combinations, what the words cover, captions, questions, windows of time."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import pytest

from ivt2.data.synthetic import (
    COLOURS,
    FPS,
    MAX_FRAMES,
    MIN_FRAMES,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TONE_OF_MOTION,
    TONES,
    VOCABULARY_FILE,
    Combination,
    combinations,
    make_scenes,
)
from ivt2.errors import InputError

VALUES = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "motion": MOTIONS,
    "second_colour": COLOURS,
    "second_shape": SHAPES,
    "relation": RELATIONS,
}


@pytest.fixture(scope="module")
def train():
    return make_scenes("train", 2000, 0)


@pytest.fixture(scope="module")
def test():
    return make_scenes("test", 100, 0)


def test_every_combination_belongs_to_exactly_one_split():
    sizes = {split: len(set(combinations(split))) for split in SPLITS}
    every = set().union(*map(combinations, SPLITS))
    assert sum(sizes.values()) == len(every) == 6 * 5 * 4 * 4 * 2 * 6 * 4
    assert sizes["test"] / len(every) == pytest.approx(0.1, abs=0.01)
    assert sizes["val"] / len(every) == pytest.approx(0.1, abs=0.01)


def test_the_split_of_a_combination_never_changes():
    # recorded: another hash would let clips of an earlier test set into training
    assert combinations("test")[:2] == (
        Combination("red", "ring", "small", "left", "blue", "cross", "below"),
        Combination("red", "ring", "small", "left", "yellow", "square", "below"),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_combination_of_test_is_trained_on_whatever_the_seed(seed, test):
    shown = {scene.combination for scene in make_scenes("train", 2000, seed)}
    assert shown.isdisjoint(scene.combination for scene in test)
    assert shown.isdisjoint(scene.combination for scene in make_scenes("val", 100, seed))
    assert all(combination.split == "train" for combination in shown)


def test_training_shows_every_word_about_equally_often(train):
    for field, values in VALUES.items():
        counts = Counter(getattr(scene.combination, field) for scene in train)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.35 * min(counts.values())
    assert Counter(scene.tone for scene in train).keys() == set(TONES)


def test_training_shows_every_pair_of_words(train):
    for first, second in itertools.combinations(VALUES, 2):
        shown = {(getattr(scene.combination, first), getattr(scene.combination, second)) for scene in train}
        possible = set(itertools.product(VALUES[first], VALUES[second]))
        if (first, second) == ("colour", "second_colour"):
            possible -= {(colour, colour) for colour in COLOURS}
        assert shown == possible


def test_a_test_caption_describes_one_clip_only(test):
    assert len({scene.combination for scene in test}) == 100
    texts = [set(scene.captions) for scene in test]
    assert all(len(captions) == 4 for captions in texts)
    assert len(set.union(*texts)) == 400


def test_captions_differ_wherever_combinations_do():
    every = combinations("train")[::7] + combinations("test")
    assert len(every) > 4000
    scene = make_scenes("test", 1, 0)[0]
    captions = {text for words in every for text in _with(scene, words).captions}
    assert len(captions) == 4 * len(every)


def test_captions_name_every_attribute_in_few_words(train):
    sizes = {"small": {"small", "little"}, "big": {"big", "large"}}
    motions = {
        "left": {"moves left", "slides leftwards"},
        "right": {"moves right", "slides rightwards"},
        "up": {"moves up", "rises"},
        "down": {"moves down", "falls"},
        "grow": {"grows", "expands"},
        "shrink": {"shrinks", "contracts"},
    }
    for scene in train[:200]:
        words = scene.combination
        for caption in scene.captions:
            assert len(caption.replace(",", " ,").split()) <= 24
            assert f"{words.colour} {words.shape}" in caption
            assert f"{words.relation} a {words.second_colour} {words.second_shape}" in caption.replace(" the ", " a ")
            assert any(f" {size} {words.colour}" in caption for size in sizes[words.size])
            assert any(motion in caption for motion in motions[words.motion])
            assert f"{scene.tone} tone" in caption or f"tone is {scene.tone}" in caption
    vocabulary = {word for scene in train for text in scene.captions for word in text.replace(",", "").split()}
    assert len(vocabulary) < 60


def test_the_vocabulary_holds_the_words_of_the_grammar_and_no_others(train):
    texts = [text for scene in train for text in (*scene.captions, scene.facts()["question"])]
    texts += [answer for scene in train for answer in scene.facts()["answers"]]
    words = {word for text in texts for word in text.replace(",", " , ").replace("?", " ? ").split()}
    tokens = VOCABULARY_FILE.read_text(encoding="utf-8").splitlines()
    assert tokens[0] == "[PAD]"
    assert tokens[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert set(tokens[104:]) == words
    assert len(tokens) == 104 + len(words)


def test_each_paraphrase_stands_first_about_equally_often(train):
    opening = Counter(scene.variant % 4 for scene in train)
    assert opening.keys() == {0, 1, 2, 3}
    assert max(opening.values()) < 1.35 * min(opening.values())
    assert all(len(set(scene.captions)) == 4 for scene in train[:50])


def test_scenes_are_a_pure_function_of_split_seed_and_index():
    assert make_scenes("train", 20, 3) == make_scenes("train", 20, 3)
    assert make_scenes("train", 30, 3)[:20] == make_scenes("train", 20, 3)
    assert make_scenes("train", 20, 3) != make_scenes("train", 20, 4)


def test_scenes_are_the_same_on_every_machine():
    # recorded: the same numbers must come out under every numpy
    scene = make_scenes("train", 3, 0)[2]
    assert (scene.key, scene.num_frames, scene.start_frame, scene.end_frame) == ("train_000002", 17, 4, 14)
    assert tuple(scene.combination) == ("yellow", "cross", "small", "left", "red", "triangle", "left of")
    assert scene.offset == (0.5086128766070475, 0.4981298507592993)


def test_training_begins_anew_after_its_last_combination():
    num = len(combinations("train"))
    scenes = make_scenes("train", num + 5, 0)
    assert len({scene.key for scene in scenes}) == num + 5
    assert {scene.combination for scene in scenes[:num]} == set(combinations("train"))
    repeated = scenes[num]
    assert all(scene.background != repeated.background or scene.offset != repeated.offset for scene in scenes[:num])


@pytest.mark.parametrize("split", ["val", "test"])
def test_more_clips_than_combinations_are_refused_outside_training(split):
    with pytest.raises(InputError, match=f"{split} split has"):
        make_scenes(split, 100_000, 0)


def test_four_uniform_frames_show_both_ends_of_the_event(train):
    for scene in train:
        assert MIN_FRAMES <= scene.num_frames <= MAX_FRAMES
        frames = [int((i + 0.5) * scene.num_frames / 4) for i in range(4)]
        assert frames[0] <= scene.start_frame < scene.end_frame <= frames[-1]
        assert 0.35 < (scene.end_frame - scene.start_frame) / scene.num_frames < 0.65
    assert {scene.num_frames for scene in train} == set(range(MIN_FRAMES, MAX_FRAMES + 1))


def test_facts_say_what_the_scene_is(train):
    scene = train[0]
    facts = scene.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["caption"] == facts["captions"][0]
    assert facts["label"] == scene.combination.motion
    assert facts["attributes"] == {**scene.combination._asdict(), "tone": TONE_OF_MOTION[scene.combination.motion]}
    assert 0 < facts["start_s"] < facts["end_s"] < facts["duration_s"]
    assert math.isclose(facts["duration_s"], facts["num_frames"] / FPS)
    assert facts["fps"] == FPS
    assert "." not in scene.key


def test_questions_are_of_eight_kinds_and_have_one_right_answer(train):
    kinds = Counter()
    for scene in train:
        facts = scene.facts()
        assert facts["answers"].count(facts["answer"]) == 1
        assert len(set(facts["answers"])) == len(facts["answers"]) > 1
        words = {*facts["attributes"].values()}
        said = {"moves left", "moves right", "moves up", "moves down", "grows", "shrinks"}
        assert facts["answer"] in words | said
        kinds[scene.variant // 4] += 1
    assert set(kinds) == set(range(8))


def test_a_question_never_gives_its_answer_away(train):
    for scene in train:
        facts = scene.facts()
        if facts["answer"] in SHAPES:  # both objects may have the same shape
            continue
        assert f" {facts['answer']} " not in facts["question"].replace("?", " ")


@pytest.fixture(scope="module")
def twins():
    return make_scenes("train", 1000, 0, twins=True)


def test_twins_share_their_words_and_differ_in_their_tones(twins):
    pairs = list(zip(*[iter(twins)] * 2, strict=True))
    assert len({first.combination for first, _ in pairs}) == len(pairs) == 500
    for first, second in pairs:
        assert first.combination == second.combination
        assert first.tone != second.tone
        assert first.background != second.background or first.offset != second.offset
    assert {(first.tone, second.tone) for first, second in pairs} == set(itertools.permutations(TONES, 2))


def test_the_tone_of_a_twin_tells_nothing_of_its_motion(twins):
    shown = Counter((scene.combination.motion, scene.tone) for scene in twins)
    assert set(shown) == set(itertools.product(MOTIONS, TONES))
    assert max(shown.values()) < 2 * min(shown.values())
    assert max(Counter(scene.tone for scene in twins).values()) < 400


def test_only_captions_with_sound_tell_twins_apart():
    for first, second in zip(*[iter(make_scenes("test", 200, 0, twins=True))] * 2, strict=True):
        kinds, others = first.facts()["caption_kinds"], second.facts()["caption_kinds"]
        assert set(kinds["video"]) == set(others["video"])
        assert len(set(kinds["video"])) == len(set(kinds["audio"])) == 4
        for kind in ("audio", "audio_video", "fused"):
            assert set(kinds[kind]).isdisjoint(others[kind])
            assert all(f" {first.tone}" in text for text in kinds[kind])
        assert not any(" tone" in text or " sounds" in text for text in kinds["video"])
        assert kinds["fused"] == first.facts()["captions"]


def test_captions_of_kinds_use_the_words_of_the_vocabulary(twins):
    tokens = set(VOCABULARY_FILE.read_text(encoding="utf-8").splitlines())
    for scene in twins[:200]:
        for texts in scene.captions_by_kind.values():
            assert {word for text in texts for word in text.replace(",", " ,").split()} <= tokens


def test_twins_do_not_depend_on_how_many_are_drawn(twins):
    assert make_scenes("train", 7, 0, twins=True) == twins[:7]
    assert make_scenes("train", 7, 1, twins=True) != twins[:7]
    # recorded: the same tones must come out under every numpy
    assert [scene.tone for scene in twins[:6]] == ["middle", "high", "high", "low", "middle", "low"]


def test_scenes_that_are_no_twins_say_nothing_of_kinds(train):
    assert "caption_kinds" not in train[0].facts()
    assert all(scene.tone == TONE_OF_MOTION[scene.combination.motion] for scene in train)


def _with(scene, words):
    return replace(scene, combination=words)
