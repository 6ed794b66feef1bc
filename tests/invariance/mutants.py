"""Seeded defects, each a patch of real code, that the fuzzer must find: a test of the test.

Every one depends on the load, as the defects of other engines did. One that is the same under every
load is another model, not an inconsistent one: comparing with a reference finds those.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from kernel_inputs import before_rounding

from detinfer import sampling
from detinfer.backends import portable
from detinfer.engine import choosing, layout, prefix_cache
from detinfer.engine import request as request_module
from detinfer.engine.block_manager import BlockManager
from detinfer.engine.engine import Engine
from detinfer.kernels.constants import PAGE_SIZE

# The right ones, whatever is patched later.
linear, attention, activation = portable.linear, portable.attention, portable.activation
make_batch, sampling_row = layout.make_batch, choosing.sampling_row
choose, gumbel_argmax = sampling.choose, sampling.gumbel_argmax
masks = choosing._masks
page_key, root_key = request_module.Request.page_key, request_module.root_key


@dataclass(frozen=True)
class Mutant:
    """A defect.

    Attributes:
        patch: ``patch(monkeypatch)`` puts it in.
        plan: one that runs what is patched.
        hunt: what finds it, of ``hunts.HUNTS``.
        unseen_by_check: why ``detinfer check`` cannot see it; empty if it must.
    """

    patch: Callable
    plan: str
    hunt: str
    unseen_by_check: str


MUTANTS = {}
REWRITTEN = {}  # controls: the same code without the defect, which must pass


def mutant(plan="fused", found=MUTANTS, hunt="fuzz", unseen_by_check=""):
    def register(patch):
        found[patch.__name__] = Mutant(patch, plan, hunt, unseen_by_check)
        return patch

    return register


# Kernels: on the modules plan, whose ops are looked up by name.


@mutant("modules")
def reduction_tile_by_row_count(patch):
    """K is summed in two halves when there are more than eight rows."""

    def mutated(x, weight, bias, out_dtype):
        half = x.shape[-1] // 2
        if x[..., 0].numel() <= 8:
            return linear(x, weight, bias, out_dtype)
        low, high = x.clone(), x.clone()
        low[..., half:], high[..., :half] = 0, 0
        return linear(low, weight, None, out_dtype) + linear(high, weight, bias, out_dtype)

    patch.setattr(portable, "linear", mutated)


@mutant("modules")
def neighbours_scale(patch):
    """Activations are rounded to eight bits by a scale over the whole step."""

    def mutated(x, weight, bias, out_dtype):
        if not x.numel():  # a step of which no logits are wanted
            return linear(x, weight, bias, out_dtype)
        scale = x.abs().max() / 127
        return linear((x / scale).round() * scale, weight, bias, out_dtype)

    patch.setattr(portable, "linear", mutated)


@mutant("modules", REWRITTEN)
def attention_in_blocks_of_64(patch):
    """No defect: blocks at absolute positions, as the contract wants."""
    patch.setattr(portable, "attention", attention_in_blocks(lambda first, sequences: 0))


@mutant("modules")
def chunk_relative_kv_blocks(patch):
    """Blocks of keys are counted from where the step's chunk begins."""
    patch.setattr(portable, "attention", attention_in_blocks(lambda first, sequences: first))


@mutant("modules")
def split_by_batch_size(patch):
    """Keys are cut elsewhere when fewer than three sequences have to fill the machine."""

    def split(first, sequences):
        return PAGE_SIZE // 2 if sequences < 3 else 0

    patch.setattr(portable, "attention", attention_in_blocks(split))


@mutant("modules")
def stale_page_times_zero(patch):
    """Masked keys take part with weight zero: zero times NaN is NaN."""

    def mutated(q, k, v, cache, layer, batch, **options):
        out = attention(q, k, v, cache, layer, batch, **options)
        for row, start, stop in sequences_of(batch):
            pages = batch.block_tables[row, : batch.positions[stop - 1] // PAGE_SIZE + 1]
            out[start:stop] += 0 * float(cache.values[layer][pages].sum())
        return out

    patch.setattr(portable, "attention", mutated)


@mutant("modules")
def off_by_one_window(patch):
    """Steps that only decode see one key less than prompts do."""

    def mutated(q, *rest, window, **options):
        decoding = q.shape[0] == rest[-1].query_start.size - 1
        return attention(q, *rest, window=window - (decoding and window > 0), **options)

    patch.setattr(portable, "attention", mutated)


@mutant("modules", hunt="rounded")
def keys_of_the_step_not_rounded(patch):
    """A step's tokens attend over their own keys and values as they are, before they are cached."""
    patch.setattr(portable, "attention", before_rounding(attention))


def attention_in_blocks(anchor):
    """An attention in NumPy that visits keys in blocks of 64 counted from ``anchor``.

    It is slow, and invariant but for the anchor: sums run in order, one addition a key.

    Args:
        anchor: from a chunk's first position and the number of sequences, where a block begins.
    """

    def attend(q, k, v, cache, layer, batch, *, scale, window, softcap, sinks):
        assert not softcap
        assert sinks is None
        cache.write(layer, k, v, batch)
        out = np.empty(q.shape[:2] + v.shape[2:], np.float32)
        for row, start, stop in sequences_of(batch):
            positions = batch.positions[start:stop]
            length = int(positions[-1]) + 1
            keys, values = cache.gather(layer, batch.block_tables[row], length)
            cut = anchor(int(positions[0]), batch.query_start.size - 1) % PAGE_SIZE
            queries = q[start:stop].numpy()
            group = q.shape[1] // keys.shape[0]
            j = np.arange(length)
            visible = j <= positions[:, None]
            if window:
                visible &= j > positions[:, None] - window
            for head in range(q.shape[1]):
                kh, vh = keys[head // group].numpy(), values[head // group].numpy()
                products = queries[:, head, None, :] * kh  # [rows, keys, dim]
                scores = products.cumsum(2)[..., -1] * np.float32(scale)
                out[start:stop, head] = _online_softmax(scores, visible, vh, cut)
        return torch.from_numpy(out)

    return attend


def _online_softmax(scores, visible, values, cut):
    """Softmax-weighted values, block after block; the first block has ``cut`` keys, if any."""
    m = np.full(len(scores), -1e30, np.float32)
    total, out = np.zeros_like(m), np.zeros((len(scores), values.shape[1]), np.float32)
    edges = [0, *range(cut or PAGE_SIZE, scores.shape[1], PAGE_SIZE), scores.shape[1]]
    for low, high in itertools.pairwise(edges):
        seen = visible[:, low:high]
        s = np.where(seen, scores[:, low:high], np.float32(-1e30))
        best = np.maximum(m, s.max(1))
        alpha, p = _exp(m - best), np.where(seen, _exp(s - best[:, None]), np.float32(0))
        total = total * alpha + p.cumsum(1)[:, -1]
        weighted = (p[:, :, None] * values[low:high]).cumsum(1)[:, -1]
        out, m = out * alpha[:, None] + weighted, best
    return out / total[:, None]


def _exp(x):
    return activation("exp", torch.from_numpy(np.ascontiguousarray(x))).numpy()


def sequences_of(batch):
    """(row, first flat row, end) of every sequence of a step."""
    edges = batch.query_start.tolist()
    return list(zip(range(len(edges)), edges, edges[1:], strict=False))


# Sampling.


@mutant()
def noise_by_rank(patch):
    """If any request of the step filters, all noise follows the rank in the sorted row."""
    step = SimpleNamespace(sorted=False)

    def mutated_choose(logits, best, rows):
        step.sorted = any(row.params.top_k for row in rows)
        return choose(logits, best, rows)

    def mutated_argmax(x, ids, seed, position):
        if not step.sorted:
            return gumbel_argmax(x, ids, seed, position)
        order = sampling.rank(x)
        ranks = np.arange(len(x), dtype=np.int64)
        return ids[order[gumbel_argmax(x[order], ranks, seed, position)]]

    patch.setattr(sampling, "choose", mutated_choose)
    patch.setattr(sampling, "gumbel_argmax", mutated_argmax)
    patch.setattr(sampling.SamplingRow, "only_draws", False)  # what draws at once has no ranks


@mutant()
def noise_by_slot(patch):
    """The key of the noise counts on with the row of the step."""

    def mutated(logits, best, rows):
        rows = [replace(row, seed=(row.seed + i) % 2**64) for i, row in enumerate(rows)]
        return choose(logits, best, rows)

    patch.setattr(sampling, "choose", mutated)


@mutant(hunt="grammars")
def mask_by_slot(patch):
    """A step's token masks lie without gaps, and are found by the row's place in the step."""

    def mutated(rows, chosen):
        made = masks(rows, chosen)
        packed = [own for row, own in zip(rows, made, strict=True) if row.request.constraint]
        for place, row in enumerate(rows):
            if row.request.constraint:
                laid, count = packed[min(place, len(packed) - 1)], len(made[place])
                made[place] = [*laid[:count], *[None] * (count - len(laid))]
        return made

    patch.setattr(choosing, "_masks", mutated)


@mutant()
def draft_accepted_without_its_penalties(patch):
    """A draft's tokens are judged by penalties of the tokens before the draft."""
    patch.setattr(
        choosing,
        "sampling_row",
        lambda request, guessed: replace(
            sampling_row(request, guessed), token_ids=request.token_ids
        ),
    )


@mutant()
def draft_accepted_without_min_tokens(patch):
    """Stop tokens are masked at the first token of a draft alone."""

    def mutated(request, guessed):
        row = sampling_row(request, guessed)
        return replace(row, masked=row.masked[:0]) if guessed else row

    patch.setattr(choosing, "sampling_row", mutated)


@mutant()
def every_token_of_a_draft_taken(patch):
    """What is chosen after a wrong guess is taken too."""
    patch.setattr(request_module, "accepted", lambda draft, choices: len(draft))


# Batches and pages.


@mutant()
def positions_from_the_batchs_start(patch):
    """A sequence's positions are counted on from those of the sequence before it."""

    def mutated(rows):
        batch = make_batch(rows)
        edges = batch.query_start
        for i, row in enumerate(rows):
            count = int(edges[i + 1] - edges[i])
            room = len(row.request.block_table) * PAGE_SIZE - count  # or it reads wild memory
            first = min(int(batch.positions[0] + edges[i]), room)
            used = first // PAGE_SIZE + 1
            if i and used <= batch.block_tables.shape[1]:
                batch.positions[edges[i] : edges[i + 1]] = np.arange(first, first + count)
        return batch

    patch.setattr(layout, "make_batch", mutated)


@mutant()
def cache_shared_across_modes(patch):
    """Deterministic requests begin with pages that stock kernels have written."""
    patch.setattr(request_module, "root_key", lambda deterministic, salt: root_key(True, salt))


@mutant()
def page_freed_while_referenced(patch):
    """Whoever ends frees shared pages too; no check of the pages, so that answers must tell."""

    def mutated(self, owner):
        for page in reversed(self._owned.pop(owner)):
            self._holders[page] = 0
            self._idle.pop(page, None)
            if page in self.cache:
                self.cache.remove(page)
            if page not in self._free:
                self._free.append(page)

    patch.setattr(BlockManager, "deallocate", mutated)
    patch.setattr(Engine, "check_integrity", lambda self: None)


@mutant()
def page_named_by_its_own_tokens(patch):
    """The same 64 tokens after another beginning are taken for the same page."""

    def mutated(self, page):
        _, _, tokens = page_key(self, page)
        return prefix_cache.chain_key(b"", tokens), b"", tokens

    patch.setattr(request_module.Request, "page_key", mutated)


@mutant()
def evicted_page_keeps_its_name(patch):
    """A page that is given away is still found under what it held."""

    def mutated(self):
        page = next(iter(self._idle))
        del self._idle[page]
        self.evictions += 1
        return page

    patch.setattr(BlockManager, "_evict", mutated)
    patch.setattr(Engine, "check_integrity", lambda self: None)
