"""What a solve may ask for, and the models that come with the package."""

from __future__ import annotations

from dataclasses import replace

import pytest

from detinfer.errors import ModelLoadError, RequestError
from detinfer.recursive import shipped
from detinfer.recursive.params import SolveParams


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_steps", 0, "max_steps: got 0, expected an integer in 1..1024"),
        ("max_steps", 10**9, "max_steps: got 1000000000, expected an integer in 1..1024"),
        ("max_steps", 10**5000, "max_steps: got an integer of 16610 bits, expected an integer"),
        ("max_steps", True, "max_steps: got True, expected an integer"),
        ("max_steps", 2.0, "max_steps: got 2.0, expected an integer"),
        ("halt", "soon", "halt: got 'soon', expected one of fixed, q, verified, stable"),
        ("halt", ["q"], "halt: got ['q'], expected one of"),
        ("halt", "x" * 999, f"halt: got '{'x' * 39}…, expected one of"),
        ("halt_threshold", float("nan"), "halt_threshold: got nan, expected a number in"),
        ("halt_threshold", float("inf"), "halt_threshold: got inf, expected a number in"),
        ("halt_threshold", "0", "halt_threshold: got '0', expected a number in"),
        ("stable_steps", 1, "stable_steps: got 1, expected an integer in 2..1024"),
        ("rollouts", 65, "rollouts: got 65, expected an integer in 1..64"),
        ("noise", -0.1, "noise: got -0.1, expected a number in 0..100"),
        ("noise", float("nan"), "noise: got nan, expected a number in 0..100"),
        ("noise", 10**400, "noise: got an integer of 1329 bits, expected a number in 0..100"),
        ("seed", -1, "seed: got -1, expected an integer in 0..18446744073709551615"),
        ("seed", 1 << 64, "seed: got 18446744073709551616, expected"),
        ("trace", 1, "trace: got 1, expected a boolean"),
    ],
    ids=range(19),  # pytest cannot print the longest integer either
)
def test_what_is_out_of_range_is_named_in_a_line(field, value, said):
    with pytest.raises(RequestError) as raised:
        SolveParams(**{field: value})
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    assert raised.value.param == said.partition(":")[0]


def test_what_the_answer_does_not_follow_is_not_of_its_digest():
    def matter(**changes):
        return SolveParams(**changes).that_matter()

    plain = matter()
    assert plain == matter(trace=True, seed=7, noise=0.3, stable_steps=9)
    assert plain == matter(halt_threshold=-0.0) == matter(halt_threshold=0)
    assert {type(value) for value in matter(noise=1, rollouts=2).values()} == {int, str, float}
    told = SolveParams(halt="stable", rollouts=2, noise=0.3)
    for change in ({"seed": 1}, {"noise": 0.5}, {"stable_steps": 3}, {"max_steps": 3}):
        assert replace(told, **change).that_matter() != told.that_matter()
    assert matter(halt="stable") == matter(halt="stable", halt_threshold=2.0)
    assert matter(halt="q") != matter(halt="q", halt_threshold=2.0)


def test_shipped_models_are_those_whose_files_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(ModelLoadError, match="got 'trm-x', expected one of: none, this copy of"):
        shipped.path("trm-x")
    for name in ("trm-b", "trm-a"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "trm-a.json").write_text('{"task": "sudoku4"}')
    assert shipped.names() == ["trm-a", "trm-b"]
    assert shipped.path("trm-a") == tmp_path / "trm-a.safetensors"
    assert shipped.card("trm-a") == {"task": "sudoku4"}
    with pytest.raises(ModelLoadError, match=r"got '../trm-a', expected one of: trm-a, trm-b$"):
        shipped.path("../trm-a")
    with pytest.raises(ModelLoadError, match=r"trm-b.json: missing beside the weights"):
        shipped.card("trm-b")


def test_every_shipped_model_has_a_card():
    for name in shipped.names():
        assert shipped.card(name)["task"]
