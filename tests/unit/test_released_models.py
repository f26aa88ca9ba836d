"""Every released checkpoint through our own code: what is served, what is refused, and its size."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.decoders.family import ROOT
from llm_service.engines.torch.kernels.create import kernels_for
from llm_service.engines.torch.weights import destinations, empty_decoder
from llm_service.templates import read_template
from protos.checkpoint.folder import checked_folder
from protos.checkpoint.section import CheckpointError
from tests.released_models.facts import Model, Release, refusals, releases
from tests.released_models.folder import decoder_shapes, model_config, vision_shapes, write_folder
from vision_service.checkpoint import TENSOR_PREFIXES, VisionConfig
from vision_service.engines.torch.intern_vit import VisionModel

RELEASES = releases()
SERVED = [release for release in RELEASES if release.refusal is None]
REFUSED = [release for release in RELEASES if release.refusal is not None]


def _name(release: Release) -> str:
    return release.folders[0]


@pytest.mark.parametrize("release", SERVED, ids=_name)
def test_the_tensors_are_those_that_the_services_look_for(release: Release, tmp_path: Path) -> None:
    write_folder(release, tmp_path, tensors=False)
    vision, llm = VisionConfig.from_checkpoint(tmp_path), LLMConfig.from_checkpoint(tmp_path)
    with torch.device("meta"):
        tower = VisionModel(vision).state_dict()
    decoder = destinations(empty_decoder(llm, kernels_for(torch.device("cpu"), llm)))
    expected = {**vision_shapes(release.model), **decoder_shapes(release.model)}
    found = {name: tuple(tensor.shape) for name, tensor in tower.items()}
    assert found | {name: place.shape for name, place in decoder.items()} == expected
    _check_size(release.model, sum(map(prod, expected.values())))


def _check_size(model: Model, parameter_count: int) -> None:
    """Compares with what was published: to all of its digits, or to 1 % where it has many."""
    published = model.billion_parameters
    last_digit = 10.0 ** -len(str(published).partition(".")[2])
    tolerance = max(published / 100, last_digit / 2)
    assert parameter_count / 1e9 == pytest.approx(published, abs=tolerance)


@pytest.mark.parametrize("release", SERVED, ids=_name)
def test_the_template_is_read(release: Release, tmp_path: Path) -> None:
    write_folder(release, tmp_path, tensors=False)
    assert read_template(tmp_path).name == release.model.template


@pytest.mark.parametrize("service", [LLMConfig, VisionConfig])
@pytest.mark.parametrize("release", REFUSED, ids=_name)
def test_both_services_refuse_the_others_for_their_cause(
    release: Release, service: type[LLMConfig] | type[VisionConfig], tmp_path: Path
) -> None:
    assert release.refusal is not None
    write_folder(release, tmp_path, tensors=False)
    with pytest.raises(CheckpointError) as told:
        service.from_checkpoint(tmp_path)
    assert re.search(release.refusal.sentence, str(told.value))


@pytest.mark.parametrize("prefixes", [(ROOT,), TENSOR_PREFIXES])
@pytest.mark.parametrize(
    "release",
    [
        release
        for release in REFUSED
        if release.kind in ("quantized", "routed") and release.model.decoder not in refusals()
    ][::5],
    ids=_name,
)
def test_a_config_that_does_not_tell_is_no_way_in(
    release: Release, prefixes: tuple[str, ...], tmp_path: Path
) -> None:
    assert release.refusal is not None
    write_folder(release, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model_config(release.model)))
    with pytest.raises(CheckpointError) as told:
        checked_folder(tmp_path, prefixes)
    assert re.search(release.refusal.sentence, str(told.value))
