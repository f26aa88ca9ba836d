"""Every option of the vision service: a field is a flag, an environment variable and its help."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from protos.checkpoint.location import CheckpointFolder, model_name
from protos.process.cores import usable_core_count
from protos.process.option_errors import Contradiction
from protos.process.settings import (
    GIB,
    LARGEST_THREAD_COUNT,
    MIB,
    TORCH_SHORTCUTS,
    CheckOption,
    EngineOptions,
    EngineSettings,
)
from vision_service.pictures.transparency import Transparency

# More columns or rows than this serve no picture; it also keeps one image within the tile queue.
LARGEST_TILE_CAP = 64
# The largest sensors have 400 megapixels. Decoding takes up to 16 bytes for each.
LARGEST_PIXEL_LIMIT = 1_000_000_000
# On a GPU the memory of a batch is taken at the start.
LARGEST_BATCH_TILE_COUNT = 1024
# gRPC counts both in 32 bits.
LARGEST_IMAGE_BYTE_COUNT = GIB
LARGEST_CALL_COUNT = 65_536
# An image of no size takes this much.
LEAST_DECODE_BYTE_COUNT = 64 * MIB
LARGEST_DECODE_SECONDS = 3600.0

# With more of them, what one thread does alone is most of the time: decoding. Each takes memory for
# Pillow's filters, 2 MB where an edge is the longest, for which a decode has 32 MiB to spare.
MAX_RESIZING_THREAD_COUNT = 16

EngineName = Literal["torch", "tensorrt"]


def decoder_count() -> int:
    """Returns how many processes decode: more than one, so that a slow image leaves a way."""
    return 4 if (os.cpu_count() or 1) >= 4 else 2


def resizing_thread_count() -> int:
    """Returns how many threads resize by default."""
    return min(MAX_RESIZING_THREAD_COUNT, usable_core_count())


class TorchOptions(EngineOptions):
    """Options of the torch engine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine runs; auto: on CUDA when there is a device."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Element type of the engine; auto: bfloat16 on CUDA, and on a CPU where a measurement at the
    start finds it faster, else float32."""
    thread_count: int = Field(default_factory=usable_core_count, ge=1, le=LARGEST_THREAD_COUNT)
    """CPU threads of one forward pass. By default all cores that the process may use, by its
    affinity and its container: for one user the two services take turns. Two threads of a core
    count as one."""


class TensorrtOptions(EngineOptions):
    """Options of the tensorrt engine."""

    plan: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    """Folder that `internvl-vision-build` wrote; it decides the device and the element type."""


class Settings(EngineSettings):
    """Options of the vision service."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_VISION_",
        cli_prog_name="internvl-vision",
        cli_shortcuts=TORCH_SHORTCUTS,
    )

    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    checkpoint: CheckpointFolder
    """Folder of an original InternVL checkpoint, with config.json and its safetensors, or a hub id
    such as OpenGVLab/InternVL2_5-8B, which is taken from the local Hugging Face cache."""
    served_model_name: str = ""
    """Name that GetModelInfo reports; default: the checkpoint folder's name, or the hub's."""
    engine: EngineName = "torch"
    """What runs the model."""
    torch: TorchOptions = TorchOptions()
    """Options of the torch engine."""
    tensorrt: TensorrtOptions = TensorrtOptions()
    """Options of the tensorrt engine."""
    max_tile_count: int | None = Field(default=None, ge=1, le=LARGEST_TILE_CAP)
    """Largest tile cap a request may set, without the thumbnail; default: max_dynamic_patch of
    the checkpoint."""
    max_batch_tile_count: int = Field(default=13, ge=1, le=LARGEST_BATCH_TILE_COUNT)
    """Most tiles of one forward pass; an image with more is split. 13 is one image of the usual
    cap: an H100 does twice as many no faster, and the first of two images waits for the second."""
    max_queued_tile_count: int = Field(default=2048, ge=LARGEST_TILE_CAP + 1)
    """Most tiles that wait for the engine or are in it; more are refused. One is 0.6 MB. There is
    room for 128 clients with a picture of 13 tiles each."""
    preprocess_worker_count: int = Field(default_factory=decoder_count, ge=1)
    """Processes that decode and tile images, one at a time each; default: 4, or 2 where there are
    fewer cores. Large images, of 16 megapixels and more, may have half of them."""
    preprocess_thread_count: int = Field(
        default_factory=resizing_thread_count, ge=1, le=MAX_RESIZING_THREAD_COUNT
    )
    """CPU threads that resize pictures, which the pictures that are tiled at a time share; each has
    one or more. Default: all cores that the process may use, by its affinity and its container, 16
    at most. One thread decodes a picture."""
    max_preprocessing_image_count: int = Field(default=256, ge=1)
    """Most images that wait for these processes or are in them; more are refused."""
    max_decode_byte_count: int = Field(default=3 * GIB, ge=LEAST_DECODE_BYTE_COUNT)
    """Memory that all decodes may take together, in bytes. What an image takes is told from its
    header: 4 bytes a pixel and more, by its format. It waits until that is free; one that never
    fits is refused, and none gets more than that. 3 GiB are the largest image of any format, or
    three photos of 108 megapixels. Not in it: of each process 30 MB and up to 128 MiB that it has
    freed and kept, the files, and the tiles (max_queued_tile_count)."""
    max_decode_seconds: float = Field(default=30.0, gt=0, le=LARGEST_DECODE_SECONDS)
    """CPU time, in seconds, that an image of max_image_pixel_count may take; a smaller one gets a
    share by its pixels, and each 1 s besides. One that takes longer, or four times that on the
    clock, is refused, and its process is replaced."""
    max_image_byte_count: int = Field(default=48 * MIB, ge=1, le=LARGEST_IMAGE_BYTE_COUNT)
    """Largest accepted image file, in bytes. A phone's photo of 108 megapixels has 12 to 45 MB."""
    max_image_pixel_count: int = Field(default=128_000_000, ge=4, le=LARGEST_PIXEL_LIMIT)
    """Largest accepted image, in pixels (width x height)."""
    transparency: Transparency = "white"
    """What transparent pixels become: put on white, as browsers show them; or drop, which shows the
    colours that a file has for them, often black, as the reference's code does. Opaque pictures are
    the same either way. It is part of the recipe."""
    max_call_count: int = Field(default=512, ge=1, le=LARGEST_CALL_COUNT)
    """Most calls at a time; each holds its image file. More are refused."""
    cache_byte_count: int = Field(default=256 * MIB, ge=0)
    """Memory for embeddings of images seen before, in bytes; 0 keeps none."""
    shared_memory_byte_count: int = Field(default=512 * MIB, ge=0)
    """Most memory in `shared_memory_folder` for embeddings on their way, in bytes; it is taken when
    it is first needed, and kept. An embedding that finds no room is sent; 0 sends all of them."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields a plan that is missing, and options that do nothing beside others."""
        yield from super().contradictions()
        if self.engine == "tensorrt" and self.tensorrt.plan is None:
            yield Contradiction(("tensorrt.plan",), "the engine tensorrt needs one", ("engine",))
        if self.max_batch_tile_count > self.max_queued_tile_count:
            sentence = "no batch is full, as so many tiles never wait"
            yield Contradiction(("max_batch_tile_count", "max_queued_tile_count"), sentence)

    @property
    def model_name(self) -> str:
        """The name under which the model is served."""
        return self.served_model_name or model_name(self.checkpoint)


class ProgramSettings(CheckOption, Settings):
    """The vision service: picture files to embeddings, by gRPC."""
