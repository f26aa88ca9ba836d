"""The torch engine: InternViT in PyTorch, here on the CPU; on CUDA it is `cuda_engine`'s."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from protos.checkpoint.section import CheckpointError
from protos.checkpoint.tensor_heads import TensorSummary, require_shapes
from protos.checkpoint.tensor_names import require_names
from protos.process.memory import (
    FreeMemory,
    free_host_memory,
    gib,
    is_out_of_memory,
    shortage,
)
from protos.process.precision import FloatType, Product, faster_type
from vision_service.checkpoint import (
    TensorDigest,
    VisionConfig,
    vision_tensor_files,
    vision_tensors,
)
from vision_service.engines.base import (
    DTYPES,
    EngineStartError,
    VisionEngine,
    dtype_name,
    not_finite,
    tile_sums,
)
from vision_service.engines.first_run import first_embeddings, first_tiles
from vision_service.engines.torch.intern_vit import VisionModel
from vision_service.engines.torch.tilewise_vit import TilewiseVisionModel
from vision_service.memory import weight_byte_count
from vision_service.settings import Settings, TorchOptions

FLOAT16_REMEDY = "serve it with --torch.dtype bfloat16 or float32"
# The least square whose pixel shuffle has several tokens.
CORNER_PATCH_COUNT = 16
LAYER_PREFIX = "vision_model.encoder.layers."


def start_engine(settings: Settings, config: VisionConfig) -> VisionEngine:
    """Loads the checkpoint and runs it once, on CUDA with batches of all sizes.

    Raises:
        CheckpointError: the tensors are not those that the config describes.
        EngineStartError: there is no CUDA device, the memory is too small, or the embeddings are
            not finite.
    """
    torch.set_num_threads(settings.torch.thread_count)
    device = _device(settings.torch.device)
    dtype = _dtype(settings.torch, device)
    memory = _free_memory(device)
    if memory is not None and weight_byte_count(config, dtype.itemsize) > memory.byte_count:
        raise _too_little(memory, settings, config, device, dtype)
    try:
        # Where it goes to a GPU it is mapped from the file: what moves is folded and cast there.
        is_cuda = device.type == "cuda"
        place, stored = torch.device("cpu"), None if is_cuda else dtype
        model, weights_sha256 = load_model(settings.checkpoint, config, place, stored)
        engine: VisionEngine
        if is_cuda:
            engine = _cuda_engine(settings, config, model, weights_sha256, dtype)
            embeddings = first_embeddings(engine, config.tile_size)
        else:
            engine = on_cpu = TorchEngine(model, config, weights_sha256)
            # Two tiles are seconds, which show more than two corners only of a type that
            # activations can outgrow.
            if dtype == torch.float16:
                embeddings = first_embeddings(engine, config.tile_size)
            else:
                embeddings = corner_embeddings(model, config, on_cpu.encode_tokens)
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise _too_little(memory, settings, config, device, dtype) from error
        raise
    if not embeddings.isfinite().all():
        raise EngineStartError(_broken_start(model, dtype))
    return engine


@torch.inference_mode()
def corner_embeddings(
    model: VisionModel, config: VisionConfig, encode_tokens: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Encodes some patches of a black tile and of a tile of noise: all weights work.

    Args:
        model: which embeds the patches.
        config: of it.
        encode_tokens: encodes what is embedded of one tile, as it does when it serves.

    Returns:
        Embeddings that are not finite where a weight is not, the positions of the other patches
        included.
    """
    positions = model.vision_model.embeddings.position_embedding
    values = normalise(first_tiles(config.tile_size), config.mean, config.std)
    tokens = model.vision_model.embeddings(values.to(positions.dtype))[:, : 1 + CORNER_PATCH_COUNT]
    embeddings = torch.cat([encode_tokens(one.clone()) for one in tokens.split(1)])
    return embeddings + 0 * positions.sum()


def _cuda_engine(
    settings: Settings,
    config: VisionConfig,
    model: VisionModel,
    weights_sha256: bytes,
    dtype: torch.dtype,
) -> VisionEngine:
    from vision_service.engines.torch.cuda_engine import CudaEngine
    from vision_service.engines.torch.fused_vit import FusedVisionModel
    from vision_service.engines.torch.triton_programs import OPERATIONS

    return CudaEngine(
        FusedVisionModel(model, config, OPERATIONS, torch.device("cuda"), dtype),
        config,
        weights_sha256,
        dtype=dtype,
        max_batch_tile_count=settings.max_batch_tile_count,
    )


def _free_memory(device: torch.device) -> FreeMemory | None:
    if device.type == "cpu":
        return free_host_memory()
    byte_count, _ = torch.cuda.mem_get_info(device)
    return FreeMemory(byte_count, "are free on the GPU")


def _too_little(
    free: FreeMemory | None,
    settings: Settings,
    config: VisionConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> EngineStartError:
    weights = gib(weight_byte_count(config, dtype.itemsize))
    needs, ways = [f"the weights take {weights} in {dtype_name(dtype)}"], ["a smaller model"]
    if device.type == "cuda":  # on the CPU the tiles of a batch take turns
        needs.append(f"and a batch has {settings.max_batch_tile_count} tiles")
        ways.insert(0, "a smaller --max-batch-tile-count")
    if dtype == torch.float32:
        ways.insert(0, "--torch.dtype bfloat16, which halves all")
    return EngineStartError(shortage(needs, free, ways))


def _broken_start(model: VisionModel, dtype: torch.dtype) -> str:
    """Returns why a model whose first embeddings are not finite cannot be served."""
    for name, weight in model.named_parameters():
        if weight.isnan().any():
            return f"the weights themselves are not finite: the checkpoint's {name} holds NaN"
        if not weight.to(dtype).isfinite().all():
            return not_finite(f"the checkpoint's {name} is", dtype, FLOAT16_REMEDY)
    return not_finite("the embeddings of the vision model are", dtype, FLOAT16_REMEDY)


class TorchEngine:
    """A VisionEngine on the CPU; its first step is to normalise the tiles.

    Attributes:
        dtype: element type of the weights and the embeddings.
        weights_sha256: digest of the tensors as the checkpoint stores them.
    """

    def __init__(self, model: VisionModel, config: VisionConfig, weights_sha256: bytes) -> None:
        self._model = TilewiseVisionModel(model.eval(), config)
        self.dtype = next(model.parameters()).dtype
        self.weights_sha256 = weights_sha256
        self._config = config

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encodes the embedded tokens of a tile or of a square in it, in place."""
        return self._model.encode_tokens(tokens)

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        values = normalise(tiles, self._config.mean, self._config.std)
        return self._model(values.to(self.dtype))

    def submit(self, images: Sequence[torch.Tensor]) -> FinishedBatch:
        embeddings = self.encode(torch.cat(list(images)))
        parts = torch.split(embeddings, [len(tiles) for tiles in images])
        return FinishedBatch([part.clone() for part in parts] if len(parts) > 1 else [embeddings])

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class FinishedBatch:
    """The EncodingBatch of an engine that computes on the caller's thread."""

    embeddings: list[torch.Tensor]
    padding_tile_count: int = 0

    def is_ready(self) -> bool:
        return True

    def wait(self) -> list[torch.Tensor]:
        return self.embeddings

    def are_finite(self) -> list[bool]:
        return [bool(tile_sums(part).isfinite().all()) for part in self.embeddings]


def normalise(
    tiles: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """Returns float32 pixel values: (tiles / 255 - mean) / std, by channel.

    In float32 and in this order they have the bits of the reference's ToTensor and Normalize.

    Args:
        tiles: [n, 3, tile_size, tile_size] uint8 RGB.
        mean: of red, green and blue, for values from 0 to 1.
        std: likewise.
    """
    mean_, std_ = (torch.tensor(v, device=tiles.device).view(3, 1, 1) for v in (mean, std))
    values = torch.empty(tiles.shape, device=tiles.device)
    # Tile by tile: one stays in the CPU's cache through all four steps.
    for tile, value in zip(tiles, values, strict=True):
        value.copy_(tile).div_(255).sub_(mean_).div_(std_)
    return values


def load_model(
    path: Path, config: VisionConfig, device: torch.device, dtype: torch.dtype | None
) -> tuple[VisionModel, bytes]:
    """Returns the model with the checkpoint's weights, and their digest; no dtype: as stored.

    The model is built without memory and takes the tensors as they are read, so that there is
    never a second copy of the weights.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    files = vision_tensor_files(path)
    model, _ = matching_model(path, config, files)
    digest = TensorDigest()
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in vision_tensors(files):
        digest.add(name, tensor)
        weights[name] = tensor.to(device, dtype or tensor.dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    model.vision_model.embeddings.fit_positions()
    return model, digest.digest()


def matching_model(
    path: Path, config: VisionConfig, files: Mapping[str, Path]
) -> tuple[VisionModel, TensorSummary]:
    """Returns the empty model that the config describes, and what its tensors are.

    Args:
        path: the checkpoint.
        config: of it.
        files: the file of each of the checkpoint's tensors, which must be those of the model.

    Raises:
        CheckpointError: a tensor is missing or unexpected, of another shape or not of a float type.
    """
    _check_layer_count(path, config, files)
    with torch.device("meta"):  # shapes without memory
        model = VisionModel(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    require_names(path, files.keys(), shapes.keys())
    return model, require_shapes(files, shapes)


def _check_layer_count(path: Path, config: VisionConfig, names: Iterable[str]) -> None:
    """Refuses another number of layers before a model of the config's is made, however large."""
    layers = {name.split(".")[3] for name in names if name.startswith(LAYER_PREFIX)}
    if len(layers) != config.layer_count:
        raise CheckpointError(
            f"{path}: there are tensors of {len(layers)} layers, "
            f"but vision_config.num_hidden_layers is {config.layer_count}"
        )


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise EngineStartError("device is cuda, but PyTorch finds no CUDA device")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _dtype(options: TorchOptions, device: torch.device) -> torch.dtype:
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    if device.type == "cuda":
        return torch.bfloat16
    return DTYPES[faster_type(_product, options.thread_count)]


def _product(dtype: FloatType, row_count: int, width: int) -> Product:
    rows = torch.ones(row_count, width, dtype=DTYPES[dtype])
    weight = torch.ones(width, width, dtype=DTYPES[dtype])
    return lambda: functional.linear(rows, weight)
