import ast
import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from fastav.tasks import FrozenTextEncoder, QuestionLSTM, Vocabulary

SHARED = Path(__file__).parents[3] / "shared" / "data" / "music_avqa"
QUESTIONS = ["Is the violin louder than the piano?", "How many violin in the video？", "Are there violin sound? "]


def test_vocabulary_by_hand():
    vocabulary = Vocabulary.from_questions(QUESTIONS)
    words = ["Is", "the", "violin", "louder", "than", "piano", "How", "many", "in", "video", "Are", "there", "sound"]
    assert vocabulary.words == tuple(words)
    assert len(vocabulary) == 15
    assert vocabulary.unknown == 14
    assert vocabulary.encode(QUESTIONS).tolist() == [
        [1, 2, 3, 4, 5, 2, 6],
        [7, 8, 3, 9, 2, 10, 0],
        [11, 12, 3, 13, 0, 0, 0],
    ]
    assert vocabulary.encode(QUESTIONS[2:], length=14).tolist() == [[11, 12, 3, 13] + [0] * 10]


def benchmark(items):
    """The benchmark's rule, word for word from its description: templates, question marks, padding, first seen."""
    vocabulary, rows = ["<pad>"], []
    for item in items:
        words = item["question_content"].rstrip().split(" ")
        words[-1] = words[-1][:-1]
        values = iter(ast.literal_eval(item["templ_values"]))
        words = [next(values) if "<" in word else word for word in words]
        vocabulary += [word for word in dict.fromkeys(words) if word not in vocabulary]
        rows.append(words + ["<pad>"] * (14 - len(words)))
    return vocabulary, torch.tensor([[vocabulary.index(word) for word in row] for row in rows])


def filled(item):
    """What a reader gives: the text with its templates filled in."""
    text = item["question_content"]
    for value in json.loads(item["templ_values"]):
        start = text.index("<")
        text = text[:start] + value + text[text.index(">", start) + 1 :]
    return text


@pytest.mark.skipif(not SHARED.exists(), reason="MUSIC-AVQA's annotation files are not at ../shared/data/music_avqa")
def test_real_questions_are_numbered_as_by_the_benchmark():
    items = json.loads((SHARED / "avqa-test.json").read_text())
    words, expected = benchmark(items)
    vocabulary = Vocabulary.from_questions(map(filled, items))
    assert ["<pad>", *vocabulary.words] == words
    assert len(words) == 93  # as the benchmark counts them over its training questions
    assert torch.equal(vocabulary.encode([filled(item) for item in items], length=14), expected)


@pytest.mark.skipif(not SHARED.exists(), reason="MUSIC-AVQA's annotation files are not at ../shared/data/music_avqa")
def test_validations_words_lack_two_of_the_tests():
    known, asked = (json.loads((SHARED / f"avqa-{split}.json").read_text()) for split in ("val", "test"))
    vocabulary = Vocabulary.from_questions(map(filled, known))
    with pytest.warns(UserWarning, match="is read as unknown") as caught:
        numbers = vocabulary.encode([filled(item) for item in asked])
    assert {str(warning.message).split("'")[1] for warning in caught} == {"fourth", "fifth"}
    assert (numbers == vocabulary.unknown).sum() == 5  # three times the fourth, twice the fifth


def test_a_vocabulary_survives_json():
    vocabulary = Vocabulary.from_questions(QUESTIONS)
    again = Vocabulary(json.loads(json.dumps(vocabulary.words)))
    assert torch.equal(again.encode(QUESTIONS), vocabulary.encode(QUESTIONS))
    assert again.fingerprint == vocabulary.fingerprint
    assert Vocabulary(vocabulary.words[::-1]).fingerprint != vocabulary.fingerprint


def test_unknown_words_are_named_once():
    vocabulary = Vocabulary.from_questions(QUESTIONS)
    with pytest.warns(UserWarning, match="'cello' is not among the vocabulary's 13 words"):
        assert vocabulary.encode(["Is the cello louder?"]).tolist() == [[1, 2, 14, 4]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocabulary.encode(["Is the cello louder?"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda v: v.encode("Is it?"), TypeError, "list of strings, one a clip, got str"),
        (lambda v: v.encode([1]), TypeError, "list of strings"),
        (lambda v: v.encode([]), ValueError, "questions is empty"),
        (lambda v: v.encode(["Is the", " ?"]), ValueError, r"question ' \?' has no words"),
        (lambda v: v.encode(["Is the <Object> louder?"]), ValueError, "holds a template: fill in its templ_values"),
        (lambda v: v.encode(QUESTIONS, length=6), ValueError, "has 7 words, more than length=6"),
        (lambda v: Vocabulary("Is it?"), TypeError, "got one string"),
        (lambda v: Vocabulary([]), ValueError, "0 different words in 0"),
        (lambda v: Vocabulary(["a", "a"]), ValueError, "1 different words in 2"),
        (lambda v: Vocabulary(["a", "two words", "what?"]), ValueError, "'two words', 'what"),
    ],
)
def test_wrong_questions_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make(Vocabulary.from_questions(QUESTIONS))


@pytest.fixture
def lstm():
    torch.manual_seed(0)
    return QuestionLSTM(Vocabulary.from_questions(QUESTIONS), width=6, hidden=5).eval()


def test_lstm_by_hand(lstm):
    """Cell by cell with torch's gate order, each question by itself: batching and padding change nothing."""
    found = lstm(QUESTIONS)
    assert found.mask.sum(1).tolist() == [7, 6, 4]
    for i, question in enumerate(QUESTIONS):
        hidden, cell = torch.zeros(2, 5)
        states = []
        for number in lstm.vocabulary.encode([question])[0]:
            gates = lstm.lstm.weight_ih_l0 @ lstm.embedding.weight[number] + lstm.lstm.bias_ih_l0
            gates = gates + lstm.lstm.weight_hh_l0 @ hidden + lstm.lstm.bias_hh_l0
            into, forget, new, out = gates.chunk(4)
            cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
            states.append(lstm.project(hidden) + lstm.embedding.weight[number])
        torch.testing.assert_close(found.words[i, : len(states)], torch.stack(states))
        torch.testing.assert_close(found.sentence[i], lstm.project(hidden))
        assert (found.words[i, len(states) :] == 0).all()


def test_lstm_learns_the_unknown_by_forgetting(lstm):
    lstm.forget = 1.0
    assert torch.equal(lstm(QUESTIONS).words, lstm(QUESTIONS).words)  # not in evaluation
    lstm.train()
    lstm(QUESTIONS).sentence.sum().backward()
    moved = lstm.embedding.weight.grad.any(-1).nonzero().flatten().tolist()
    assert moved == [lstm.vocabulary.unknown]


def test_lstm_refuses_weights_of_other_words(lstm):
    same = QuestionLSTM(Vocabulary(lstm.vocabulary.words), width=6, hidden=5).eval()
    same.load_state_dict(lstm.state_dict())
    assert torch.equal(same(QUESTIONS).sentence, lstm(QUESTIONS).sentence)
    other = QuestionLSTM(Vocabulary(lstm.vocabulary.words[::-1]), width=6, hidden=5)
    with pytest.raises(ValueError, match="another vocabulary"):
        other.load_state_dict(lstm.state_dict())


@pytest.fixture(params=[8])
def bert(tmp_path, request):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?"]
    words = [*special, "is", "the", "violin", "louder", "than", "piano", "how", "many"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=request.param,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    return BertModel(config), BertTokenizer(str(tmp_path / "vocab.txt"))


def test_frozen_text_is_the_mean_over_each_questions_own_tokens(bert):
    model, tokenizer = bert
    encoder = FrozenTextEncoder(model, tokenizer, width=6)
    questions = ["Is the violin louder than the piano?", "How many?"]
    found = encoder(questions)
    assert found.mask.sum(1).tolist() == [10, 5]  # the words, the question mark, [CLS] and [SEP]
    for i, question in enumerate(questions):
        states = model(**tokenizer(question, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(found.sentence[i], encoder.project(states.mean(0)))
        torch.testing.assert_close(found.words[i, : len(states)], encoder.project(states))
        assert (found.words[i, len(states) :] == 0).all()


def test_frozen_text_reads_each_text_once(bert, monkeypatch):
    model, tokenizer = bert
    encoder = FrozenTextEncoder(model, tokenizer, width=6)
    read = []
    model.register_forward_hook(lambda module, args, output: read.append(len(output.last_hidden_state)))
    questions = ["Is the violin?", "How many?", "Is the violin?"]
    first = encoder(questions)
    again = encoder([*questions, "How many is the violin?"])
    assert len(read) == 2 + 1
    torch.testing.assert_close(again.sentence[:3], first.sentence)
    assert encoder.double()(questions).words.dtype == torch.float64  # read anew
    assert len(read) == 2 + 1 + 2
    monkeypatch.setattr("fastav.tasks.questions._REMEMBERED", 2)
    encoder(["How many?", "How many violin?"])  # forgets what there was, the first too
    encoder(["How many?", "How many violin?"])
    assert len(read) == 2 + 1 + 2 + 2


@pytest.mark.parametrize("bert", [64], indirect=True)  # narrower ones' sums have one order, padded or not
def test_frozen_text_is_the_same_whatever_it_is_first_read_with(bert):
    """Else a resumed run, which remembers nothing, would go on otherwise than an unbroken one."""
    questions = ["How many?", "Is the violin louder than the piano?", "Is the violin louder?"]
    together, alone = (FrozenTextEncoder(*bert, width=6) for _ in range(2))
    alone.load_state_dict(together.state_dict())
    for question in questions:
        alone([question])
    assert torch.equal(together(questions).sentence, alone(questions).sentence)


def test_frozen_text_refuses_weights_learned_beside_another(bert):
    model, tokenizer = bert
    state = FrozenTextEncoder(model, tokenizer, width=6).state_dict()
    FrozenTextEncoder(model, tokenizer, width=6).load_state_dict(state)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match="trained beside a text transformer with other weights: give the one"):
        FrozenTextEncoder(model, tokenizer, width=6).load_state_dict(state)


def test_frozen_text_refuses_a_checkpoint_that_lacks_weights(bert, tmp_path):
    model, tokenizer = bert
    tokenizer.save_pretrained(tmp_path / "whole")
    model.save_pretrained(
        tmp_path / "whole", state_dict={k: v for k, v in model.state_dict().items() if "pooler" not in k}
    )
    assert FrozenTextEncoder.from_pretrained(str(tmp_path / "whole"), width=6).width == 6  # nothing reads the pooler
    tokenizer.save_pretrained(tmp_path / "less")
    model.save_pretrained(
        tmp_path / "less", state_dict={k: v for k, v in model.state_dict().items() if "layer.1" not in k}
    )
    with pytest.raises(ValueError, match=r"less' holds no encoder\.layer\.1\.\S+ and 15 more weights"):
        FrozenTextEncoder.from_pretrained(str(tmp_path / "less"), width=6)


def test_frozen_text_stays_frozen_and_out_of_the_state(bert):
    encoder = FrozenTextEncoder(*bert, width=6).train()
    assert encoder.training
    assert not any(module.training for module in encoder.model.modules())
    encoder(["Is the violin louder?"]).sentence.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in encoder.model.parameters())
    assert encoder.project[1].weight.grad.any()
    parent = torch.nn.ModuleDict({"encoder": encoder})
    state = parent.state_dict()
    learned = [f"encoder.project.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")]
    assert list(state) == ["encoder.fingerprint", *learned]
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    parent.load_state_dict({**state, **{name: torch.zeros_like(state[name]) for name in learned}})
    assert not encoder.project[1].weight.any()
    assert all(torch.equal(value, before[name]) for name, value in encoder.model.state_dict().items())


def test_frozen_text_refuses_what_it_cannot_read(bert):
    model, tokenizer = bert
    encoder = FrozenTextEncoder(model, tokenizer, width=6)
    with pytest.raises(ValueError, match=r"question 'how how .* has 15 tokens, the transformer takes 12"):
        encoder(["Is the violin?", "how " * 12 + "?"])
    with pytest.raises(TypeError, match="list of strings"):
        encoder("Is the violin louder?")
