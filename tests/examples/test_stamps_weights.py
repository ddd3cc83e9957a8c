"""Weight files written here from random backbones, and read back."""

import struct

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from examples.stamps import weights

SECONDS = 2


@pytest.fixture(scope="module")
def vit():
    return weights.random_vit(37 * weights.PATCH)  # at its native grid of 37 x 37


def write_onnx(path, model):
    """Export by hand as the real file was: linear weights transposed and anonymous, then MatMul and Add."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors, nodes = {}, []

    def linear(name, weight, bias):
        tensors[f"onnx::MatMul_{len(tensors)}"] = weight.T.copy()
        nodes.append(helper.make_node("MatMul", [f"{name}/in", list(tensors)[-1]], [f"{name}/product"]))
        tensors[f"{name}.bias"] = bias
        inputs = [f"{name}.bias", f"{name}/product"]
        nodes.append(helper.make_node("Add", inputs if len(nodes) % 4 else inputs[::-1], [f"{name}/out"]))

    embeddings = "backbone.embeddings."
    tensors[embeddings + "cls_token"] = state["cls_token"]
    tensors["onnx::Concat_1"], tensors["onnx::Reshape_2"] = np.split(state["pos_embed"], [1], axis=1)
    for part in ("weight", "bias"):
        tensors[f"{embeddings}patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        tensors[f"backbone.layernorm.{part}"] = state[f"norm.{part}"]
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}.", f"backbone.encoder.layer.{index}."
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                tensors[f"{theirs}{norm}.{part}"] = state[f"{ours}{norm}.{part}"]
        for number in "12":
            tensors[f"{theirs}layer_scale{number}.lambda1"] = state[f"{ours}ls{number}.gamma"]
        split = [np.split(state[f"{ours}attn.qkv.{part}"], 3) for part in ("weight", "bias")]
        for role, weight, bias in zip(("query", "key", "value"), *split, strict=True):
            linear(f"{theirs}attention.attention.{role}", weight, bias)
        for name, target in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            linear(theirs + target, state[f"{ours}{name}.weight"], state[f"{ours}{name}.bias"])
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    end = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "vit", [], [end], initializers)), str(path))


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory, vit):
    path = tmp_path_factory.mktemp("weights") / "vit.onnx"
    write_onnx(path, vit)
    return path


@pytest.fixture(scope="module")
def vit_tensors(vit_file):
    return weights.read_onnx_weights(vit_file)


def test_vit_survives_the_file(vit_file, vit):
    model = weights.load_vit(vit_file, 37 * weights.PATCH)
    for name, value in vit.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())

    smaller = weights.load_vit(vit_file, 126)
    grid = vit.pos_embed[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, size=(9, 9), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(smaller.pos_embed[:, 1:], wanted)
    assert smaller(torch.zeros(1, 3, 126, 126)).shape == (1, 384)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda state: state.pop("backbone.encoder.layer.3.norm2.bias"), r"layer\.3\.norm2\.bias"),
        (lambda state: state.update({"backbone.layernorm.weight": torch.zeros(5)}), r"norm\.weight"),
    ],
)
def test_vit_of_another_kind(vit_tensors, monkeypatch, damage, complaint):
    tensors = dict(vit_tensors)
    damage(tensors)
    monkeypatch.setattr(weights, "read_onnx_weights", lambda path: tensors)
    with pytest.raises(ValueError, match=complaint):
        weights.load_vit("vit.onnx", 126)


def test_not_onnx(tmp_path):
    (tmp_path / "vit.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="not an ONNX file"):
        weights.load_vit(tmp_path / "vit.onnx", 126)


def test_image_size():
    with pytest.raises(ValueError, match="multiple of 14"):
        weights.random_vit(100)


def pack_ctranslate2(tensors, version=6):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        code = {"f4": 0, "i1": 1, "f2": 4}[array.dtype.str[1:]]
        data += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", code, array.nbytes) + array.tobytes()
    return data + struct.pack("<I", 1) + text("alias") + text("name")


def whisper_tensors(model):
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    tensors["decoder/embeddings/weight"] = np.zeros((3, 2), np.float32)  # to be skipped
    tensors["encoder/num_heads"] = np.int8(6)

    def copy(source, target, names=("weight", "bias")):
        for ours, theirs in zip(("weight", "bias"), names, strict=True):
            tensors[f"encoder/{target}/{theirs}"] = state[f"{source}.{ours}"]

    for convolution in ("conv1", "conv2"):
        copy(convolution, convolution)
    copy("layer_norm", "layer_norm", ("gamma", "beta"))
    for index in range(len(model.layers)):
        ours, theirs = f"layers.{index}.", f"layer_{index}/"
        copy(f"{ours}self_attn_layer_norm", f"{theirs}self_attention/layer_norm", ("gamma", "beta"))
        copy(f"{ours}final_layer_norm", f"{theirs}ffn/layer_norm", ("gamma", "beta"))
        copy(f"{ours}fc1", f"{theirs}ffn/linear_0")
        copy(f"{ours}fc2", f"{theirs}ffn/linear_1")
        copy(f"{ours}self_attn.out_proj", f"{theirs}self_attention/linear_1")
        fused = f"encoder/{theirs}self_attention/linear_0/"
        tensors[fused + "weight"] = np.concatenate([state[f"{ours}self_attn.{role}_proj.weight"] for role in "qkv"])
        query, value = (state[f"{ours}self_attn.{role}_proj.bias"] for role in "qv")
        tensors[fused + "bias"] = np.concatenate([query, np.zeros_like(query), value])
    return {name: np.asarray(value) for name, value in tensors.items()}


def test_whisper_survives_the_file(tmp_path):
    longer = weights.random_whisper_encoder(SECONDS + 1)
    path = tmp_path / "model.bin"
    path.write_bytes(pack_ctranslate2(whisper_tensors(longer)))
    model = weights.load_whisper_encoder(path, SECONDS)
    wanted = longer.state_dict()
    wanted["embed_positions.weight"] = wanted["embed_positions.weight"][: SECONDS * weights.TOKENS_PER_SECOND]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)
    out = model(torch.zeros(1, 80, 100 * SECONDS)).last_hidden_state
    assert out.shape == (1, 50 * SECONDS, 384)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="200 positions wanted, the weights know 150"):
        weights.load_whisper_encoder(path, 4)


def test_half_precision_is_read_as_float32(tmp_path):
    array = np.float16([[1.5, -2.0]])
    (tmp_path / "model.bin").write_bytes(pack_ctranslate2({"a/b": array}))
    tensors = weights.read_ctranslate2(tmp_path / "model.bin")
    assert tensors["a/b"].dtype == torch.float32
    assert tensors["a/b"].tolist() == [[1.5, -2.0]]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (pack_ctranslate2({}, version=5), "not a CTranslate2 file of version 6"),
        (pack_ctranslate2({"a": np.zeros(9, np.float32)})[:40], "cut short"),
        (pack_ctranslate2({"a": np.zeros(9, np.float32)}), "position_encodings"),
    ],
)
def test_malformed_ctranslate2(tmp_path, data, complaint):
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(ValueError, match=complaint):
        weights.load_whisper_encoder(tmp_path / "model.bin", SECONDS)


@pytest.mark.parametrize(
    "make", [lambda seed: weights.random_vit(28, seed), lambda seed: weights.random_whisper_encoder(1, seed)]
)
def test_random_twins_depend_on_their_seed_alone(make):
    before = torch.get_rng_state()
    first, again = ([*make(7).parameters()] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "the", "dog", "heard", "?")


@pytest.fixture
def text_folder(tmp_path):
    """A folder as the package has it: weights with position ids, configuration, words."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=len(WORDS), **sizes))
    model.config.save_pretrained(tmp_path)
    save_file(model.state_dict() | {"embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return tmp_path, model.eval()


def test_text_encoder_survives_the_folder(text_folder):
    folder, wanted = text_folder
    model, tokenizer = weights.load_text_encoder(folder / "model.safetensors")
    tokens = tokenizer(["Is the dog heard?", "Is the violin"], padding=True, return_tensors="pt")
    assert tokens["input_ids"].tolist() == [[2, 5, 6, 7, 8, 9, 3], [2, 5, 6, 1, 3, 0, 0]]
    assert torch.equal(model(**tokens).last_hidden_state, wanted(**tokens).last_hidden_state)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.write_bytes(b"no weights"), "does not hold a BERT"),
        (lambda path: save_file({"embeddings.word": torch.zeros(1)}, path), r"Missing key.*word_embeddings"),
        (lambda path: path.unlink(), "does not hold a BERT"),
        (lambda path: path.with_name("config.json").unlink(), r"it lacks config\.json"),
        (lambda path: path.with_name("vocab.txt").unlink(), r"it lacks vocab\.txt"),
    ],
)
def test_text_encoder_of_another_kind(text_folder, damage, complaint):
    path = text_folder[0] / "model.safetensors"
    damage(path)
    with pytest.raises(ValueError, match=complaint):
        weights.load_text_encoder(path)
