import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from fastav.adapters import AdapterOutput
from fastav.tasks import (
    EncodedQuestions,
    QuestionAnsweringHead,
    QuestionAnsweringTask,
    QuestionLSTM,
    Vocabulary,
    decode_question_answering,
    question_answering_loss,
)

NAMES = ("dog", "cat", "cow", "owl")
ANSWERS = ("yes", "no", *NAMES)
T = 6


def adapted(visual, audio):
    return AdapterOutput(visual, audio, torch.zeros(()))


def clips(count, seed):
    """Two things are heard one after the other and two, others or the same, are seen; two tokens say which."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(2 * count)]).view(2, count, 2)
    cut = torch.randint(1, T, (2, count, 1), generator=generator)
    later = (torch.arange(T) >= cut).long()  # (2, count, T)
    return pairs.gather(2, later)


def questions_of(seen, heard, generator):
    """One question a clip, in turn: is it heard, what is heard first, does it come last, seen and heard at once."""
    asked, answers, kinds = [], [], []
    for i, (s, h) in enumerate(zip(seen.tolist(), heard.tolist(), strict=True)):
        name = int(torch.randint(4, (), generator=generator))
        last = h[0 if torch.rand((), generator=generator) < 0.5 else -1]
        asked.append(
            (
                f"Is the {NAMES[name]} heard?",
                "What is heard first?",
                f"Is the {NAMES[last]} heard last?",
                f"Is the {NAMES[name]} seen and heard at the same time?",
            )[i % 4]
        )
        yes = (name in h, None, last == h[-1], (name, name) in set(zip(s, h, strict=True)))[i % 4]
        answers.append(2 + h[0] if yes is None else int(not yes))
        kinds.append((4, 8, 8, 4)[i % 4])
    return {"question": asked, "answer": torch.tensor(answers), "question_type": torch.tensor(kinds)}


def test_task_learns_who_is_heard_and_when():
    """Questions that sight, sound and their order answer, on clips that training did not hold."""
    torch.manual_seed(0)
    looks, sounds = torch.randn(2, 4, 2, 16)  # of each name, two tokens
    generator = torch.Generator().manual_seed(0)

    def batch(count, seed):
        seen, heard = clips(count, seed)
        return adapted(looks[seen], sounds[heard]), questions_of(seen, heard, generator)

    train, test = batch(960, 1), batch(400, 2)
    vocabulary = Vocabulary.from_questions(train[1]["question"])
    task = QuestionAnsweringTask(vocabulary.words, ANSWERS, num_tokens=2, width=16, hidden=32, dropout=0.1)
    task.question_encoder = QuestionLSTM(vocabulary.extended(ANSWERS), hidden=32)  # as good here, and faster
    optimizer = torch.optim.AdamW(task.parameters(), 4e-3)
    for _ in range(6):
        for index in torch.randperm(960).split(48):
            part = {"question": [train[1]["question"][i] for i in index], "answer": train[1]["answer"][index]}
            loss = task.loss(task(adapted(train[0].visual[index], train[0].audio[index]), part), part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    task.eval()
    scores, deaf = task.metric(), task.metric()
    with torch.no_grad():
        task.update(scores, task(*test), test[1])
        task.update(deaf, task(adapted(test[0].visual, torch.zeros_like(test[0].audio)), test[1]), test[1])
    found = scores.compute()
    assert found["audio_visual_existential"] > 0.9
    assert found["audio_visual_temporal"] > 0.9
    assert deaf.compute()["accuracy"] < 0.6  # the sound matters


def by_hand(head, visual, audio, questions, answers):
    """The head's formulas for one clip, segment by segment and name by name."""
    segments, hidden = len(visual), head.ask.out_features
    words = questions.words[0, questions.mask[0]]
    picked = [head.pick(words)[:, slot].softmax(0) @ head.name(words) for slot in range(head.pick.out_features)]
    question = head.ask(questions.sentence[0])
    described, evidence = [], []
    for t in range(segments):
        seen, heard = head.seen(visual[t].flatten()), head.heard(audio[t].flatten())
        described.append([seen, heard, seen * heard])
        matches = [name @ stream / hidden**0.5 for name in picked for stream in described[-1]]
        waves = torch.tensor([math.cos(math.pi * n * (t + 0.5) / segments) for n in range(1, 9)])
        asked = question + head.when(waves)
        evidence.append(head.evidence(torch.cat([torch.stack(matches), seen * asked, heard * asked, asked])))
    evidence = torch.stack(evidence)
    attended = []
    for number, part in enumerate(evidence.chunk(head.heads, -1)):
        attended.append(head.attend(evidence)[:, number].softmax(0) @ part)
    pools = [evidence.mean(0), evidence.max(0).values, *attended, question]
    weights = head.choose(evidence).softmax(0)
    chosen = sum(weights[t, m] * described[t][m] for t in range(segments) for m in range(3))
    logits = []
    for answer, reasoned in zip(answers, head.answer(torch.cat(pools)), strict=True):
        name = head.name(answer) / hidden**0.5
        over_time = torch.stack([torch.stack([name @ stream for stream in streams]) for streams in described])
        weighed = head.weigh(question) @ torch.cat([over_time.mean(0), over_time.max(0).values])
        logits.append(reasoned + name @ chosen + weighed)
    return torch.stack(logits)


@pytest.mark.parametrize("segments", [1, 5, 10])
def test_head_by_hand(segments):
    torch.manual_seed(0)
    head = QuestionAnsweringHead(5, num_tokens=3, width=7, question_width=6, hidden=8, slots=2, heads=4).eval()
    nn.init.normal_(head.weigh.weight)
    visual, audio = torch.randn(2, 2, segments, 3, 7)
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    questions = EncodedQuestions(torch.randn(2, 6), torch.randn(2, 4, 6), mask)
    answers = torch.randn(5, 6)
    logits = head(visual, audio, questions, answers)
    for i in range(2):
        one = EncodedQuestions(*(part[i : i + 1] for part in questions))
        torch.testing.assert_close(logits[i], by_hand(head, visual[i], audio[i], one, answers))


def test_head_names_what_it_refuses():
    head = QuestionAnsweringHead(5, num_tokens=3, width=7, question_width=6)
    tokens = torch.randn(2, 4, 3, 7)
    questions = EncodedQuestions(torch.randn(2, 6), torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"audio \(2, 4, 3, 6\), wanted .* \(K, W\) = \(3, 7\)"):
        head(tokens, tokens[..., :6], questions, torch.randn(5, 6))
    with pytest.raises(ValueError, match="2 questions and 5 answers for 1 clips, wanted one question a clip"):
        head(tokens[:1], tokens[:1], questions, torch.randn(5, 6))
    with pytest.raises(ValueError, match=r"4 answers for 2 clips, .* and 5 answers"):
        head(tokens, tokens, questions, torch.randn(4, 6))
    with pytest.raises(ValueError, match="heads=3 must divide 2 x hidden = 256"):
        QuestionAnsweringHead(5, num_tokens=3, width=7, heads=3)


def test_loss_is_the_mean_over_questions():
    logits = torch.randn(6, 4)
    answers = torch.randint(4, (6,))
    by_hand = -torch.stack([logits[b].log_softmax(-1)[answers[b]] for b in range(6)]).mean()
    torch.testing.assert_close(question_answering_loss(logits, answers), by_hand)
    smooth = F.cross_entropy(logits, answers, label_smoothing=0.1)
    torch.testing.assert_close(question_answering_loss(logits, answers, label_smoothing=0.1), smooth)
    with pytest.raises(ValueError, match=r"logits are \(6, 4\) and answers \(5,\)"):
        question_answering_loss(logits, answers[:5])


@pytest.fixture
def task():
    torch.manual_seed(0)
    return QuestionAnsweringTask(["Is", "the", "dog", "heard"], ANSWERS, num_tokens=2, width=16).eval()


def test_answers_are_named_by_their_words(task):
    """Words of answers come behind those of questions, and a name is the same word in both."""
    vocabulary = task.question_encoder.vocabulary
    assert vocabulary.words == ("Is", "the", "dog", "heard", "yes", "no", "cat", "cow", "owl")
    torch.testing.assert_close(task.question_encoder(ANSWERS).mean()[2], task.question_encoder(["dog?"]).words[0, 0])
    two = task.question_encoder(["dog cat", "dog"])
    torch.testing.assert_close(two.mean(), torch.stack([two.words[0].sum(0) / 2, two.words[1, 0]]))


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ("yes", TypeError, "got one string"),
        ([], ValueError, r"at least one, got \[\]"),
        (["yes", "no", "yes"], ValueError, r"different texts, at least one, got \['yes', 'no', 'yes'\]"),
    ],
)
def test_task_refuses_wrong_answers(answers, error, message):
    with pytest.raises(error, match=message):
        QuestionAnsweringTask(["Is"], answers, num_tokens=2, width=16)


def test_task_decodes_and_counts(task):
    logits = torch.tensor([[0.0, 1, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], [0, 0, 0, 2, 0, 0]])
    assert decode_question_answering(logits).tolist() == [1, 0, 3]
    decoded = task.decode(logits)
    assert decoded["answers"].tolist() == [1, 0, 3]
    assert decoded["probabilities"][1, 0].item() == pytest.approx(math.exp(3) / (math.exp(3) + 5))
    metric = task.metric()
    task.update(metric, logits, {"answer": torch.tensor([1, 1, 3]), "question_type": torch.tensor([0, 0, 8])})
    found = metric.compute()
    assert found[task.monitor].item() == pytest.approx(2 / 3)
    assert (found["audio_counting"], found["audio_visual_temporal"]) == (0.5, 1)


def test_task_says_what_a_batch_lacks(task):
    logits = torch.randn(1, 6)
    with pytest.raises(ValueError, match="no 'question', only 'id'; question answering reads one question a clip"):
        task(adapted(*torch.randn(2, 1, T, 2, 16)), {"id": ["7"]})
    with pytest.raises(ValueError, match="no 'answer'"):
        task.loss(logits, {"question": ["Is the dog heard?"]})
    with pytest.raises(ValueError, match="no 'question_type'"):
        task.update(task.metric(), logits, {"answer": torch.tensor([0])})


def test_task_is_saved_and_loaded(task):
    out = adapted(*torch.randn(2, 1, T, 2, 16))
    batch = {"question": ["Is the dog heard?"]}
    again = QuestionAnsweringTask(["Is", "the", "dog", "heard"], ANSWERS, num_tokens=2, width=16).eval()
    again.load_state_dict(task.state_dict())
    assert torch.equal(again(out, batch), task(out, batch))
    other = QuestionAnsweringTask(["Is", "the", "dog", "heard"], ANSWERS[::-1], num_tokens=2, width=16)
    with pytest.raises(ValueError, match="belong to other answers, or to the same in another order"):
        other.load_state_dict(task.state_dict())
    fewer = QuestionAnsweringTask(["Is", "dog", "heard"], ANSWERS, num_tokens=2, width=16)
    with pytest.raises(ValueError, match="another vocabulary"):
        fewer.load_state_dict(task.state_dict())


def test_task_reads_by_a_text_transformer_from_a_folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "dog", "yes"]))
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    task = QuestionAnsweringTask([], ANSWERS, num_tokens=2, width=16, text_model=str(tmp_path))
    said = task(adapted(*torch.randn(2, 1, T, 2, 16)), {"question": ["Is the dog heard?"]})
    assert said.shape == (1, 6)
    assert not any(name.startswith("question_encoder.model") for name in task.state_dict())
    with pytest.raises(ValueError, match="cannot be loaded: give its name on the Hugging Face hub, or"):
        QuestionAnsweringTask([], ANSWERS, num_tokens=2, width=16, text_model=str(tmp_path / "nothing"))
