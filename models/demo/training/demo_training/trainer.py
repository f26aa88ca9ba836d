"""The trainer: one step, the running average of the weights, an evaluation, what is kept on disk.

The folder of a run holds
- `checkpoint/`: the averaged weights in the original layout, ready to be served;
- `heads.safetensors`: the heads of the dense losses, which no checkpoint has;
- `state.safetensors`: weights and optimiser in float32.
The first is enough to go on from (`models/demo` is such a folder): then the heads and the optimiser
start anew, from the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo_training.batches import Batch
from demo_training.dialogues import IGNORED
from demo_training.export import is_zero_bias, read_weights, write_weights
from demo_training.lexicon import COLOURS
from demo_training.muon import Muon
from demo_training.network import DemoModel
from demo_training.objectives import Losses, Objectives, name_shares
from demo_training.samples import CLASS_NAMES
from demo_training.scores import Scores
from llm_service.checkpoint import LLMConfig
from llm_service.tokenizer import Tokenizer
from vision_service.checkpoint import VisionConfig

CHECKPOINT, HEADS, STATE = "checkpoint", "heads.safetensors", "state.safetensors"
AVERAGE_DECAY = 0.999
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0
# The first ones compile, and make the optimisers' state.
STEPS_BEFORE_RECORDING = 4


class Trainer:
    """Model, objectives, optimiser and the running average of the model's weights.

    Attributes:
        model: what is trained, in float32.
        step_count: steps taken.
    """

    def __init__(self, description: Path, device: torch.device, seed: int) -> None:
        """Builds the model that a checkpoint's description asks for, with random weights."""
        torch.manual_seed(seed)
        if device.type == "cuda":
            # A graph cannot be recorded on the default stream.
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]  # torch's
        self._device = device
        llm = LLMConfig.from_checkpoint(description)
        vision = VisionConfig.from_checkpoint(description)
        self.model = DemoModel(vision, llm).to(device)
        tokenizer = Tokenizer.from_checkpoint(description)
        names = name_shares(tokenizer, CLASS_NAMES, llm.vocabulary_size)
        # One colour more, for patches that have none.
        self._objectives = Objectives(vision.hidden_size, names, 1 + len(COLOURS))
        self._objectives.to(device)
        self._parameters = [*self.model.parameters(), *self._objectives.parameters()]
        self._optimisers = _optimisers(self.model, self._objectives)
        self._average = self._copy_of_weights()
        self._learning_rate = torch.zeros((), device=device)
        self._dense_weight = torch.zeros((), device=device)
        self._recorded: _RecordedStep | None = None
        self.step_count = 0

    def compile(self) -> None:
        """Compiles layer by layer: all layers of a tower share one compilation."""
        for tower in (self.model.vision_model.encoder, self.model.language_model.model):
            for layer in tower.layers:
                layer.compile(dynamic=False)
        self._objectives.compile(dynamic=False)

    def step(self, batch: Batch, learning_rate: float, dense_weight: float) -> Losses:
        """Learns from one batch; the losses that it returns are still on the device."""
        self._learning_rate.fill_(learning_rate)
        self._dense_weight.fill_(dense_weight)
        if self._recorded is not None:
            losses = self._recorded.replay(batch)
        elif self._device.type == "cuda" and self.step_count == STEPS_BEFORE_RECORDING:
            self._recorded = _RecordedStep(self._learn, batch.to(self._device))
            losses = self._recorded.replay(batch)
        else:
            losses = self._learn(batch.to(self._device))
        self.step_count += 1
        self._update_average()
        return losses

    def _learn(self, batch: Batch) -> Losses:
        with self._autocast():
            patches, embeddings, hidden = self._run(batch)
            language = self.model.language_model
            losses: Losses = self._objectives(patches, embeddings, hidden, language, batch)
        losses.total(self._dense_weight).backward()  # type: ignore[no-untyped-call]  # torch's own
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self._learning_rate
            optimiser.step()
            optimiser.zero_grad()
        return Losses(*[part.detach() for part in losses])

    def evaluate(self, batches: Sequence[Batch]) -> Scores:
        """Scores the averaged weights: a turn is right if every token of its answer is."""
        scores = Scores()
        with self._averaged():
            for batch in batches:
                for label, right in zip(batch.labels, self._right_turns(batch), strict=True):
                    scores.add(label, right)
        return scores

    def save(self, folder: Path) -> None:
        """Writes the averaged checkpoint, the heads and the state."""
        names = [name for name, _ in self.model.named_parameters()]
        write_weights(folder / CHECKPOINT, dict(zip(names, self._average, strict=True)))
        save_file(self._objectives.state_dict(), folder / HEADS)
        state = {f"weight.{index}": tensor.data for index, tensor in enumerate(self._parameters)}
        for number, optimiser in enumerate(self._optimisers):
            for index, moments in optimiser.state_dict()["state"].items():
                state |= {f"{name}.{index}.{number}": moments[name] for name in moments}
        save_file(state, folder / STATE)

    def load(self, folder: Path) -> None:
        """Goes on from a folder that `save` wrote, with its heads and state if they are there."""
        weights = read_weights(folder / CHECKPOINT)
        trained = {name: weights[name] for name in weights if not is_zero_bias(name)}
        self.model.load_state_dict(trained)
        self._average = self._copy_of_weights()
        if (folder / HEADS).is_file():
            self._objectives.load_state_dict(load_file(folder / HEADS))
        if (folder / STATE).is_file():
            self._load_state(load_file(folder / STATE))

    def _load_state(self, state: dict[str, torch.Tensor]) -> None:
        moments: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self._optimisers]
        for key, tensor in state.items():
            name, index, *number = key.split(".")
            if name == "weight":
                self._parameters[int(index)].data.copy_(tensor)
            else:
                moments[int(number[0])].setdefault(int(index), {})[name] = tensor
        for optimiser, own in zip(self._optimisers, moments, strict=True):
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": own, "param_groups": groups})

    def _autocast(self) -> torch.autocast:
        is_cuda = self._device.type == "cuda"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=is_cuda)

    def _run(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns patches, embeddings and hidden states, see DemoModel."""
        patches, embeddings = self.model.encode(batch.tiles)
        return patches, embeddings, self.model.decode(embeddings, batch.rows)

    def _right_turns(self, batch: Batch) -> list[bool]:
        """Returns whether greedy decoding would give each turn's answer, given those before it."""
        batch = batch.to(self._device)
        # Without no_grad on purpose: it would compile everything a second time.
        with self._autocast():
            *_, hidden = self._run(batch)
        said = batch.targets != IGNORED
        guesses = self.model.head(hidden.detach()[said]).argmax(-1)
        right = torch.ones(len(batch.labels), dtype=torch.bool, device=self._device)
        right[batch.owners[said][guesses != batch.targets[said]]] = False
        turns: list[bool] = right.tolist()
        return turns

    def _copy_of_weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def _update_average(self) -> None:
        decay = min(AVERAGE_DECAY, (1 + self.step_count) / (10 + self.step_count))
        weights = [parameter.detach() for parameter in self.model.parameters()]
        torch._foreach_lerp_(self._average, weights, 1 - decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the average in the place of the weights for a while."""
        weights = [parameter.detach() for parameter in self.model.parameters()]
        kept = self._copy_of_weights()
        torch._foreach_copy_(weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)


class _RecordedStep:
    """A step as a CUDA graph: one launch instead of thousands, which took longer than the work."""

    def __init__(self, learn: Callable[[Batch], Losses], batch: Batch) -> None:
        """Records a step on a batch, which stays the place where each later batch goes."""
        self._batch = batch
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            self._losses = learn(batch)

    def replay(self, batch: Batch) -> Losses:
        """Takes the step on a batch; the losses are overwritten by the next one."""
        self._batch.copy_(batch)
        self._graph.replay()
        return self._losses


def _optimisers(model: DemoModel, objectives: Objectives) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else; vectors do not decay."""
    layers = [
        *model.vision_model.encoder.parameters(),
        *model.language_model.model.layers.parameters(),
    ]
    matrices = [parameter for parameter in layers if parameter.ndim == 2]
    taken = set(matrices)
    others = [p for p in (*model.parameters(), *objectives.parameters()) if p not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    is_cuda = others[0].is_cuda
    adam = torch.optim.AdamW(groups, betas=BETAS, fused=True, capturable=is_cuda)
    return [Muon(matrices, WEIGHT_DECAY), adam]
