"""A folder's weight files and what their headers tell: one save, whole, each tensor once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from protos.checkpoint.folder import checked_config, checked_folder
from protos.checkpoint.section import CheckpointError
from protos.checkpoint.weight_files import stored_tensors, weight_files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 4939901552\n"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def save(file: Path, *names: str) -> None:
    save_file({name: np.zeros(8, dtype=np.float32) for name in names}, file)


def write_index(folder: Path, **weight_map: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder of two shards."""
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path / SHARD_1, "a", "b")
    save(tmp_path / SHARD_2, "c")
    write_index(tmp_path, a=SHARD_1, b=SHARD_1, c=SHARD_2)
    return tmp_path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A folder of one file."""
    (tmp_path / "config.json").write_text("{}")
    save(tmp_path / SINGLE, "a", "model.layers.0.self_attn.rotary_emb.inv_freq")
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checked_folder(folder)
    return str(caught.value)


def test_each_tensor_has_its_file(sharded: Path) -> None:
    files = {"a": sharded / SHARD_1, "b": sharded / SHARD_1, "c": sharded / SHARD_2}
    assert checked_folder(sharded) == files


def test_buffers_are_passed_over(single: Path) -> None:
    assert checked_folder(single) == {"a": single / SINGLE}
    save(single / SINGLE, "a", "x.embeddings.position_ids", "x.q_proj._extra_state")
    assert checked_folder(single) == {"a": single / SINGLE}


def test_an_index_may_name_the_single_file(single: Path) -> None:
    write_index(single, a=SINGLE)
    assert weight_files(single) == [single / SINGLE]


def test_a_merged_file_beside_old_shards(sharded: Path) -> None:
    save(sharded / SINGLE, "a", "b", "c")
    told = refusal(sharded)
    assert f"two saves, {SINGLE} and what {INDEX} names ({SHARD_1} ...)" in told
    assert f"remove the index to serve {SINGLE}, or {SINGLE} to serve the others" in told


@pytest.mark.parametrize("weight_map", [["a", "b"], {"a": 1}, {}])
def test_a_damaged_index(sharded: Path, weight_map: object) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json.* weight_map"):
        weight_files(sharded)


def test_no_weights_at_all(single: Path) -> None:
    (single / SINGLE).unlink()
    (single / "training_args.bin").touch()
    assert refusal(single) == f"the checkpoint has no file {SINGLE} ({single})"


def test_a_shard_of_tensors_that_nobody_needs_may_be_missing(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    assert checked_folder(sharded, ("a",)) == {"a": sharded / SHARD_1}
    (sharded / "model-9.safetensors").symlink_to("../../blobs/0a1b")
    write_index(sharded, a=SHARD_1, b=SHARD_1, c=SHARD_2, d="model-9.safetensors")
    assert checked_folder(sharded, ("a",)) == {"a": sharded / SHARD_1}
    with pytest.raises(CheckpointError, match=f"no file {SHARD_2}"):
        checked_folder(sharded, ("c",))


def test_a_half_that_is_not_there(sharded: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checked_folder(sharded, ("language_model.",))
    assert str(caught.value) == (
        f"{sharded}: there are no tensors language_model.*, but such as a; serve a whole checkpoint"
    )


def test_the_index_of_shards_that_a_single_file_replaced(sharded: Path) -> None:
    save(sharded / SINGLE, "a", "b", "c")
    (sharded / SHARD_1).unlink()
    (sharded / SHARD_2).unlink()
    assert refusal(sharded) == (
        f"{sharded}/{INDEX} names {SHARD_1}, which is not there, but {SINGLE} is: the index is of"
        " an older save; remove it"
    )


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    assert refusal(sharded) == (
        f"the checkpoint has no file {SHARD_2} ({sharded}), which {INDEX} names"
        " (missing: 1 of 2 files); fetch the checkpoint again"
    )


@pytest.mark.parametrize("name", [SHARD_1, "model.fp16-00001-of-00002.safetensors"])
def test_shards_without_an_index(sharded: Path, name: str) -> None:
    (sharded / INDEX).unlink()
    (sharded / SHARD_1).rename(sharded / name)
    (sharded / SHARD_2).unlink()
    told = refusal(sharded)
    assert f"shards, such as {name}, are without {INDEX}: fetch that file" in told


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pth"]
)
def test_pickles_alone(single: Path, name: str) -> None:
    (single / SINGLE).rename(single / name)
    told = refusal(single)
    assert f"no file {SINGLE} ({single}); {name} is a pickle" in told
    assert "save_pretrained" in told


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("InternVL3-8B-Q4_K_M.gguf", "llama.cpp"),
        ("model.onnx", "exported graph"),
        ("global_step500", "zero_to_fp32.py"),
        ("pytorch_model_fsdp_0", "accelerate merge-weights"),
    ],
)
def test_other_formats(single: Path, name: str, part: str) -> None:
    (single / SINGLE).rename(single / name)
    told = refusal(single)
    assert f"no file {SINGLE} ({single}); {name} is" in told
    assert part in told


@pytest.mark.parametrize("name", ["consolidated.safetensors", "model.fp16.safetensors"])
def test_safetensors_of_another_name(single: Path, name: str) -> None:
    (single / SINGLE).rename(single / name)
    told = refusal(single)
    assert told.endswith(f"{name} is there: if that holds the whole model, name it {SINGLE}")


def test_pickles_beside_safetensors_are_passed_over(single: Path) -> None:
    (single / "pytorch_model.bin").touch()
    assert list(checked_folder(single)) == ["a"]


def test_pickles_of_a_quantised_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "InternVL2-8B-AWQ"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").touch()
    assert "InternVL2-8B-AWQ is a quantised checkpoint" in refusal(folder)


def test_an_adapter_alone(single: Path) -> None:
    (single / SINGLE).rename(single / "adapter_model.safetensors")
    assert "adapter_model.safetensors is a LoRA adapter alone: merge it" in refusal(single)
    (single / "config.json").unlink()
    base = {"base_model_name_or_path": "OpenGVLab/InternVL2_5-1B"}
    (single / "adapter_config.json").write_text(json.dumps(base))
    told = refusal(single)
    assert told.startswith(f"there is no file {single}/config.json; adapter_config.json says")
    assert "load it with peft onto OpenGVLab/InternVL2_5-1B" in told


@pytest.mark.parametrize("name", [SHARD_1, INDEX])
def test_pointers_of_git_lfs(sharded: Path, name: str) -> None:
    (sharded / name).write_text(POINTER)
    assert refusal(sharded).startswith(f"{sharded}/{name} is a git-lfs pointer")


def test_a_snapshot_without_its_blobs(sharded: Path) -> None:
    (sharded / SHARD_2).unlink()
    (sharded / SHARD_2).symlink_to("../../blobs/0a1b")
    told = refusal(sharded)
    assert told.startswith(f"{sharded}/{SHARD_2} is a link to ../../blobs/0a1b, which is not there")


@pytest.mark.parametrize("kept_byte_count", [0, 20, -4])
def test_a_file_that_is_not_whole(sharded: Path, kept_byte_count: int) -> None:
    file = sharded / SHARD_1
    file.write_bytes(file.read_bytes()[:kept_byte_count])
    told = refusal(sharded)
    assert told.startswith(f"{file} is damaged, or not whole ({file.stat().st_size} bytes)")
    assert told.endswith("fetch it again")


def test_a_tensor_in_two_files(sharded: Path) -> None:
    save(sharded / SHARD_2, "c", "b")
    assert f"tensor b is stored twice, in {SHARD_1} and in {SHARD_2}" in refusal(sharded)


def test_a_name_that_no_file_can_have(sharded: Path) -> None:
    write_index(sharded, a=SHARD_1, b=SHARD_1, c=SHARD_2, d="d" * 5000)
    assert "c" in checked_folder(sharded, ("c",))
    assert len(refusal(sharded)) < 700


def test_the_headers_go_before_the_index(sharded: Path) -> None:
    write_index(sharded, a=SHARD_2, x=SHARD_1)
    assert stored_tensors(sharded) == {
        "a": sharded / SHARD_1,
        "b": sharded / SHARD_1,
        "c": sharded / SHARD_2,
    }


def test_kinds_are_told_by_the_headers(single: Path) -> None:
    save(single / SINGLE, "a", "mlp2.1.weight")
    assert "mlp2.1.weight is of a Flash checkpoint" in refusal(single)


def test_a_config_needs_no_weights(single: Path) -> None:
    (single / SINGLE).unlink()
    assert checked_config(single).values == {}


def test_a_folder_above_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "config.json").touch()
    assert refusal(tmp_path) == (
        f"there is no file {tmp_path}/config.json; did you mean {tmp_path}/checkpoint-500?"
    )
