"""Masks are made where they have to be, and what they take is a request's own."""

import random

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits
from walks import BYTES, compiled, compiler, what_may_come

from detinfer.engine import constraint as constraint_module
from detinfer.engine.constraint import Constraint
from detinfer.engine.rules import read_rules
from detinfer.params import SamplingParams
from detinfer.token_mask import allows

PATTERNS = ["[a-c]+x", "(yes|no)!", '"[^"]*"', "[0-9]{1,3}(\\.[0-9]+)?", "a?b?c?d"]


def bits(mask):
    return np.unpackbits(mask, bitorder="little")[:BYTES].tolist()


def several(*patterns):
    by = compiler()
    return [compiled(by, SamplingParams(regex=one)) for one in patterns]


def lets(constraint, token):
    [mask] = constraint.masks([], [token])
    return mask is None


def test_there_is_no_mask_where_what_is_chosen_may_come():
    [one] = several("ab")
    assert one.masks([], [ord("a")]) == [None]
    for token in (ord("z"), None):
        [mask] = one.masks([], [token])
        assert np.flatnonzero(bits(mask)).tolist() == [ord("a")]


def test_what_was_asked_changes_nothing_of_what_may_come():
    rng = random.Random(8)
    asked, plain = several(*PATTERNS), several(*PATTERNS)
    for _ in range(6):
        for one, other in zip(asked, plain, strict=True):
            for token in (rng.randrange(BYTES), rng.randrange(BYTES)):
                assert lets(one, token) == allows(what_may_come(other), token)
            assert bits(what_may_come(one)) == bits(what_may_come(other))
            token = rng.choice(np.flatnonzero(bits(what_may_come(one))).tolist())
            one.take(token)
            other.take(token)


def test_one_that_fails_lets_nothing_follow():
    [one] = several("ab")
    one.take(ord("z"))
    assert one.failure
    for token in (ord("a"), None):
        [mask] = one.masks([], [token])
        assert not any(bits(mask))


MANY_STATES = "([ab]*a[ab]{9}[c-f]){2,9}"


def tight(limit):
    """A grammar whose lexer may have so many states."""
    by = compiler()
    by.prepare()
    limits = LLParserLimits(verbose_errors=False, max_lexer_states=limit)
    rules = read_rules("regex", MANY_STATES)
    return Constraint(LLMatcher(by._table, rules, log_level=0, limits=limits))


def greedy(constraint, orders, plan=(), longest=0):
    """Greedy answers of a model that ranks tokens at random: the tokens, and how it failed.

    Args:
        orders: of each place, its tokens from the likeliest on.
        plan: what is drafted, every fifth token a wrong one.
        longest: tokens of a draft.
    """
    tokens = []
    while len(tokens) < len(orders) and not constraint.ended:
        at = len(tokens)
        end = min(at + longest, len(plan), len(orders) - 1)
        draft = [ord("?") if i % 5 == 4 else plan[i] for i in range(at, end)]
        chosen = [order[0] for order in orders[at : at + len(draft) + 1]]
        masks = constraint.masks(draft, chosen)
        for mask, order, guess in zip(masks, orders[at:], [*draft, None], strict=False):
            if constraint.failure is not None:
                return tokens, constraint.failure
            may = order[:1] if mask is None else [one for one in order if allows(mask, one)]
            if not may:
                return tokens, "nothing may come, and it does not say why"
            constraint.take(may[0])
            tokens.append(may[0])
            if may[0] != guess:
                break
    return tokens, constraint.failure


def differ(limits, longest):
    """Under which limits drafts change an answer or where it fails, and how many fail."""
    rng = random.Random(9)
    orders = [rng.sample(range(32, 127), 95) for _ in range(120)]
    for order in orders[::2]:
        order.insert(0, rng.choice(b"ab"))
    different, failed = [], 0
    for limit in limits:
        plan, failure = greedy(tight(limit), orders)
        failed += failure is not None
        if greedy(tight(limit), orders, plan, longest) != (plan, failure):
            different.append(limit)
    return different, failed


LIMITS = range(20, 140, 4)


@pytest.mark.parametrize("longest", [1, 3, 11])
def test_drafts_do_not_move_the_token_at_which_a_bound_is_met(longest):
    different, failed = differ(LIMITS, longest)
    assert not different
    assert failed > 20


def test_masks_whose_work_is_not_inherited_are_found_out(monkeypatch):
    """The negative control: in a step with a draft, masks are made on copies of what goes on."""
    real, made = Constraint.masks, constraint_module._mask

    def mutated(self, draft, chosen):
        with monkeypatch.context() as patch:
            if draft:
                patch.setattr(constraint_module, "_mask", lambda at: made(at.deep_copy()))
            return real(self, draft, chosen)

    monkeypatch.setattr(Constraint, "masks", mutated)
    different, _ = differ(LIMITS, 11)
    assert different
