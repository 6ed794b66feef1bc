"""A check of an engine: silent when all is well, and not silent about any one fault."""

import dataclasses

import leaks
import pytest
from fake_runner import FakeRunner, LeakyRunner, fake_engine

from detinfer.check import Answer, Check, EngineSubject, Load, Row, Target
from detinfer.check.load import Placement
from detinfer.config import EngineConfig
from detinfer.engine.llm import LLM
from detinfer.errors import ConfigError, DetinferError, RequestError
from detinfer.params import SamplingParams

GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
TARGETS = [
    Target("ABC", GREEDY),
    Target(tuple(range(70)), dataclasses.replace(GREEDY, temperature=1.0, top_k=20, seed=9)),
]


def make(runner=None, targets=TARGETS, config=None, **options):
    engine = fake_engine(config, runner or FakeRunner())
    return Check(EngineSubject(engine), targets, **{"runs": 60, "seed": 5, **options})


def test_a_sound_engine_is_reproducible_in_both_modes():
    check = make(modes=("deterministic", "fast"))
    events = list(check.progress())
    result = check.result()
    assert result.reproducible
    assert (result.unique_outputs, result.unique_digests) == (1, 1)
    assert result.first_divergence is None
    assert list(result.by_mode) == ["deterministic", "fast"]
    for mode in result.by_mode.values():
        assert mode.runs == 120
        assert [len(prompt.runs) for prompt in mode.prompts] == [60, 60]
        assert mode.loads == len([event for event in events if event.mode == mode.mode])
    last = events[-1]
    assert (last.mode, last.runs, last.total, last.unique_digests) == ("fast", 120, 120, 1)
    assert result.to_json()["reproducible"] is True
    assert result.judged.engine["steps"] > result.loads
    assert result.to_json()["by_mode"]["deterministic"]["engine"] == result.judged.engine


def test_answers_are_those_the_engine_gives_alone():
    expected = LLM(engine=fake_engine()).generate(
        ["ABC", list(range(70))], [target.params for target in TARGETS]
    )
    for prompt, answer in zip(make().run().prompts, expected, strict=True):
        assert prompt.answers == [
            Answer(tuple(answer.token_ids), answer.text, answer.finish_reason, answer.digest)
        ]
        assert len(answer.token_ids) == 12


def test_a_warm_prefix_read_wrong_is_found():
    assert not make(leaks.Warm(num_pages=200)).run().reproducible


@pytest.mark.parametrize(
    "runner",
    [
        LeakyRunner,
        leaks.BatchSize,
        leaks.Slot,
        leaks.Neighbours,
        leaks.StepTokens,
        leaks.Chunk,
        leaks.Pages,
    ],
)
def test_a_fault_in_any_drawn_dimension_is_found(runner):
    # A pool in which the largest loads fit at once.
    result = make(runner(num_pages=200), runs=400).run()
    assert not result.reproducible
    assert result.unique_digests > 1
    # All these move a logit by the last bit, which no token shows.
    assert result.unique_outputs == 1
    assert result.first_divergence.position is None
    assert result.first_divergence.load.number >= 1
    assert result.runs == 800


def test_a_fault_that_changes_tokens_says_where():
    result = make(leaks.Token(), targets=[Target("ABC", GREEDY)]).run()
    first = result.first_divergence
    # Three tokens of prompt: the sixth of the sequence decides the fourth of the answer.
    assert first.position == 3
    assert first.got.token_ids[3] == 11 != first.expected.token_ids[3]
    assert first.got.token_ids[:3] == first.expected.token_ids[:3]
    assert result.unique_outputs > 1
    told = result.to_json()["first_divergence"]
    assert (told["position"], told["load"]["number"]) == (3, first.load.number)
    assert told["got"]["token_ids"][3] == 11


def test_a_failing_load_is_drawn_again_by_its_seed():
    first, again = (make(leaks.Slot()).run().first_divergence for _ in range(2))
    assert first == again
    other = make(leaks.Slot(), seed=6).run().first_divergence
    assert other.load != first.load


def test_the_first_divergence_is_of_the_earliest_load():
    result = make(leaks.Pages()).run()
    firsts = [p.first_divergence.load.number for p in result.prompts if p.first_divergence]
    assert result.first_divergence.load.number == min(firsts)


def test_both_modes_are_judged_on_the_first():
    result = make(leaks.OneMode(), modes=("deterministic", "fast")).run()
    assert result.reproducible
    assert result.by_mode["fast"].unique_digests > 1
    assert not make(leaks.OneMode(), modes=("fast",)).run().reproducible


def test_seed_is_drawn_when_none_is_given():
    assert make(seed=None).seed != make(seed=None).seed


def test_the_engine_is_left_idle_and_with_its_own_limits():
    engine = fake_engine()
    limits = engine.scheduler.limits
    before = dataclasses.replace(limits)
    check = Check(EngineSubject(engine), TARGETS, runs=20, seed=1)
    check.run()
    assert engine.scheduler.limits is limits
    assert limits == before
    assert not engine.has_unfinished()
    assert engine.block_manager.num_free == engine.block_manager.num_pages


def test_a_failure_is_no_answer_and_leaves_the_engine_idle():
    engine = fake_engine(runner=FakeRunner(fail_at=40))
    with pytest.raises(DetinferError, match=r"load \d+: .* ended with error: .*injected fault"):
        Check(EngineSubject(engine), TARGETS, runs=20, seed=1).run()
    assert not engine.has_unfinished()


def test_faults_of_neighbours_are_theirs():
    # Their prompts end with every id, among them one whose logits are NaN; no target meets it.
    plain = make().run()
    seen = {token for prompt in plain.prompts for token in prompt.expected.token_ids}
    seen.update(range(70), (ord(c) - 33 for c in "ABC"))
    poison = next(token for token in range(94) if token not in seen)
    assert make(FakeRunner(poison=poison)).run().reproducible


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runs": 0}, "0 runs of 2 prompts in 1 modes, .*nothing would be compared"),
        ({"targets": []}, "60 runs of 0 prompts"),
        ({"modes": ()}, "in 0 modes"),
    ],
)
def test_a_check_that_compares_nothing_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        make(**options)


def test_fast_needs_the_fast_mode():
    with pytest.raises(ConfigError, match="got fast, but fake runs without the fast mode"):
        make(modes=("fast",), config=EngineConfig(allow_fast=False))


def test_sampling_needs_a_seed():
    target = Target("A", SamplingParams(temperature=1.0))
    with pytest.raises(RequestError, match="prompt 1: sampled without a seed"):
        make(targets=[target])


@pytest.mark.parametrize("prompt", ["", (1000,), (1,) * 395])
def test_a_prompt_that_cannot_be_served_is_named(prompt):
    with pytest.raises(RequestError, match=r"prompt 2 of 2: .*(prompt|max_tokens): got"):
        make(targets=[TARGETS[0], Target(prompt, GREEDY)]).run()


def test_a_busy_engine_is_refused():
    check = make()
    check.subject._engine.add_request("mine", [1], GREEDY)
    with pytest.raises(DetinferError, match="the engine is busy"):
        check.run()
    assert check.subject._engine.has_unfinished()


def test_there_is_no_result_before_the_end():
    check = make()
    with pytest.raises(DetinferError, match="compared 0 of 120 deterministic answers"):
        check.result()
    next(check.progress())
    with pytest.raises(DetinferError, match=r"compared \d+ of 120"):
        check.result()


class Forgetful(EngineSubject):
    """Loses one answer, or makes one up."""

    def __init__(self, engine, change):
        super().__init__(engine)
        self.change = change

    def play(self, load: Load):
        answers = super().play(load)
        if load.number == 2:
            self.change(answers)
        return answers


@pytest.mark.parametrize("change", [dict.popitem, lambda answers: answers.update({99: None})])
def test_answers_that_are_missing_or_made_up_are_not_passed_over(change):
    subject = Forgetful(fake_engine(), change)
    with pytest.raises(DetinferError, match="load 2: got answers of rows"):
        Check(subject, TARGETS, runs=60, seed=5).run()


PLACEMENT = Placement(8, 512, None, page_seed=None, cold=True)
LONG = Row(tuple(range(70)), GREEDY, target=0)
TWICE = Load(1, (LONG, dataclasses.replace(LONG, target=1, arrival=2)), PLACEMENT)


def hits(subject, load):
    before = subject.stats()["prefix_hits"]
    subject.play(load)
    return subject.stats()["prefix_hits"] - before


def test_a_load_without_the_prefix_cache_shares_no_page_and_leaves_the_engine_its_own():
    subject = EngineSubject(fake_engine())
    apart = dataclasses.replace(TWICE, placement=dataclasses.replace(PLACEMENT, shared=False))
    assert (hits(subject, TWICE), hits(subject, apart), hits(subject, TWICE)) == (1, 0, 1)


def test_where_a_load_lies_follows_from_the_load_alone():
    """Whatever was served before, and in which order its pages came back."""
    subject = EngineSubject(fake_engine())
    tables = []

    def played(load):
        tables.clear()
        subject.play(load)
        return [*tables]

    engine = subject._engine
    forward = engine.runner.forward
    engine.runner.forward = lambda batch: (tables.append(batch.block_tables.tolist()),
                                           forward(batch))[1]  # fmt: skip
    for page_seed in (None, 7):
        load = dataclasses.replace(
            TWICE, placement=dataclasses.replace(PLACEMENT, page_seed=page_seed)
        )
        first = played(load)
        played(Load(2, (Row((1, 2, 3), GREEDY, target=0), *TWICE.rows), PLACEMENT))
        engine.block_manager._free.reverse()
        assert played(load) == first
    placed = dataclasses.replace(PLACEMENT, page_seed=8)
    assert played(dataclasses.replace(TWICE, placement=placed)) != first
