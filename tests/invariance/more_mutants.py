"""More seeded defects: those that passed 2,063 tests, and others as well hidden.

What hid them: sizes no test came to, sums of two numbers, neighbours that nobody compared, steps
that fail, and answers that are wrong in the same way under every load.
"""

import inspect
from dataclasses import replace

import numpy as np
import torch
from mutants import _online_softmax as online_softmax
from mutants import (
    attention,
    choose,
    linear,
    make_batch,
    mutant,
    page_key,
    sequences_of,
)

from detinfer import ops, sampling
from detinfer.backends import portable
from detinfer.engine import layout, prefix_cache
from detinfer.engine import request as request_module
from detinfer.engine.step import Stepper
from detinfer.models import moe, rope_table

# Of those that `detinfer check` cannot see: it compares an answer with itself under other loads.
EVERYWHERE = "the same under every load, since "


def rewritten(function, old, new):
    """A copy of a function in which one piece of its source is another."""
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {function}"
    indent = len(source) - len(source.lstrip())
    lines = [line[indent:] for line in source.splitlines()]
    space = dict(function.__globals__)
    exec("from __future__ import annotations\n" + "\n".join(lines).replace(old, new), space)
    return space[function.__name__]


# Survivors of issue 12.


@mutant("modules", hunt="experts")
def experts_summed_in_order_of_arrival(patch):
    """A token's experts are added in the order in which the step first meets them."""
    old, new = (
        "in sorted(set(top_k_index.flatten().tolist()))",
        ("in dict.fromkeys(top_k_index.flatten().tolist())"),
    )
    patch.setattr(moe.PackedExperts, "forward", rewritten(moe.PackedExperts.forward, old, new))


@mutant("modules", hunt="long")
def decode_cut_elsewhere_beyond_1536_keys(patch):
    """From 1,536 keys on, a sequence's one new token sums its keys in one segment."""

    def mutated(q, k, v, cache, layer, batch, *, scale, window, **options):
        out = attention(q, k, v, cache, layer, batch, scale=scale, window=window, **options)
        for row, start, stop in sequences_of(batch):
            length = int(batch.positions[stop - 1]) + 1
            if stop - start > 1 or length <= 1536 or window:
                continue
            keys, values = cache.gather(layer, batch.block_tables[row], length)
            group = q.shape[1] // keys.shape[0]
            for head in range(q.shape[1]):
                kh, vh = keys[head // group].numpy(), values[head // group].numpy()
                products = q[start, head].numpy() * kh
                scores = products.cumsum(1)[None, :, -1] * np.float32(scale)
                seen = np.ones((1, length), bool)
                out[start, head] = torch.from_numpy(online_softmax(scores, seen, vh, 0)[0])
        return out

    patch.setattr(portable, "attention", mutated)


@mutant(hunt="filter", unseen_by_check=EVERYWHERE + "a weight is made of its own logit alone")
def numpy_exp_in_top_p(patch):
    """The filter's weights come from NumPy, whose last bit depends on the CPU."""
    patch.setattr(sampling, "weights", lambda x, top: np.exp(x - top))


@mutant(hunt="end", unseen_by_check="what is computed past an answer's end is never read")
def drafts_past_the_last_token(patch):
    """A draft may be longer than what the request may still generate."""
    old, new = "min(most, self.longest - 1 - len(self.token_ids))", "most"
    patch.setattr(
        request_module.Request, "draft", rewritten(request_module.Request.draft, old, new)
    )


@mutant("modules", hunt="crowd")
def rows_lost_from_384_on(patch):
    """Rows are dealt out in blocks that leave out the last ones of a large step."""

    def mutated(x, weight, bias, out_dtype):
        out = linear(x, weight, bias, out_dtype)
        rows = out.reshape(-1, out.shape[-1])
        if len(rows) >= 384:
            blocks = len(rows) // 96
            rows[len(rows) // blocks * blocks :] = 0
        return out

    patch.setattr(portable, "linear", mutated)


# As well hidden.


@mutant(hunt="long")
def tables_of_32_pages(patch):
    """Pages from the 33rd on are not the sequence's own."""

    def mutated(rows):
        batch = make_batch(rows)
        batch.block_tables[:, 32:] = batch.block_tables[:, 31:32]
        return batch

    patch.setattr(layout, "make_batch", mutated)


@mutant("modules", hunt="long")
def window_wider_in_chunks_beyond_512_keys(patch):
    """Rows of a chunk that begins beyond the first segment see one key more than their window."""

    def mutated(q, *rest, window, **options):
        later = q.shape[0] > 1 and rest[-1].positions.min() >= 512
        return attention(q, *rest, window=window + (later and window > 0), **options)

    patch.setattr(portable, "attention", mutated)


@mutant("modules", hunt="long")
def more_sequences_more_rounding_beyond_512_keys(patch):
    """From the second segment of keys on, a last bit depends on the number of sequences."""

    def mutated(q, k, v, cache, layer, batch, **options):
        out = attention(q, k, v, cache, layer, batch, **options)
        if batch.query_start.size > 2:
            out[batch.positions >= 512] *= 1 + 2**-23
        return out

    patch.setattr(portable, "attention", mutated)


@mutant()
def logprobs_by_the_steps_largest_logit(patch):
    """What is subtracted before exp is the largest logit of all rows that ask."""

    def mutated(x):
        less = x - x.max()
        return less - less.exp().sum(-1, keepdim=True).log()

    patch.setattr(ops, "log_softmax", mutated)


@mutant()
def penalties_counted_on_from_the_row_above(patch):
    """The table of counts is not cleared between two rows of a step."""

    def mutated(logits, best, rows):
        above = [[], *([*row.token_ids[row.prompt_tokens :]] for row in rows[:-1])]
        rows = [replace(r, token_ids=[*r.token_ids, *a]) for r, a in zip(rows, above, strict=True)]
        return choose(logits, best, rows)

    patch.setattr(sampling, "choose", mutated)


@mutant(hunt="crowd")
def noise_of_another_slot_from_the_64th_on(patch):
    """Buffers of 64 seeds: the 65th row of a step draws with the first one's."""

    def mutated(logits, best, rows):
        return choose(
            logits, best, [replace(row, seed=rows[i % 64].seed) for i, row in enumerate(rows)]
        )

    patch.setattr(sampling, "choose", mutated)


@mutant(hunt="crowd")
def logprobs_by_another_kernel_from_200_rows_on(patch):
    """Many rows are normalised by PyTorch's softmax, few by our own."""
    ours = ops.log_softmax

    def mutated(x):
        return torch.log_softmax(x, -1) if len(x) >= 200 else ours(x)

    patch.setattr(ops, "log_softmax", mutated)


@mutant(hunt="failed")
def pages_named_before_they_are_written(patch):
    """What a step is about to compute is offered to others, and still is when the step fails."""
    run = Stepper._run

    def mutated(self, batch, rows, failed):
        for row in rows:
            row.request.num_computed += row.num_tokens
            self._scheduler.name_pages(row.request)
            row.request.num_computed -= row.num_tokens
        return run(self, batch, rows, failed)

    patch.setattr(Stepper, "_run", mutated)


@mutant(hunt="long")
def chain_forgotten_after_16_pages(patch):
    """A page that far in is named by its own tokens alone."""

    def mutated(self, page):
        key, parent, tokens = page_key(self, page)
        if page >= 16:
            return prefix_cache.chain_key(b"", tokens), b"", tokens
        return key, parent, tokens

    patch.setattr(request_module.Request, "page_key", mutated)


@mutant(hunt="crowd")
def page_numbers_in_one_byte(patch):
    """The 257th page of the pool is taken for the first."""

    def mutated(rows):
        batch = make_batch(rows)
        return replace(batch, block_tables=batch.block_tables.astype(np.uint8).astype(np.int32))

    patch.setattr(layout, "make_batch", mutated)


@mutant(hunt="contract", unseen_by_check=EVERYWHERE + "a row's logits are its own")
def penalties_change_the_logits_themselves(patch):
    """Log-probabilities are those of the logits after bias and penalties."""
    patch.setattr(sampling, "_adjust", rewritten(sampling._adjust, "logits.copy()", "logits"))


@mutant(hunt="contract", unseen_by_check=EVERYWHERE + "what is counted is an answer's own tokens")
def counts_wrap_at_256(patch):
    """A frequency penalty forgets its token at the 256th time."""
    old, new = "counts.astype(np.float32)", "counts.astype(np.uint8).astype(np.float32)"
    patch.setattr(sampling, "_adjust", rewritten(sampling._adjust, old, new))


@mutant(hunt="rope", unseen_by_check=EVERYWHERE + "a position has one row of the table")
def positions_in_half_precision(patch):
    """Beyond 2,048 every other position turns as its neighbour does."""
    old, new = (
        "np.arange(positions, dtype=np.float32)",
        ("np.arange(positions).astype(np.float16).astype(np.float32)"),
    )
    built = rewritten(rope_table.build_rope_table, old, new)
    patch.setattr(rope_table, "build_rope_table", built)


@mutant(hunt="contract", unseen_by_check=EVERYWHERE + "a position is a request's own")
def noise_repeats_after_128_tokens(patch):
    """The position's low seven bits key the noise."""

    def mutated(logits, best, rows):
        return choose(logits, best, [replace(row, position=row.position % 128) for row in rows])

    patch.setattr(sampling, "choose", mutated)
