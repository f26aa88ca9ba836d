"""The checkpoint: what its files say, and one test a refusal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import save_file

from protos.checkpoint.section import CheckpointError
from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)
from vision_service.checkpoint import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TensorDigest,
    VisionConfig,
    vision_tensor_files,
    vision_tensors,
)
from vision_service.engines.torch.engine import load_model
from vision_service.tiling import TilePolicy


def test_the_config_is_read(tmp_path: Path) -> None:
    config = VisionConfig.from_checkpoint(write_checkpoint(tmp_path))
    assert config == VisionConfig(
        hidden_size=40,
        intermediate_size=64,
        layer_count=2,
        used_layer_count=2,
        head_count=5,
        patch_size=7,
        tile_size=28,
        image_size=28,
        norm_type="rms_norm",
        norm_eps=1e-6,
        qkv_bias=False,
        qk_normalization=True,
        output_size=24,
        max_dynamic_patch=6,
        min_dynamic_patch=1,
        dynamic_image_size=True,
        use_thumbnail=True,
        ps_version="v2",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    assert (config.patches_per_edge, config.tokens_per_tile) == (4, 4)


@pytest.mark.parametrize("absent", [{}, None], ids=["missing", "null"])
def test_a_key_that_is_absent_has_its_class_default(
    tmp_path: Path, absent: dict[str, None] | None
) -> None:
    """What InternVLChatConfig and InternVisionConfig have without any key."""
    document: dict[str, Any] = {"llm_config": {"hidden_size": 24}, "vision_config": {}}
    if absent is None:
        document.update(dict.fromkeys(SMALL_6B.keys() - document.keys() - {"ps_version"}))
        document["vision_config"] = dict.fromkeys(SMALL_6B["vision_config"])
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert VisionConfig.from_checkpoint(tmp_path) == VisionConfig(
        hidden_size=3200,
        intermediate_size=12800,
        layer_count=48,
        used_layer_count=48,
        head_count=25,
        patch_size=14,
        tile_size=224,
        image_size=224,
        norm_type="rms_norm",
        norm_eps=1e-6,
        qkv_bias=False,
        qk_normalization=True,
        output_size=24,
        max_dynamic_patch=6,
        min_dynamic_patch=1,
        dynamic_image_size=False,
        use_thumbnail=False,
        ps_version="v1",
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dynamic_image_size": False}, {"tile_policy": TilePolicy(is_dynamic=False)}),
        ({"use_thumbnail": False}, {"tile_policy": TilePolicy(has_thumbnail=False)}),
        ({"min_dynamic_patch": 2}, {"tile_policy": TilePolicy(min_tile_count=2)}),
        ({"max_dynamic_patch": 24}, {"max_dynamic_patch": 24}),
        ({"ps_version": "v1"}, {"ps_version": "v1"}),
        ({"select_layer": -2}, {"used_layer_count": 1}),
        # The size of the tiles; 0 is none, as the reference writes "or".
        ({"force_image_size": None}, {"tile_size": 28, "image_size": 28, "tokens_per_tile": 4}),
        ({"force_image_size": 0}, {"tile_size": 28, "image_size": 28, "tokens_per_tile": 4}),
        ({"force_image_size": 14}, {"tile_size": 14, "image_size": 28, "tokens_per_tile": 1}),
        ({"force_image_size": 56}, {"tile_size": 56, "image_size": 28, "tokens_per_tile": 16}),
        # What InternVL3's vision_config holds besides, and no code reads.
        ({"vision_config": {"use_moe": False, "num_experts": 8, "moe_intermediate_size": 768}}, {}),
        ({"pad2square": False, "image_fold": None}, {}),
    ],
)
def test_an_option_is_read(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    document = {**SMALL_6B, **changes}
    document["vision_config"] = {**SMALL_6B["vision_config"], **changes.get("vision_config", {})}
    (tmp_path / "config.json").write_text(json.dumps(document))
    config = VisionConfig.from_checkpoint(tmp_path)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("content", "warned"),
    [
        (None, False),
        ('{"processor_class": "InternVLProcessor"}', False),
        ('{"image_mean": null, "size": 224, "do_resize": true}', False),
        ('{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}', False),
        ("{", False),
        ('{"image_mean": [0.48145466, 0.4578275, 0.40821073]}', True),
        ('{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.5, 0.5, 0.5]}', True),
        ('{"image_std": "unknown"}', True),
    ],
)
def test_the_preprocessor_config_changes_nothing(
    tmp_path: Path, content: str | None, warned: bool
) -> None:
    write_checkpoint(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    if content is not None:
        file.write_text(content)
    with structlog.testing.capture_logs() as events:
        config = VisionConfig.from_checkpoint(tmp_path)
    assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    used = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    event = {
        "event": "preprocessor_config_ignored",
        "log_level": "warning",
        "file": str(file),
        "found": json.loads(content or "{}") if warned else {},
        "used": used,
    }
    assert events == ([event] if warned else [])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ps_version": "v3"}, "ps_version is 'v3'; supported: v1, v2"),
        ({"downsample_ratio": 0.25}, "downsample_ratio is 0.25; supported: 0.5"),
        ({"dynamic_image_size": 1}, "dynamic_image_size is 1, not of type bool"),
        ({"use_thumbnail": "no"}, "use_thumbnail is 'no', not of type bool"),
        ({"min_dynamic_patch": 0}, "min_dynamic_patch is 0; it must be 1 to 64"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0; it must be 1 to 64"),
        ({"max_dynamic_patch": 65}, "max_dynamic_patch is 65; it must be 1 to 64"),
        ({"max_dynamic_patch": True}, "max_dynamic_patch is True, not of type int"),
        ({"select_layer": -4}, "select_layer is -4, but there are 2 layers"),
        ({"select_layer": 0}, "select_layer is 0, but there are 2 layers"),
        ({"llm_config": {"hidden_size": None}}, "llm_config.hidden_size is missing"),
        ({"llm_config": None}, "llm_config is missing"),
        ({"vision_config": {"num_channels": 1}}, "vision_config.num_channels is 1; supported: 3"),
        ({"vision_config": {"hidden_act": "silu"}}, "hidden_act is 'silu'; supported: 'gelu'"),
        ({"vision_config": {"image_size": 32}}, "image_size is 32, not a multiple of 7"),
        ({"vision_config": {"patch_size": 28}}, "force_image_size is 28, not a multiple of 56"),
        ({"force_image_size": 30}, "force_image_size is 30, not a multiple of 14"),
        ({"force_image_size": "448"}, "force_image_size is '448', not of type int"),
        ({"force_image_size": None, "vision_config": {"image_size": 35}}, "not a multiple of 14"),
        ({"vision_config": {"num_attention_heads": 7}}, "hidden_size is 40, not a multiple of 7"),
        ({"vision_config": {"norm_type": "batch_norm"}}, "norm_type is 'batch_norm'; supported"),
        ({"vision_config": {"hidden_size": 5 * 10**15}}, "; it must be 1 to 1048576"),
        ({"vision_config": {"layer_norm_eps": math.nan}}, "layer_norm_eps is nan; it must be more"),
        ({"vision_config": {"layer_norm_eps": -1e-6}}, "layer_norm_eps is -1e-06; it must be more"),
        ({"vision_config": {"qkv_bias": 1}}, "vision_config.qkv_bias is 1, not of type bool"),
    ],
)
def test_an_unsupported_config_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed(SMALL_6B, **changes)))
    with pytest.raises(CheckpointError, match="config.json: ") as caught:
        VisionConfig.from_checkpoint(tmp_path)
    assert complaint in str(caught.value)


def test_padding_to_a_square_is_refused_by_key(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**changed(SMALL_6B), "pad2square": True}))
    with pytest.raises(CheckpointError, match=r"json: pad2square is True; supported: False$"):
        VisionConfig.from_checkpoint(tmp_path)


def test_a_pixel_shuffle_version_of_null_is_refused(tmp_path: Path) -> None:
    """To the reference it is v2; where the key is missing it is v1."""
    (tmp_path / "config.json").write_text(json.dumps({**SMALL_6B, "ps_version": None}))
    with pytest.raises(CheckpointError, match="ps_version is null; supported: v1, v2"):
        VisionConfig.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no file .*config.json"),
        ("{", "cannot be read"),
        (100_000 * "[", "cannot be read"),
        ("[]", "is not a JSON object"),
    ],
)
def test_an_unreadable_config_is_refused(
    tmp_path: Path, content: str | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=complaint):
        VisionConfig.from_checkpoint(tmp_path)


def write_shards(path: Path) -> None:
    """Writes tower and mlp1 into a shard each, and an LLM tensor into one that does not exist."""
    (path / "config.json").write_text("{}")
    tensors = random_tensors(SMALL_6B)
    weight_map = {"language_model.lm_head.weight": "model-3.safetensors"}
    for number, prefix in enumerate(("vision_model.", "mlp1."), start=1):
        file = f"model-{number}.safetensors"
        part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        save_file({**part, f"language_model.{number}": torch.zeros(1)}, path / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def test_tensors_come_from_the_shards_that_are_needed(tmp_path: Path) -> None:
    write_shards(tmp_path)
    found, expected = dict(vision_tensors(vision_tensor_files(tmp_path))), random_tensors(SMALL_6B)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_one_file_and_shards_have_the_same_digest(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_checkpoint(tmp_path / "one")
    assert digest_of(tmp_path) == digest_of(tmp_path / "one")


def test_the_tensors_of_the_llm_do_not_matter(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_6B)
    write_checkpoint(tmp_path / "a", tensors=tensors)
    write_checkpoint(tmp_path / "b", tensors={**tensors, "language_model.x": torch.ones(3)})
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "value"])
def test_the_digest_covers_names_types_shapes_and_bytes(change: str) -> None:
    tensor = torch.zeros(2, 3)
    name, other = {
        "name": ("b", tensor),
        "dtype": ("a", tensor.to(torch.int32)),  # the same bytes
        "shape": ("a", tensor.view(3, 2)),
        "value": ("a", tensor + 1),
    }[change]
    digests = [TensorDigest(), TensorDigest()]
    digests[0].add("a", tensor)
    digests[1].add(name, other)
    assert digests[0].digest() != digests[1].digest()


def digest_of(path: Path) -> bytes:
    digest = TensorDigest()
    for name, tensor in vision_tensors(vision_tensor_files(path)):
        digest.add(name, tensor)
    return digest.digest()


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no file model\.safetensors"):
        vision_tensor_files(tmp_path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no file model-2\.safetensors"):
        vision_tensor_files(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged, or not whole"):
        vision_tensor_files(tmp_path)


def test_a_file_without_vision_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"language_model.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="there are no tensors"):
        vision_tensor_files(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_tensors_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """Those of 8 bits are floats to PyTorch, too."""
    tensors = random_tensors(SMALL_6B)
    tensors["mlp1.1.weight"] = tensors["mlp1.1.weight"].to(dtype)
    config = VisionConfig.from_checkpoint(write_checkpoint(tmp_path, tensors=tensors))
    with pytest.raises(CheckpointError, match=r"mlp1\.1\.weight is .*8.* a quantised checkpoint"):
        load_model(tmp_path, config, torch.device("cpu"), torch.float32)
