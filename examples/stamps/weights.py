"""Frozen backbones of the demo from weight files that package registries carry.

Those of the two backbones were exported for other runtimes, so their tensors are renamed, transposed and split back
into the shapes of timm and transformers. All are loaded strictly: a missing or left-over tensor is an error. The
`random_*` twins have the same architecture and serve where the files are out of reach. The text transformer has none:
there a `fastav.tasks.QuestionLSTM`, which starts from nothing, is to take its place.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

Weights = dict[str, Tensor]

PATCH = 14  # pixels
TOKENS_PER_SECOND = 50  # of the Whisper encoder: 100 mel frames a second, halved by its second convolution

# The names of one transformer block, ONNX file -> timm; query, key and value are stacked into timm's qkv.
_VIT_BLOCK = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}
# The names of one encoder layer, CTranslate2 -> transformers; linear_0 of the attention holds query, key and value.
_WHISPER_LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
# CTranslate2's dtype codes. bfloat16 (code 5) has no NumPy type, and the file that is read has none of it.
_CTRANSLATE2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def load_vit(onnx_path: str | Path, image_size: int) -> VisionTransformer:
    """Load a ViT-S/14 of DINOv2 architecture from an ONNX export.

    Args:
        onnx_path: file with the initialisers of Hugging Face's Dinov2 and its positions for a 37 x 37 grid.
        image_size: side of the square input in pixels, a multiple of 14.

    Returns:
        The frozen model in eval mode: (B, 3, image_size, image_size), ImageNet mean and std -> (B, 384).

    Raises:
        ValueError: the size is no multiple of 14, or the file holds another network.
    """
    with torch.device("meta"):  # no weights are drawn that would only be overwritten
        model = _empty_vit(image_size)
    tensors = read_onnx_weights(onnx_path)
    try:
        state = _vit_state(tensors, depth=len(model.blocks), grid=image_size // PATCH)
        model.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{onnx_path} does not hold the ViT-S/14 that is expected: {error}") from error
    return model.eval().requires_grad_(False)


def random_vit(image_size: int, seed: int = 0) -> VisionTransformer:
    """Same architecture as `load_vit`, weights drawn from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # DINOv2's layer scale starts at 1e-5, which would make every block the identity until it is trained.
        return _empty_vit(image_size, init_values=1.0).eval().requires_grad_(False)


def load_whisper_encoder(bin_path: str | Path, seconds: int) -> WhisperEncoder:
    """Load the encoder of Whisper tiny from a CTranslate2 model file.

    Args:
        bin_path: `model.bin` of CTranslate2's format version 6; the decoder in it is skipped.
        seconds: length of the input. The encoder insists on one length, so its positions are cut to it.

    Returns:
        The frozen encoder in eval mode: log-mel (B, 80, 100 * seconds) -> last_hidden_state (B, 50 * seconds, 384).

    Raises:
        ValueError: the file is no CTranslate2 file or not of this network, or it knows fewer positions.
    """
    with torch.device("meta"):
        model = _empty_whisper(seconds)
    tensors = {name.removeprefix("encoder/"): value for name, value in read_ctranslate2(bin_path).items()}
    try:
        state = _whisper_state(tensors, depth=len(model.layers), positions=TOKENS_PER_SECOND * seconds)
        model.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{bin_path} does not hold the Whisper tiny that is expected: {error}") from error
    return model.eval().requires_grad_(False)


def random_whisper_encoder(seconds: int, seed: int = 0) -> WhisperEncoder:
    """Same architecture as `load_whisper_encoder`, weights drawn from `seed`; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _empty_whisper(seconds).eval().requires_grad_(False)


def load_text_encoder(safetensors_path: str | Path) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """Load a BERT of the MiniLM kind and its tokenizer, for `fastav.tasks.FrozenTextEncoder`.

    Args:
        safetensors_path: `model.safetensors`, with its `config.json` and its tokenizer's files beside it.

    Returns:
        The frozen model in eval mode: token ids (B, L) -> last_hidden_state (B, L, hidden size); and its tokenizer.

    Raises:
        ValueError: the folder lacks a file, or holds another network.
    """
    folder = Path(safetensors_path).parent
    # transformers would quietly take a network of another size, or a tokenizer without words.
    if absent := [name for name in ("config.json", "vocab.txt") if not (folder / name).is_file()]:
        raise ValueError(f"{folder} does not hold a BERT and its tokenizer: it lacks {' and '.join(absent)}")
    try:
        # Nothing is looked up elsewhere, whatever the folder lacks.
        model = BertModel(BertConfig.from_pretrained(folder, local_files_only=True))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tensors = load_file(safetensors_path)
        tensors.pop("embeddings.position_ids", None)  # 0, 1, 2, ...; transformers no longer keeps it among the weights
        model.load_state_dict(tensors)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold a BERT and its tokenizer: {error}") from error
    return model.eval().requires_grad_(False), tokenizer


def read_onnx_weights(path: str | Path) -> Weights:
    """Read the initialisers of an ONNX file, the anonymous matrices under the name of the bias that is added to them.

    Exporters transpose a linear layer's weight (out, in) into an anonymous (in, out) matrix of a MatMul. Its bias keeps
    its name and is an input of the Add that follows, so `....bias` there tells `....weight` here, turned back.

    Raises:
        ValueError: the file is not ONNX.
    """
    import onnx  # heavy, and only needed where the real weights are
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path)).graph
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    # The copy makes the arrays writable, which torch asks for.
    tensors = {init.name: torch.from_numpy(onnx.numpy_helper.to_array(init).copy()) for init in graph.initializer}
    matrix_of = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        product = next((matrix_of[name] for name in node.input if name in matrix_of), None)
        bias = next((name for name in node.input if name in tensors and name.endswith(".bias")), None)
        if product in tensors and bias is not None:
            tensors[bias.removesuffix("bias") + "weight"] = tensors.pop(product).T.contiguous()
    return tensors


def read_ctranslate2(path: str | Path) -> Weights:
    """Read all variables of a CTranslate2 model file of version 6, as float32 where they are floating.

    Raises:
        ValueError: the file is cut short, of another version, or of a dtype that is not known.
    """
    data = memoryview(Path(path).read_bytes())
    position = 0

    def take(count: int) -> memoryview:
        nonlocal position
        position += count
        if position > len(data):
            raise ValueError(f"{path} is cut short: {position} bytes wanted, {len(data)} there")
        return data[position - count : position]

    def number(code: str) -> int:
        return struct.unpack("<" + code, take(struct.calcsize("<" + code)))[0]

    def string() -> str:
        return bytes(take(number("H"))).rstrip(b"\0").decode()

    if (version := number("I")) != 6:
        raise ValueError(f"{path} is not a CTranslate2 file of version 6 (its first number is {version})")
    string()  # the kind of model
    number("I")  # and its revision
    tensors = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        code, size = number("B"), number("I")
        if code not in _CTRANSLATE2_DTYPES:
            raise ValueError(f"{path}: {name} has dtype code {code}, which is not known")
        array = np.frombuffer(take(size), _CTRANSLATE2_DTYPES[code]).reshape(shape)
        tensors[name] = torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else array.dtype))
    return tensors


def _empty_vit(image_size: int, init_values: float = 1e-5) -> VisionTransformer:
    """Build timm's vit_small_patch14_dinov2 at another size, without its classifier."""
    if image_size <= 0 or image_size % PATCH:
        raise ValueError(f"image_size {image_size} is not a positive multiple of {PATCH}")
    return VisionTransformer(
        img_size=image_size,
        patch_size=PATCH,
        embed_dim=384,
        depth=12,
        num_heads=6,
        init_values=init_values,
        num_classes=0,
    )


def _empty_whisper(seconds: int) -> WhisperEncoder:
    """Build the encoder of Whisper tiny for `seconds` of sound."""
    return WhisperEncoder(
        WhisperConfig(
            num_mel_bins=80,
            d_model=384,
            encoder_layers=4,
            encoder_attention_heads=6,
            encoder_ffn_dim=1536,
            max_source_positions=TOKENS_PER_SECOND * seconds,
        )
    )


def _vit_state(tensors: Weights, depth: int, grid: int) -> Weights:
    """Rename ONNX tensors to timm's names and bring the positions to a grid x grid map."""
    # The exporter folded the additions around these two, and with them went their names; their shapes are unmistakable.
    anonymous = {tuple(value.shape): value for name, value in tensors.items() if "::" in name}
    class_position, positions = anonymous[1, 1, 384], anonymous[1, 37 * 37, 384]
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, _resize_positions(positions, grid)], dim=1),
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for index in range(depth):
        source, target = f"backbone.encoder.layer.{index}.", f"blocks.{index}."
        for part in ("weight", "bias"):
            qkv = [tensors[f"{source}attention.attention.{role}.{part}"] for role in ("query", "key", "value")]
            state[f"{target}attn.qkv.{part}"] = torch.cat(qkv)
        for theirs, ours in _VIT_BLOCK.items():
            if theirs.startswith("layer_scale"):
                state[target + ours] = tensors[source + theirs]
            else:
                state |= {f"{target}{ours}.{part}": tensors[f"{source}{theirs}.{part}"] for part in ("weight", "bias")}
    return state


def _resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Interpolate positions (1, n * n, D) to (1, grid * grid, D) as the network was trained: no antialiasing."""
    side = int(positions.shape[1] ** 0.5)
    image = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False)
    return image.flatten(2).transpose(1, 2)


def _whisper_state(tensors: Weights, depth: int, positions: int) -> Weights:
    """Rename CTranslate2 tensors (without their `encoder/`) to transformers' names and cut the position table."""
    table = tensors["position_encodings/encodings"]
    if len(table) < positions:
        raise ValueError(f"{positions} positions wanted, the weights know {len(table)}")
    state = {"embed_positions.weight": table[:positions].contiguous()}
    for convolution in ("conv1", "conv2"):
        state |= {f"{convolution}.{part}": tensors[f"{convolution}/{part}"] for part in ("weight", "bias")}
    modules = {"layer_norm": "layer_norm"}
    for index in range(depth):
        modules |= {f"layer_{index}/{theirs}": f"layers.{index}.{ours}" for theirs, ours in _WHISPER_LAYER.items()}
        fused, attention = f"layer_{index}/self_attention/linear_0/", f"layers.{index}.self_attn."
        for role, weight, bias in zip(
            "qkv", tensors[fused + "weight"].chunk(3), tensors[fused + "bias"].chunk(3), strict=True
        ):
            state[f"{attention}{role}_proj.weight"] = weight.contiguous()
            if role != "k":  # Whisper's keys have no bias; the fused one is zero there
                state[f"{attention}{role}_proj.bias"] = bias.contiguous()
    for theirs, ours in modules.items():
        names = ("gamma", "beta") if theirs.endswith("layer_norm") else ("weight", "bias")
        state |= {
            f"{ours}.{part}": tensors[f"{theirs}/{name}"] for part, name in zip(("weight", "bias"), names, strict=True)
        }
    return state
