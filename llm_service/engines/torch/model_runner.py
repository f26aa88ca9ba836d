"""One step on the device: scheduled sequences in, their next tokens out."""

from __future__ import annotations

import numpy as np
import torch

from llm_service.engines.torch.block_tables import Array, BlockTables
from llm_service.engines.torch.compiled.create import compiled_decode
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.kernels.base import BatchLayout, TileSet, rotary_table
from llm_service.engines.torch.kv_cache import zeros
from llm_service.engines.torch.mask_pool import await_masks, mask_count
from llm_service.engines.torch.prompt_scores import PromptScores
from llm_service.engines.torch.ranked import Ranked
from llm_service.engines.torch.sampler import guide_masks, sample
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.step_graphs import (
    TOKEN_SIZES,
    DecodeGraphs,
    MixedGraphs,
    MixedStep,
    StepGraphs,
    StepLimits,
)
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.engines.torch.step_outputs import StepOutputs
from llm_service.engines.torch.streams import current_stream
from llm_service.engines.torch.token_histories import TokenHistories
from llm_service.engines.torch.transfer import LargeUpload, upload, uploaded


class ModelRunner:
    """The decoder and its KV cache [layers, 2, blocks + 1, block_size, kv_heads, head_dim].

    The last block belongs to nobody: a CUDA graph's padding writes there. On CUDA `run` returns
    before the device has worked; a token that is in flight is read from where the device left it.

    Attributes:
        stream: the thread's when the runner was made, in which all of its steps belong; None on the
            CPU.
    """

    def __init__(
        self,
        decoder: Decoder,
        block_count: int,
        block_size: int,
        max_running: int,
        max_step_token_count: int = TOKEN_SIZES[-1],
    ) -> None:
        """Takes the cache's size, and how many decodes and tokens a step has at most."""
        config = decoder.config
        self.device, self.dtype = decoder.embedding.weight.device, decoder.dtype
        self.stream = current_stream(self.device)
        self._decoder = decoder
        self._block_size = block_size
        self.vocabulary_size = config.vocabulary_size
        heads = config.kv_head_count, config.head_dim
        shape = config.layer_count, 2, block_count + 1, block_size, *heads
        self._kv_cache = zeros(shape, self.dtype, self.device)
        # Longer prompts than the cache holds are refused at the door.
        length = min(config.max_position_embeddings, block_count * block_size)
        self._rotation = rotary_table(config.head_dim, config.rope_theta, length, self.device)
        # One more for the padding of decodes.
        self._last_tokens = torch.zeros(max_running + 1, dtype=torch.int64, device=self.device)
        self._histories = TokenHistories(self.vocabulary_size, self.device)
        self._tables = BlockTables(max_running, -(-length // block_size), block_size)
        self._table_upload = LargeUpload(self.device)
        places = torch.arange(max_running, dtype=torch.int32, device=self.device)
        self._decode_tiles = torch.stack([places, torch.ones_like(places), places], dim=1)
        self._graphs: StepGraphs | None = None
        if decoder.kernels.tile_size is not None:
            self._graphs = self._record(
                decoder.kernels.tile_size, block_count, max_step_token_count
            )
        self._compiled = compiled_decode(decoder, self._kv_cache, self._rotation)

    @property
    def kv_cache(self) -> torch.Tensor:
        """[layers, 2, blocks + 1, block_size, kv_heads, head_dim]."""
        return self._kv_cache

    @property
    def overlaps(self) -> bool:
        """Whether a step's outputs come later, so that the next step can be prepared meanwhile."""
        return self.device.type == "cuda"

    @torch.inference_mode()
    def run(self, scheduled: list[Sequence]) -> StepOutputs:
        """Computes the scheduled tokens of all sequences in one batch, and samples.

        A sequence whose mask has not come is held back: its last token is computed again later.
        """
        inputs = self.inputs(scheduled)
        states, ranked = self._states_and_ranked(inputs)
        sampled, masks = inputs.sampled, None
        if any(sequence.mask is not None for sequence in sampled):
            await_masks(dict.fromkeys(sampled))  # while the device computes the logits
            sampled, ranked = self._with_masks(sampled, ranked)
            masks = guide_masks(sampled, self.vocabulary_size)
        choice = sample(ranked, sampled, masks, self._histories)
        if choice.token_ids is not ranked.best or self._decode_graphs(inputs) is None:
            slots = [sequence.slot for sequence in sampled]
            self._last_tokens[uploaded(slots, torch.int64, self.device)] = choice.token_ids
        scores = None
        if states is not None:
            scores = PromptScores(self._decoder, states[len(inputs.sampled) :], inputs.scored)
        return StepOutputs(sampled, choice, scores)

    def _with_masks(self, sampled: list[Sequence], ranked: Ranked) -> tuple[list[Sequence], Ranked]:
        """Leaves out what has no mask: of a sequence all, or what follows some of its drafts."""
        kept: list[int] = []
        row = 0
        for sequence in dict.fromkeys(sampled):
            kept += range(row, row + mask_count(sequence))
            row += 1 + len(sequence.drafts)
        if len(kept) == len(sampled):
            return sampled, ranked
        rows = uploaded(kept, torch.int64, self.device)
        return [sampled[index] for index in kept], ranked.rows(rows)

    def inputs(self, scheduled: list[Sequence]) -> StepInputs:
        """Returns what the scheduled sequences mean to `logits`."""
        return StepInputs.of(scheduled, self._tables, self.vocabulary_size)

    @torch.inference_mode()
    def logits(self, inputs: StepInputs) -> torch.Tensor:
        """Returns [S, vocabulary_size], the logits after the last token of each that is sampled."""
        if (graphs := self._decode_graphs(inputs)) is not None:
            return graphs.run(inputs).logits
        if self._graphs is None:
            return self._launched_logits(inputs)
        rows = self._uploaded(inputs.rows)
        sampled_rows = self._uploaded(np.array(inputs.sampled_rows, np.int64))
        return self._graphs.mixed.run(self._mixed_step(self._graphs, inputs, rows), sampled_rows)

    def _decode_graphs(self, inputs: StepInputs) -> DecodeGraphs | None:
        """Returns the graphs that compute a step, where these do: they keep the best tokens."""
        return self._graphs.decode if self._graphs and inputs.is_decodes_alone else None

    def _states_and_ranked(self, inputs: StepInputs) -> tuple[torch.Tensor | None, Ranked]:
        """Returns what `_states` does where prompts are scored, and the ranked logits."""
        if (graphs := self._decode_graphs(inputs)) is not None:
            return None, graphs.run(inputs)
        if not inputs.scored:
            return None, Ranked.of(self.logits(inputs))
        states = self._states(inputs)
        return states, Ranked.of(self._decoder.logits(states[: len(inputs.sampled)]))

    def _launched_logits(self, inputs: StepInputs) -> torch.Tensor:
        rows = self._uploaded(inputs.rows)
        self._clear_begun_blocks(inputs)
        count = inputs.decode_count
        if self._compiled and inputs.is_decodes_alone and self._compiled.fits(count):
            return self._compiled.run(self._embed(rows[0]), inputs.rows, inputs.block_tables(count))
        return self._decoder.logits(self._launched(inputs, rows, inputs.sampled_rows))

    def _states(self, inputs: StepInputs) -> torch.Tensor:
        """Returns [S + N, hidden_size]: what gives the logits of `logits`, and those of N scores.

        No graph has room for so many.
        """
        rows = self._uploaded(inputs.rows)
        wanted_rows = [*inputs.sampled_rows, *(row for item in inputs.scored for row in item.rows)]
        if self._graphs is None:
            self._clear_begun_blocks(inputs)
            return self._launched(inputs, rows, wanted_rows)
        placed = self._graphs.mixed.placed(self._mixed_step(self._graphs, inputs, rows))
        return self._mixed_states(*placed, uploaded(wanted_rows, torch.int64, self.device))

    def _mixed_step(self, graphs: StepGraphs, inputs: StepInputs, rows: torch.Tensor) -> MixedStep:
        is_apart = graphs.mixed.keeps_decodes_apart(inputs.token_count)
        apart = inputs.decode_count if is_apart else 0
        return MixedStep(
            self._embeddings(inputs, rows),
            rows,
            self._uploaded(inputs.block_tables(len(inputs.sequences))),
            self._decode_tiles[:apart],
            self._uploaded(inputs.tiles(graphs.tile_size, apart)),
        )

    def _clear_begun_blocks(self, inputs: StepInputs) -> None:
        """Clears the blocks that get their first token now, for kernels that read whole blocks.

        They weigh by 0 what is behind the last token. A NaN that a block's former owner has left
        there would come through.
        """
        places = inputs.rows[2]
        begun = places[places % self._block_size == 0] // self._block_size
        if len(begun):
            self._kv_cache.index_fill_(2, self._uploaded(begun), 0)

    def _uploaded(self, array: Array) -> torch.Tensor:
        return upload(torch.from_numpy(array), self.device)

    def _launched(
        self, inputs: StepInputs, rows: torch.Tensor, wanted_rows: list[int]
    ) -> torch.Tensor:
        """Returns the states [W, hidden_size] of a step that is launched kernel by kernel."""
        _, places, slots = rows
        layout = BatchLayout(
            rotation=self._rotation[places],
            slots=slots,
            context_lengths=(places[: inputs.decode_count] + 1).int(),
            block_tables=self._uploaded(inputs.block_tables(inputs.decode_count)),
            spans=inputs.spans(self.device, self._block_size),
        )
        wanted = uploaded(wanted_rows, torch.int64, self.device)
        states: torch.Tensor = self._decoder(
            self._embeddings(inputs, rows), self._kv_cache, layout, wanted
        )
        return states

    def _embeddings(self, inputs: StepInputs, rows: torch.Tensor) -> torch.Tensor:
        embeddings = self._embed(rows[0])
        self._insert_images(embeddings, inputs)
        return embeddings

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns [T, hidden_size]; the rows of virtual tokens are overwritten later."""
        in_flight = self._last_tokens[(-1 - token_ids).clamp(min=0)]
        known = token_ids.clamp(max=self.vocabulary_size - 1)
        return self._decoder.embed(torch.where(token_ids < 0, in_flight, known))

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

    def _decode(self, rows: torch.Tensor, block_tables: torch.Tensor) -> Ranked:
        """Ranks the logits [D, vocabulary_size] of decodes alone, and keeps the best tokens.

        Where another one is sampled, that is kept later.
        """
        token_ids, places, cache_places, slots = rows
        layout = BatchLayout(
            rotation=self._rotation[places],
            slots=cache_places,
            context_lengths=(places + 1).int(),
            block_tables=block_tables,
            tile_sets=(TileSet(self._decode_tiles[: len(places)], 1),),
        )
        hidden = self._decoder(self._embed(token_ids), self._kv_cache, layout)
        ranked = Ranked.of(self._decoder.logits(hidden))
        self._last_tokens[slots] = ranked.best
        return ranked

    def _mixed_states(
        self,
        embeddings: torch.Tensor,
        rows: torch.Tensor,
        block_tables: torch.Tensor,
        tile_sets: tuple[TileSet, ...],
        wanted_rows: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the states [W, hidden_size] of tokens that are all in tiles."""
        _, places, slots = rows
        layout = BatchLayout(
            rotation=self._rotation[places],
            slots=slots,
            context_lengths=(places + 1).int(),
            block_tables=block_tables,
            tile_sets=tile_sets,
        )
        states: torch.Tensor = self._decoder(embeddings, self._kv_cache, layout, wanted_rows)
        return states

    @torch.inference_mode()
    def _record(self, tile_size: int, padding_block: int, max_step_token_count: int) -> StepGraphs:
        padding = [[0], [0], [padding_block * self._block_size]]
        limits = StepLimits(
            max_running=len(self._decode_tiles),
            max_token_count=max_step_token_count,
            table_width=-(-len(self._rotation) // self._block_size),
            tile_size=tile_size,
            takes_whole_tiles=self._decoder.kernels.takes_whole_tiles(
                self._block_size, self._decoder.config.head_dim
            ),
            padding=torch.tensor(padding, device=self.device),
        )
        embedding = self._decoder.embedding.weight[:1]
        decode = DecodeGraphs(self._decode, limits)
        mixed = MixedGraphs(
            lambda *step: self._decoder.logits(self._mixed_states(*step)), limits, embedding
        )
        return StepGraphs(decode, mixed, tile_size)
