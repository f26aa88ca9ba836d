"""One step on the device: scheduled sequences in, their next tokens out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from llm_service.engines.torch_engine.decode_graphs import DecodeGraphs
from llm_service.engines.torch_engine.kernels import BatchLayout, rotary_table
from llm_service.engines.torch_engine.models.decoder import Decoder
from llm_service.engines.torch_engine.sampler import guide_masks, sample
from llm_service.engines.torch_engine.sequence import Sequence
from llm_service.engines.torch_engine.step_inputs import StepInputs
from llm_service.engines.torch_engine.step_outputs import StepOutputs
from llm_service.engines.torch_engine.transfer import LargeUpload, upload, uploaded


class ModelRunner:
    """The decoder and its KV cache [layers, 2, blocks + 1, block_size, kv_heads, head_dim].

    The last block belongs to nobody: a CUDA graph's padding writes there. On CUDA `run` returns
    before the device has worked; a token that is in flight is read from where the device left it.
    """

    def __init__(
        self, decoder: Decoder, block_count: int, block_size: int, max_running: int
    ) -> None:
        config, weight = decoder.config, decoder.embedding.weight
        self.device = weight.device
        self._decoder = decoder
        self._block_size = block_size
        self.vocabulary_size = config.vocabulary_size
        self._kv_cache = torch.zeros(
            config.layer_count,
            2,
            block_count + 1,
            block_size,
            config.kv_head_count,
            config.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )
        # Longer prompts than the cache holds are refused at the door.
        length = min(config.max_position_embeddings, block_count * block_size)
        self._rotation = rotary_table(config.head_dim, config.rope_theta, length, self.device)
        self._last_tokens = torch.zeros(max_running, dtype=torch.int64, device=self.device)
        self._mask_thread = ThreadPoolExecutor(1, "guide-masks")
        self._table_upload = LargeUpload(self.device)
        self._graphs: DecodeGraphs | None = None
        if self.device.type == "cuda" and decoder.kernels.static_shapes:
            self._graphs = self._record(max_running, -(-length // block_size), block_count)

    @property
    def overlaps(self) -> bool:
        """Whether a step's outputs come later, so that the next step can be prepared meanwhile."""
        return self.device.type == "cuda"

    @torch.inference_mode()
    def run(self, scheduled: list[Sequence]) -> StepOutputs:
        """Computes the scheduled tokens of all sequences in one batch, and samples."""
        inputs = self.inputs(scheduled)
        masks = None
        if any(sequence.matcher for sequence in inputs.sampled):
            # Made while the device computes the logits.
            masks = self._mask_thread.submit(guide_masks, inputs.sampled, self.vocabulary_size)
        logits = self.logits(inputs)
        choice = sample(logits, inputs.sampled, None if masks is None else masks.result())
        slots = [sequence.slot for sequence in inputs.sampled]
        self._last_tokens[uploaded(slots, torch.int64, self.device)] = choice.token_ids
        return StepOutputs(inputs.sampled, choice)

    def close(self) -> None:
        """Ends the thread of the masks."""
        self._mask_thread.shutdown()

    def inputs(self, scheduled: list[Sequence]) -> StepInputs:
        """Returns what the scheduled sequences mean to `logits`."""
        return StepInputs.of(scheduled, self._block_size, self.vocabulary_size)

    @torch.inference_mode()
    def logits(self, inputs: StepInputs) -> torch.Tensor:
        """Returns [S, vocabulary_size], the logits after the last token of each that is sampled."""
        rows = upload(torch.from_numpy(inputs.rows), self.device)
        block_tables = upload(torch.from_numpy(inputs.block_tables), self.device)
        if self._graphs is not None and inputs.decode_count == inputs.rows.shape[1]:
            logits = self._graphs.run(rows, block_tables)
            if len(inputs.sampled) == inputs.decode_count:
                return logits
            return logits[self._sampled_rows(inputs)]
        hidden = self._hidden(inputs, rows, block_tables)
        return self._decoder.logits(hidden[self._sampled_rows(inputs)])

    def _sampled_rows(self, inputs: StepInputs) -> torch.Tensor:
        return uploaded(inputs.sampled_rows, torch.int64, self.device)

    def _hidden(
        self, inputs: StepInputs, rows: torch.Tensor, block_tables: torch.Tensor
    ) -> torch.Tensor:
        token_ids, places, slots = rows
        layout = BatchLayout(
            rotation=self._rotation[places],
            slots=slots,
            context_lengths=(places[: inputs.decode_count] + 1).int(),
            block_tables=block_tables,
            spans=inputs.spans(self.device, self._block_size),
        )
        embeddings = self._embed(token_ids)
        self._insert_images(embeddings, inputs)
        hidden: torch.Tensor = self._decoder(embeddings, self._kv_cache, layout)
        return hidden

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns [T, hidden_size]; what a virtual token gets is yet to be overwritten."""
        in_flight = self._last_tokens[(-1 - token_ids).clamp(min=0)]
        known = token_ids.clamp(max=self.vocabulary_size - 1)
        embedded: torch.Tensor = self._decoder.embedding(
            torch.where(token_ids < 0, in_flight, known)
        )
        return embedded

    def _insert_images(self, embeddings: torch.Tensor, inputs: StepInputs) -> None:
        """Writes the rows of the prompt tables to the places of the virtual tokens."""
        begin = inputs.decode_count
        for sequence in inputs.sequences[begin:]:
            token_ids = inputs.rows[0, begin : begin + sequence.scheduled_count]
            (places,) = (token_ids >= self.vocabulary_size).nonzero()
            if len(places):
                first, last = token_ids[places[[0, -1]]] - self.vocabulary_size
                table = sequence.prompt.prompt_table[first : last + 1]
                places_of_rows = upload(torch.from_numpy(begin + places), self.device)
                embeddings[places_of_rows] = self._table_upload(table).to(embeddings.dtype)
            begin += sequence.scheduled_count

    def _decode(self, rows: torch.Tensor, block_tables: torch.Tensor) -> torch.Tensor:
        """Returns the logits [D, vocabulary_size] of decodes alone."""
        token_ids, places, slots = rows
        layout = BatchLayout(self._rotation[places], slots, (places + 1).int(), block_tables)
        hidden = self._decoder(self._embed(token_ids), self._kv_cache, layout)
        return self._decoder.logits(hidden)

    @torch.inference_mode()
    def _record(self, max_running: int, table_width: int, padding_block: int) -> DecodeGraphs:
        padding = (0, 0, padding_block * self._block_size)
        return DecodeGraphs(self._decode, max_running, table_width, padding, self.device)
