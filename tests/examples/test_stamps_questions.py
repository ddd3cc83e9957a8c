"""Questions about drawn clips: answers found anew from their words, positions from pictures, balance by counting."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from examples.stamps.material import load_material
from examples.stamps.scenes import ask, compose, weak_labels
from examples.stamps.scenes.questions import answer_list
from examples.stamps.scenes.templates import NO, TEMPLATES, YES, Facts, _where_is, _where_is_sounding
from fastav.data.question_types import QUESTION_TYPES

MANY = 300
ASKED = 13  # words at most: the benchmark pads to 14
COUNTS = ("zero", "one", "two", "three")


@pytest.fixture(scope="module")
def material():
    return load_material(None, None)


@pytest.fixture(scope="module", params=[1, 3], ids=["one", "three"])
def most(request):
    """Questions of one template about the same clip."""
    return request.param


@pytest.fixture(scope="module")
def questions(material, most):
    return ask(compose(material, "train", MANY, seed=3, image_size=28), most=most)


def answer_of(text, names, seen, heard, side):
    """Answer a question from its words; seen and heard: by name, the set of seconds; side: by name."""
    eye, ear = ({name for name in names if when[name]} for when in (seen, heard))
    event = [name for name in names if seen[name] & heard[name]]

    def asks(pattern):
        return re.fullmatch(pattern.replace("X", "the ([a-z ]+?)").replace("Y", "the ([a-z ]+?)") + r"\?", text)

    if asks("How many different things are heard"):
        return COUNTS[len(ear)]
    if asks("How many different things are seen"):
        return COUNTS[len(eye)]
    if asks("How many different things are seen or heard in all"):
        return COUNTS[len(eye | ear)]
    if asks("What is seen and heard at the same time"):
        return event[0]
    if asks("Is the sounding thing on the left or on the right"):
        return side[event[0]]
    if found := asks("Is the thing on the (left|right) heard"):
        (there,) = (name for name in eye if side[name] == found[1])
        return YES if there in ear else NO
    if found := asks("Is X on the left or on the right"):
        return side[found[1]]
    if found := asks("How many things are seen while X is heard"):
        return COUNTS[sum(bool(seen[name] & heard[found[1]]) for name in names)]
    if found := asks("How many things are heard while X is seen"):
        return COUNTS[sum(bool(heard[name] & seen[found[1]]) for name in names)]
    if found := asks("Is X that is (?:seen also heard|heard also seen)"):
        said = found[1] in eye & ear
    elif found := asks("Is X heard for longer than Y"):
        said = len(heard[found[1]]) > len(heard[found[2]])
    elif found := asks("Is X seen for longer than Y is heard"):
        said = len(seen[found[1]]) > len(heard[found[2]])
    elif found := asks("Is X seen before Y is heard"):
        said = min(seen[found[1]]) < min(heard[found[2]])
    elif found := asks("Is X heard"):
        said = found[1] in ear
    elif found := asks("Is X seen"):
        said = found[1] in eye
    else:
        raise AssertionError(f"a question of no known kind: {text}")
    return YES if said else NO


def test_answers_are_right(questions):
    clips, names = questions.clips, questions.clips.material.class_names
    centres = [clips.centres(clip) for clip in range(MANY)]
    used = set()
    for clip, text, answer, template in zip(
        questions.clip.tolist(), questions.text, questions.answer.tolist(), questions.template.tolist(), strict=True
    ):
        seen, heard = (
            {name: set(flags[:, i].nonzero().flatten().tolist()) for i, name in enumerate(names)}
            for flags in (clips.seen[clip], clips.heard[clip])
        )
        side = {names[i]: "left" if x < 0.42 else "right" if x > 0.58 else None for i, x in centres[clip].items()}
        assert questions.answers[answer] == answer_of(text, names, seen, heard, side), (clip, text)
        used.add(template)
    assert used == set(range(len(TEMPLATES)))  # every kind was asked


def test_positions_are_where_the_pictures_show_them(material):
    """A thing alone, white on black: the middle of what is bright."""
    white = tuple(
        replace(thing, pictures=(np.full((80, 60 + i, 4), 255, np.uint8),)) for i, thing in enumerate(material.things)
    )
    black = {"train": (np.zeros((256, 256, 3), np.uint8),)}
    clips = compose(replace(material, things=white, backgrounds=black), "train", 60, image_size=126)
    checked = 0
    for index in range(len(clips)):
        centres, found = clips.centres(index), {}
        assert set(centres) == set(clips.seen[index].any(0).nonzero().flatten().tolist())
        frames = clips[index].frames[:, 0]
        for label in centres:
            seconds = clips.seen[index][:, label].nonzero().flatten()
            if (clips.seen[index][seconds].sum(-1) == 1).all():
                columns = [frames[second].gt(100).any(0).nonzero().flatten().float() for second in seconds]
                found[label] = np.mean([(some[0] + some[-1] + 1).item() / 2 / 126 for some in columns])
        for label, middle in found.items():
            # The edges of what leans are soft: two pixels at most.
            assert centres[label] == pytest.approx(middle, abs=2 / 126)
            checked += 1
    assert checked > 20


def test_every_answer_of_a_template_is_as_common(questions):
    for number, template in enumerate(TEMPLATES):
        counts = Counter(questions.answer[questions.template == number].tolist())
        if template.answers is None:
            assert max(counts.values()) <= 0.12 * sum(counts.values())
        else:
            assert {questions.answers[answer] for answer in counts} == set(template.answers)
            assert len(set(counts.values())) == 1


def test_names_tell_nothing(material, questions):
    """What the train split answers to the same words is no better than chance for the test split."""
    told = {}
    for text, answer in zip(questions.text, questions.answer.tolist(), strict=True):
        told.setdefault(text, Counter())[answer] += 1
    test = ask(compose(material, "test", MANY, image_size=28))
    two = torch.tensor([template.answers is not None for template in TEMPLATES])[test.template].tolist()
    right = [
        told[text].most_common(1)[0][0] == answer
        for text, answer, binary in zip(test.text, test.answer.tolist(), two, strict=True)
        if binary and text in told
    ]
    assert len(right) > 500
    # Half, within four standard deviations.
    assert np.mean(right) == pytest.approx(0.5, abs=4 * 0.5 * len(right) ** -0.5)


def test_one_sense_is_not_enough(questions):
    """Of what is seen, half is also heard, whether it is seen for long or not; and the other way round."""
    clips, names = questions.clips, questions.clips.material.class_names
    for first, second, flags in (("seen", "heard", clips.seen), ("heard", "seen", clips.heard)):
        answers = {False: [], True: []}
        for clip, text, answer in zip(questions.clip.tolist(), questions.text, questions.answer.tolist(), strict=True):
            if found := re.fullmatch(rf"Is the (.+) that is {first} also {second}\?", text):
                seconds = flags[clip, :, names.index(found[1])].sum()
                answers[seconds.item() > 5].append(questions.answers[answer])
        for some in answers.values():
            assert len(some) > 20
            assert some.count(YES) == some.count(NO)


def test_what_one_sense_could_guess_from_is_balanced(questions):
    clips, names = questions.clips, questions.clips.material.class_names
    longer = {False: [], True: []}
    for clip, text, answer in zip(questions.clip.tolist(), questions.text, questions.answer.tolist(), strict=True):
        # Where one thing is in the whole clip, "one" would need no second sense.
        if text.startswith("How many things are seen while"):
            assert clips.seen[clip].any(0).sum() == 2
        if text.startswith("How many things are heard while"):
            assert clips.heard[clip].any(0).sum() == 2
        if found := re.fullmatch(r"Is the (.+) seen for longer than the .+ is heard\?", text):
            seconds = clips.seen[clip, :, names.index(found[1])].sum()
            longer[seconds.item() > 5].append(questions.answers[answer])
    for some in longer.values():
        assert len(some) > 20
        assert some.count(YES) == some.count(NO)


def test_all_types_and_several_questions_a_clip(questions, most):
    assert set(questions.type.tolist()) == set(range(len(QUESTION_TYPES)))
    for number, template in enumerate(TEMPLATES):
        (index,) = questions.type[questions.template == number].unique().tolist()
        assert QUESTION_TYPES[index] == template.type
    assert len(questions) > {1: 6, 3: 13}[most] * MANY
    assert torch.equal(questions.clip, questions.clip.sort().values)
    asked = Counter(zip(questions.clip.tolist(), questions.template.tolist(), strict=True))
    assert max(asked.values()) == most
    assert len({*zip(questions.clip.tolist(), questions.text, strict=True)}) == len(questions)  # nothing is asked twice
    assert max(len(text.split()) for text in questions.text) <= ASKED
    assert all(text.endswith("?") and "," not in text for text in questions.text)


def test_middle_and_one_sided_pictures_are_not_asked_for():
    seen, heard = np.zeros((10, 3), bool), np.zeros((10, 3), bool)
    seen[:, 0] = seen[:4, 1] = heard[:3, 1] = True

    def facts(*centres):
        return Facts(("dog", "cow", "owl"), seen, heard, dict(enumerate(centres)), absent=2)

    assert [one.text for one in _where_is(facts(0.5, 0.7))] == ["Is the cow on the left or on the right?"]
    assert [one.answer for one in _where_is_sounding(facts(0.2, 0.7))] == ["right"]
    assert list(_where_is_sounding(facts(0.2, 0.3))) == []
    assert list(_where_is_sounding(facts(0.5, 0.7))) == []


def test_items(questions):
    item = questions[5]
    clip = questions.clips[int(questions.clip[5])]
    assert torch.equal(item["frames"], clip.frames)
    assert torch.equal(item["sound"], clip.sound)
    assert (item["id"], item["question"]) == ("train-5", questions.text[5])
    for name, values in (("answer", questions.answer), ("question_type", questions.type)):
        assert (item[name].shape, item[name].dtype) == ((), torch.int64)
        assert item[name] == values[5]
    assert questions[-1]["id"] == f"train-{len(questions) - 1}"
    with pytest.raises(IndexError, match="question"):
        questions[len(questions)]


def test_same_seed_same_questions(material):
    clips = compose(material, "validation", 40, image_size=28)
    one, two, other = ask(clips), ask(clips), ask(clips, seed=1)
    assert one.text == two.text
    assert torch.equal(one.answer, two.answer)
    assert one.text != other.text
    assert one.answers == answer_list(material) == other.answers
    assert len(set(one.answers)) == len(one.answers) == 8 + 24


def test_parsing_has_events_of_one_sense_alone(material):
    clips = compose(material, "train", MANY)
    counts = [(a & b).sum() for a, b in ((clips.seen, ~clips.heard), (~clips.seen, clips.heard))]
    both = (clips.seen & clips.heard).sum()
    for count in counts:
        assert count / (sum(counts) + both) > 0.25
    weak = weak_labels(clips)
    assert weak.dtype == torch.float32
    for index in range(20):
        names = {*clips.seen[index].nonzero()[:, 1].tolist(), *clips.heard[index].nonzero()[:, 1].tolist()}
        assert set(weak[index].nonzero().flatten().tolist()) == names
