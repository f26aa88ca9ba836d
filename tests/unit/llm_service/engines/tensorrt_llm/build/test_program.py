"""The program as its user calls it: the arithmetic, trtllm-build's command line, the refusals."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build import __main__ as program
from llm_service.engines.tensorrt_llm.build.progress import Progress
from llm_service.engines.tensorrt_llm.build.sizing import Card
from tests.unit.llm_service.engines.tensorrt_llm.build import trtllm_build
from tests.unit.llm_service.engines.torch.tiny import INTERNLM2, random_tensors, write_checkpoint

DATA = Path(__file__).parents[5] / "data"
# What the program printed, read against the models' figures: engine-{size}.txt in this folder.
GOLDEN = DATA / "trtllm"
# Each size on as few GPUs of 80 GB as hold it.
SIZES = {"1B": 1, "2B": 1, "4B": 1, "8B": 1, "26B": 1, "38B": 2, "78B": 4}
GIB = 1024**3


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_card", lambda: None)


def _run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["build", *map(str, words)])
    program.main()


def _dry_run(monkeypatch: pytest.MonkeyPatch, size: str, *words: str) -> None:
    checkpoint = DATA / "configs" / f"InternVL2_5-{size}"
    folders = ("--converted", f"converted/{size}", "--output", f"engines/{size}")
    _run(monkeypatch, "engine", "--checkpoint", checkpoint, *folders, "--dry-run", *words)


@pytest.mark.parametrize("size", SIZES)
def test_arithmetic_and_command_are_the_golden_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    _dry_run(monkeypatch, size, "--tp", str(SIZES[size]))
    shown = capsys.readouterr().out
    assert shown == (GOLDEN / f"engine-{size}.txt").read_text()
    command = shlex.split(shown.partition("\n\n")[2].replace("\\\n", ""))
    assert command[0] == "trtllm-build"
    asked = trtllm_build.parser().parse_args(command[1:])
    # The figures of the seed's guide: two requests, of two images at most.
    assert (asked.max_batch_size, asked.max_prompt_embedding_table_size) == (2, 13312)
    assert (asked.max_input_len, asked.max_seq_len) == (32768, 36960)


def test_smaller_tiles_take_fewer_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = json.loads((DATA / "configs" / "InternVL2_5-1B" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**document, "force_image_size": 224}))
    folders = ("--converted", tmp_path / "converted", "--output", tmp_path / "engine")
    _run(monkeypatch, "engine", "--checkpoint", tmp_path, *folders, "--dry-run")
    shown = capsys.readouterr().out
    assert "2 requests x 26 tiles x 64 = 3,328 rows" in shown
    assert "--max_multimodal_len 3328" in shown


def test_quantized_weights_and_the_gpus_share_of_the_cache_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    split = ("--tp", "2", "--pp", "2", "--quantization", "w4a16")
    limits = (
        "--max-running-sequence-count",
        "4",
        "--max-request-tile-count",
        "13",
        "--max-prompt-token-count",
        "16384",
    )
    _dry_run(monkeypatch, "78B", *split, *limits)
    lines = capsys.readouterr().out.splitlines()
    # 40 layers of 4 key/value heads on each GPU.
    assert lines[3] == "KV cache       81,920 bytes a token x 4 x 20,576 = 6.28 GiB"
    # The first stage: 40 halved layers of 4 bits, the whole embedding of 16.
    layer = (64 + 16) * 128 // 2 * 8192 + 8192 * 8192 // 2 + 3 * 8192 * 29568 // 2
    vectors = (64 + 16) * 128 // 2 + 2 * 8192
    byte_count = 40 * (layer // 2 + 2 * vectors) + 2 * 151674 * 8192
    assert lines[4] == f"weights        {byte_count / GIB:.2f} GiB"


@pytest.mark.parametrize(
    ("gib", "verdict"),
    [
        (80, "about 26.91 GiB of the 80.00 GiB of Test Card; 53.09 GiB are left, for the vision"),
        # The tensors alone, 26.41 GiB, would be less.
        (26.5, ", MORE than the 26.50 GiB of Test Card: raise --tp or --pp, quantise, or lower"),
    ],
)
def test_the_estimate_is_compared_with_the_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gib: float, verdict: str
) -> None:
    monkeypatch.setattr(program, "_card", lambda: Card("Test Card", int(gib * GIB)))
    _dry_run(monkeypatch, "8B")
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(("size", "tp", "pp"), [("8B", 1, 1), ("78B", 4, 1), ("78B", 2, 2)])
def test_the_option_to_serve_with_holds_all_requests_in_whole_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str, tp: int, pp: int
) -> None:
    lengths = (
        "--max-request-tile-count",
        "2",
        "--max-prompt-token-count",
        "1000",
        "--max-output-token-count",
        "10",
    )
    _dry_run(
        monkeypatch,
        size,
        "--tp",
        str(tp),
        "--pp",
        str(pp),
        "--max-running-sequence-count",
        "3",
        *lengths,
    )
    (option,) = re.findall(
        r"^serve with +--kv-cache-byte-count (\d+)$", capsys.readouterr().out, re.M
    )
    config = LLMConfig.from_checkpoint(DATA / "configs" / f"InternVL2_5-{size}")
    # As the engine counts: how many tokens do these bytes hold on each GPU? 1,010 are 32 blocks.
    assert int(option) // (2 * config.kv_values_per_token(tp, pp)) == 3 * 32 * 32


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | Path, ...]:
    """The options of a tiny model, and trtllm-build's double on the PATH."""
    checkpoint = write_checkpoint(tmp_path / "original", INTERNLM2, random_tensors(INTERNLM2))
    script = tmp_path / "bin" / "trtllm-build"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{Path(trtllm_build.__file__).read_text()}")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    return ("--checkpoint", checkpoint, "--converted", tmp_path / "new" / "converted")


def test_convert_then_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    split = ("--tp", "2", "--pp", "2", "--dtype", "float16")
    _run(monkeypatch, "convert", *folders, *split)
    converted = tmp_path / "new" / "converted"
    assert len(load_file(converted / "rank3.safetensors")) == 9
    engine = tmp_path / "engine"
    _run(
        monkeypatch,
        "engine",
        *folders,
        *split,
        "--output",
        engine,
        "--max-running-sequence-count",
        "3",
    )
    built = json.loads((engine / "config.json").read_text())
    assert built == {"checkpoint": str(converted), "batch": 3}


def test_a_command_that_fails_is_no_success_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folders: tuple[str | Path, ...],
) -> None:
    _run(monkeypatch, "convert", *folders)
    engine = tmp_path / "engines" / "e"
    with pytest.raises(SystemExit, match="trtllm-build ended with status 3; .*/e was not made"):
        _run(
            monkeypatch,
            "engine",
            *folders,
            "--output",
            engine,
            "--max-running-sequence-count",
            "13",
        )
    assert list(engine.parent.iterdir()) == []


def test_what_a_killed_build_left_is_named_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    _run(monkeypatch, "convert", *folders)
    left = tmp_path / ".e.unfinished" / "rank0.engine"
    left.parent.mkdir()
    left.touch()
    with pytest.raises(SystemExit, match="unfinished is of a build that still runs or was cut off"):
        _run(monkeypatch, "engine", *folders, "--output", tmp_path / "e")
    assert left.exists()


def test_an_engine_needs_a_converted_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    with pytest.raises(SystemExit, match=r"there is no .*config.json; run convert first"):
        _run(monkeypatch, "engine", *folders, "--output", tmp_path / "e")


def test_a_damaged_converted_checkpoint_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    _run(monkeypatch, "convert", *folders)
    (tmp_path / "new" / "converted" / "config.json").write_text("{")
    with pytest.raises(SystemExit, match="config.json: cannot be read: Expecting property name"):
        _run(monkeypatch, "engine", *folders, "--output", tmp_path / "e")


def test_an_engine_of_other_options_than_the_checkpoints_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    _run(monkeypatch, "convert", *folders, "--tp", "2")
    with pytest.raises(SystemExit, match=r"has mapping .*'tp_size': 2.*make it .*'tp_size': 4"):
        _run(monkeypatch, "engine", *folders, "--tp", "4", "--output", tmp_path / "e")


def test_an_existing_engine_is_never_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    _run(monkeypatch, "convert", *folders)
    with pytest.raises(SystemExit, match="exists; remove it or choose another --output"):
        _run(monkeypatch, "engine", *folders, "--output", tmp_path)


def test_a_machine_without_tensorrt_llm_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: tuple[str | Path, ...]
) -> None:
    _run(monkeypatch, "convert", *folders)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="trtllm-build is not on the PATH"):
        _run(monkeypatch, "engine", *folders, "--output", tmp_path / "e")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tp", "4"], "--tp 4 must divide 14 attention heads"),
        (
            ["--max-request-tile-count", "26", "--max-prompt-token-count", "4096"],
            "--max-request-tile-count 26 takes 6656 tokens; --max-prompt-token-count is 4096",
        ),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_it_is_shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    with pytest.raises(SystemExit, match=sentence):
        _dry_run(monkeypatch, "1B", *words)
    assert capsys.readouterr().out == ""


def test_a_folder_without_a_config_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="there is no file .*config.json"):
        _run(monkeypatch, "convert", "--checkpoint", tmp_path, "--converted", tmp_path / "new")


def test_wrong_options_of_a_step_are_named_as_they_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _run(
            monkeypatch,
            "engine",
            "--checkpoint",
            "original",
            "--tp",
            "0",
            "--max-prompt-token-count",
            "x",
        )
    assert caught.value.code == 2
    named = [line.partition(": ")[0] for line in capsys.readouterr().err.splitlines()]
    assert named == ["--converted", "--tp", "--output", "--max-prompt-token-count"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_is_rewritten() -> None:
    stream = _Terminal()
    progress = Progress("converting", 3 * GIB, stream)
    for _ in range(3):
        progress.advance(GIB)
    steps = [f"\rconverting: {percent:3}% of 3.00 GiB" for percent in (33, 66, 100)]
    assert stream.getvalue() == "".join(steps) + "\n"


def test_a_log_gets_a_line_for_each_tenth() -> None:
    stream = io.StringIO()
    progress = Progress("converting", 1000, stream)
    for _ in range(1000):
        progress.advance(1)
    lines = stream.getvalue().splitlines()
    assert lines == [f"converting: {10 * tenth:3}% of 0 MiB" for tenth in range(1, 11)]
