"""Rule 7: the sampler equals the reference bit for bit, and no row sees another."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from detinfer import sampling
from detinfer.errors import RequestError
from detinfer.kernels import reference, reference_sampling
from detinfer.logprobs import TokenLogprob
from detinfer.params import SamplingParams, choice_seed
from detinfer.sampling import SamplingRow, rank, token_logprobs

NOTHING = np.empty(0, dtype=np.int64)


def row(seed=7, position=11, masked=(), prompt=(), output=(), **params):
    masked = np.array(masked, dtype=np.int64)
    history = [*prompt, *output]
    return SamplingRow(SamplingParams(**params), seed, position, masked, history, len(prompt))


def choose(logits, rows):
    """The chosen token ids."""
    values = torch.from_numpy(logits)
    return sampling.choose(values, sampling.summarise(values)[0], rows)


def logits_of(rows, vocab, seed=0, scale=4.0):
    return np.random.default_rng(seed).normal(0, scale, (rows, vocab)).astype(np.float32)


def test_rows_that_only_draw_are_drawn_at_once_as_one_by_one():
    logits = logits_of(70, 3000, scale=5.0)
    rows = [row(seed=i * 2**57, position=i, temperature=0.1 + i / 40) for i in range(70)]
    assert all(one.only_draws for one in rows)
    assert choose(logits, rows) == [
        sampling._choose_one(values, one) for values, one in zip(logits, rows, strict=True)
    ]
    others = [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}]
    others += [{"presence_penalty": 1.0}, {"logit_bias": {1: 2.0}}, {"masked": [1]}]
    assert not any(row(**{"temperature": 1.0} | one).only_draws for one in others)


FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 5000},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 30.0])
def test_choice_equals_the_reference(filters, temperature):
    logits = logits_of(4, 257, seed=int(temperature * 10))
    logits[1] = np.round(logits[1])  # ties, also on the edge of every filter
    logits[2, ::2] = -0.0
    logits[2, 1::2] = 0.0
    rows = [
        row(seed=100 * i + 2**40, position=i, masked=masked, temperature=temperature, **filters)
        for i, masked in enumerate([(), (3, 9), (0,), (256,)])
    ]
    expected = [
        reference_sampling.sample(
            logits[i], temperature=temperature, seed=r.seed, position=r.position,
            masked=r.masked, **filters,
        )
        for i, r in enumerate(rows)
    ]  # fmt: skip
    assert choose(logits, rows) == expected


def test_choice_equals_the_reference_at_a_real_vocabulary():
    logits = logits_of(1, 49152, seed=5, scale=2.5)
    for seed in range(3):
        r = row(seed=seed, temperature=1.0)
        expected = reference_sampling.sample(logits[0], temperature=1.0, seed=seed, position=11)
        assert choose(logits, [r])[0] == expected


def test_greedy_takes_the_lowest_of_equal_logits_and_respects_the_mask():
    logits = np.zeros((3, 9), dtype=np.float32)
    logits[:, [2, 5]] = 1.0
    rows = [row(), row(masked=[2]), row(temperature=1e-6)]
    assert choose(logits, rows) == [2, 5, 2]


@pytest.mark.parametrize("filters", [{}, {"top_k": 6}])
def test_equal_sums_of_logit_and_noise_go_to_the_lowest_id(filters):
    # At 1e9 binary32 numbers lie 64 apart: no noise moves them.
    logits = np.full((1, 9), 1e9, dtype=np.float32)
    logits[0, :2] = 0
    assert choose(logits, [row(temperature=1.0, **filters)]) == [2]


def test_samples_follow_the_distribution():
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    logits = np.log(probabilities).astype(np.float32)[None]
    draws = 4000
    counts = np.bincount(
        [int(choose(logits, [row(position=i, temperature=1.0)])[0]) for i in range(draws)],
        minlength=4,
    )
    # Chi-squared, three degrees of freedom: 16.27 is passed by chance once in a thousand.
    assert ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum() < 16.27


def test_a_row_does_not_see_its_neighbours():
    logits = logits_of(8, 300)
    params = [
        {}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}, {"temperature": 2.0},
        {"temperature": 0.5, "top_p": 0.9}, {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0}, {"temperature": 0.8, "top_k": 50, "top_p": 0.5},
    ]  # fmt: skip
    rows = [row(seed=i, position=i, **p) for i, p in enumerate(params)]
    together = choose(logits, rows)
    alone = [int(choose(logits[i : i + 1], [rows[i]])[0]) for i in range(8)]
    backwards = choose(logits[::-1].copy(), rows[::-1])[::-1]
    assert together == alone == backwards


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 30.0])
def test_a_logit_of_minus_infinity_is_never_chosen(filters, temperature):
    logits = logits_of(3, 60)
    logits[0, ::2] = -np.inf
    logits[1, 1:] = -np.inf
    logits[2] = -np.inf
    for seed in range(20):
        rows = [row(seed=seed, temperature=temperature, **filters) for _ in logits]
        given = {"temperature": temperature, "seed": seed, "position": 11, **filters}
        with np.errstate(invalid="ignore"):  # the reference looks at a row of nothing, too
            expected = [reference_sampling.sample(values, **given) for values in logits]
        assert choose(logits, rows) == expected
        assert expected[0] % 2 == 1
        assert expected[1:] == [0, -1]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_non_finite_logits_give_no_token_to_their_own_row_only(poison):
    logits = logits_of(4, 50)
    clean = choose(logits, [row(temperature=t) for t in (0, 1, 0, 1)])
    logits[[0, 1], 17] = poison
    chosen = choose(logits, [row(temperature=t) for t in (0, 1, 0, 1)])
    assert chosen == [-1, -1, *clean[2:]]


def test_overflow_by_the_temperature_gives_no_token():
    logits = np.full((2, 8), 3e38, dtype=np.float32)
    params = [{"temperature": 0.1, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}]
    chosen = choose(logits, [row(**p) for p in params])
    assert chosen[0] == -1
    assert 0 <= chosen[1] < 8


@pytest.mark.parametrize("k", [0, 1, 7, 64, 1000])
def test_rank_is_a_stable_descending_sort(k):
    x = np.round(logits_of(1, 64)[0])
    x[:5] = [0.0, -0.0, -np.inf, 3.4e38, -3.4e38]
    assert rank(x, k).tolist() == np.argsort(-x, kind="stable")[: k or None].tolist()


def test_token_logprobs_are_those_of_the_raw_logits():
    logits = logits_of(3, 100)
    table = reference.log_softmax(logits)
    got = token_logprobs(torch.from_numpy(logits), [4, 5, -1], [2, None, 3])
    order = np.argsort(-logits[0], kind="stable")[:2].tolist()
    top = [(token, float(table[0, token])) for token in order]
    place = 1 + np.argsort(-logits[0], kind="stable").tolist().index(4)
    assert got == [TokenLogprob(4, float(table[0, 4]), top, place), None, None]
    assert token_logprobs(torch.from_numpy(logits), [4, 5, 6], [None] * 3) == [None] * 3


def test_rank_of_a_token_is_its_place_among_all_ties_by_id():
    logits = np.array([[1, 3, -0.0, 3, 0.0, -np.inf, 3]], dtype=np.float32)
    order = rank(logits[0]).tolist()
    for token in range(7):
        [one] = token_logprobs(torch.from_numpy(logits), [token], [7])
        assert one.rank == 1 + order.index(token)
        assert one.top[one.rank - 1] == (token, one.logprob)


def test_checksums_are_pairs_of_plain_integers():
    logits = logits_of(2, 33)
    expected = [tuple(map(int, pair)) for pair in reference_sampling.checksum(logits)]
    assert sampling.summarise(torch.from_numpy(logits))[1] == expected


def greedy(logits, **options):
    """The greedy choice from one row of logits."""
    return choose(np.array([logits], dtype=np.float32), [row(**options)])[0]


def random_case(rng, vocab):
    """Sampler arguments as both ``row`` and the reference take them."""

    def one_of(*values):
        return values[rng.integers(len(values))]

    def ids(most):
        # A few favourites, so that tokens repeat, in the prompt and in the output.
        return (rng.integers(0, vocab, rng.integers(0, most)) // 3 * 3).tolist()

    biased = rng.choice(vocab, size=rng.integers(0, 40), replace=False).tolist()
    return {
        "temperature": one_of(0.0, 0.0, 0.7, 1.5),
        "top_k": one_of(0, 0, 5, 40),
        "top_p": one_of(1.0, 0.9),
        "min_p": one_of(0.0, 0.03),
        "repetition_penalty": one_of(1.0, 1.1, 2.5, 0.7),
        "presence_penalty": one_of(0.0, 0.3, 2.0, -1.1),
        "frequency_penalty": one_of(0.0, 0.1, 1.7, -0.6),
        "logit_bias": one_of({}, {token: float(rng.normal(0, 3)) for token in biased}),
        "seed": int(rng.integers(2**63)),
        "position": int(rng.integers(2**40)),
        "masked": one_of((), tuple(biased[:5])),
    }, {"prompt": ids(60), "output": ids(90)}


@pytest.mark.parametrize("seed", range(8))
def test_any_mix_of_parameters_equals_the_reference(seed):
    rng, vocab = np.random.default_rng(seed), 131
    logits = logits_of(64, vocab, seed)
    logits[::4] = np.round(logits[::4])  # ties
    cases = [random_case(rng, vocab) for _ in logits]
    expected = [
        reference_sampling.sample(
            x, **case, prompt_ids=history["prompt"], output_ids=history["output"]
        )
        for x, (case, history) in zip(logits, cases, strict=True)
    ]
    rows = [row(**case, **history) for case, history in cases]
    raw = logits.copy()
    together = choose(logits, rows)
    assert together == expected
    assert together == [choose(logits[i : i + 1], [r])[0] for i, r in enumerate(rows)]
    assert np.array_equal(logits, raw)  # log-probabilities are still to be taken from them
    plain = [replace(r, token_ids=(), prompt_tokens=0) for r in rows]
    assert sum(a != b for a, b in zip(together, choose(logits, plain), strict=True)) > 5


def test_a_row_does_not_see_its_neighbours_tokens(monkeypatch):
    x = logits_of(1, 40)[0]
    logits = np.stack([x] * 8)
    penalties = {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 3.0}
    best = rank(x).tolist()
    rows = [row(output=best[i : i + 3], **penalties) for i in range(8)]
    rows[3] = row()
    rows[5] = row(logit_bias={best[20]: 100})

    def differ():
        alone = [choose(logits[:1], [r])[0] for r in rows]
        orders = (range(8), range(7, -1, -1), (3, 1, 5, 0, 7, 2, 6, 4))
        return any(
            choose(logits, [rows[i] for i in order]) != [alone[i] for i in order]
            for order in orders
        )

    assert not differ()
    adjust, seen = sampling._adjust, []

    def leaky(logits, row):
        seen.extend(row.token_ids)
        return adjust(logits, replace(row, token_ids=[*row.token_ids, *seen]))

    monkeypatch.setattr(sampling, "_adjust", leaky)
    assert differ()


def test_frequency_counts_each_time_and_presence_once():
    logits = [10.0, 9.0]
    assert greedy(logits, output=[0], frequency_penalty=0.75) == 0
    assert greedy(logits, output=[0, 0], frequency_penalty=0.75) == 1
    assert greedy(logits, output=[0, 0], presence_penalty=0.75) == 0
    assert greedy(logits, output=[0], presence_penalty=1.25) == 1
    assert greedy(logits, output=[1, 1], frequency_penalty=-0.75) == 1  # a negative one rewards


def test_the_prompt_counts_for_repetition_only():
    logits, prompt = [2.0, 1.5], [0, 0, 0, 0]
    assert greedy(logits, prompt=prompt, frequency_penalty=2.0, presence_penalty=2.0) == 0
    assert greedy(logits, prompt=prompt, repetition_penalty=2.0) == 1
    assert greedy(logits, output=[0], repetition_penalty=2.0) == 1


def test_repetition_applies_once_and_lowers_negative_logits_too():
    assert greedy([4.0, 1.5], prompt=[0, 0], output=[0], repetition_penalty=2.0) == 0
    assert greedy([-1.0, -1.5], output=[0], repetition_penalty=2.0) == 1
    assert greedy([-1.0, -1.5], output=[1], repetition_penalty=0.5) == 1


def test_bias_forces_and_forbids():
    logits = logits_of(1, 50)[0]
    first, second, *_, last = rank(logits).tolist()
    assert greedy(logits, logit_bias={last: 100}) == last
    assert greedy(logits, logit_bias={first: -100}) == second
    assert greedy(logits, logit_bias={last: 100}, masked=[last]) == first


def test_order_is_bias_then_repetition_then_frequency_then_presence():
    # (1 + 1) / 2 = 1, where the other order gives 1 / 2 + 1 = 1.5
    options = {"logit_bias": {0: 1}, "repetition_penalty": 2.0}
    assert greedy([1.0, 1.25], prompt=[0], **options) == 1
    # 2 / 2 - 0.5 = 0.5, where the other order gives (2 - 0.5) / 2 = 0.75
    for name in ("frequency_penalty", "presence_penalty"):
        options = {"repetition_penalty": 2.0, name: 0.5}
        assert greedy([2.0, 0.625], output=[0], **options) == 1
    # At 2^24 numbers lie 2 apart: 1 less rounds back to an even one, twice; 2 less at once do not.
    options = {"frequency_penalty": 1.0, "presence_penalty": 1.0}
    big = 2.0**24 + 4
    assert greedy([big - 2, big], output=[1], **options) == 1


def test_equal_adjusted_logits_go_to_the_lowest_id():
    assert greedy([1.0, 3.0, 2.0], logit_bias={0: 2, 2: 1}) == 0
    assert greedy([0.0, 1.0, 0.5], output=[1], presence_penalty=0.5) == 1
    assert greedy([-0.0, 0.0], output=[0], repetition_penalty=2.0) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_overflow_by_a_penalty_gives_no_token_and_no_crash(temperature):
    def one(logits, **options):
        return greedy(logits, temperature=temperature, **options)

    huge, seen = 3e38, {"prompt": [0, 1]}
    assert one([huge, 1.0], repetition_penalty=0.5, **seen) == -1
    assert one([-huge, -huge], repetition_penalty=2.0, **seen) == -1
    assert one([-huge, 1.0], repetition_penalty=2.0, **seen) == 1
    assert one([huge, -huge, 1.0], logit_bias={0: 100, 1: -100}) == 0


def test_only_rows_that_ask_leave_the_batched_argmax():
    assert row(prompt=[1], output=[2]).takes(3)
    assert row(repetition_penalty=1, presence_penalty=0, logit_bias={}).takes(3)
    asking = [
        {"temperature": 1.0}, {"masked": [1]}, {"logit_bias": {0: 0.0}},
        {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1},
    ]  # fmt: skip
    assert not any(row(**options).takes(3) for options in asking)


def test_logit_bias_is_kept_as_sorted_pairs():
    params = SamplingParams(logit_bias={7: 1, 2: -0.5})
    assert params.logit_bias == ((2, -0.5), (7, 1.0))
    same = [SamplingParams(logit_bias=params.logit_bias), replace(params, max_tokens=128)]
    assert same == [params, pickle.loads(pickle.dumps(params))]
    assert len({params, *same}) == 1


BAD = [
    ("repetition_penalty", 0, r"got 0, expected \[0.01, 100.0\]"),
    ("repetition_penalty", 100.5, "got 100.5, expected"),
    ("repetition_penalty", float("nan"), "got nan, expected"),
    ("presence_penalty", 2.01, r"got 2.01, expected \[-2.0, 2.0\]"),
    ("frequency_penalty", -2.01, r"got -2.01, expected \[-2.0, 2.0\]"),
    ("frequency_penalty", True, "got True, expected"),
    ("logit_bias", {-1: 1.0}, "got -1, expected an integer in 0.."),
    ("logit_bias", {"5": 1.0}, "got '5', expected an integer in 0.."),
    ("logit_bias", {True: 1.0}, "got True, expected an integer in 0.."),
    ("logit_bias", {5: 100.5}, r"got 100.5, expected \[-100.0, 100.0\]"),
    ("logit_bias", {5: float("inf")}, "got inf, expected"),
    ("logit_bias", {5: "1"}, "got '1', expected"),
    ("logit_bias", 5, "got int, expected a mapping"),
    ("logit_bias", None, "got NoneType, expected a mapping"),
    ("logit_bias", dict.fromkeys(range(1025), 0.0), "got 1025 entries, at most 1024"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD)
def test_values_out_of_range_are_refused_by_name(field, value, message):
    with pytest.raises(RequestError, match=f"^{field}: {message}") as refusal:
        SamplingParams(**{field: value})
    assert refusal.value.param == field


def test_the_ends_of_the_ranges_are_accepted():
    SamplingParams(repetition_penalty=0.01, presence_penalty=-2, frequency_penalty=2)
    SamplingParams(repetition_penalty=100, logit_bias=dict.fromkeys(range(1024), -100))


def test_choice_seeds_are_those_of_splitmix64():
    # Published outputs of SplitMix64 started at 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [choice_seed(1234567, i) for i in range(4)] == [1234567, *published]
    for seed in (0, 5, 2**63, 2**64 - 1):
        seeds = [choice_seed(seed, i) for i in range(129)]
        assert seeds == [reference_sampling.choice_seed(seed, i) for i in range(129)]
        assert len(set(seeds)) == len(seeds)
        assert max(seeds) < 2**64
