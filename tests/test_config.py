"""Every setting is checked where it is given; none that is wrong is taken for the default."""

import dataclasses
import math

import pytest
from fake_runner import FakeRunner

from detinfer import machine
from detinfer.config import EngineConfig, ServerConfig
from detinfer.engine import engine as engine_module
from detinfer.engine.engine import Engine
from detinfer.errors import ConfigError, RequestError
from detinfer.params import SamplingParams

ODD = [0, -1, 1.5, True, math.nan, math.inf, "", "2", [], b"x", object()]
# Values of the list above that a field does take.
GOOD = {
    "model": ["2"],
    "threads": [0, -1],  # refused where the machine's cores are known
    "host": ["2"],
    "port": [0],
    "max_queue_size": [0],
    "request_timeout": [0, 1.5],
    "generation_timeout": [0, 1.5],
    "shutdown_timeout": [0, 1.5],
    "served_model_name": ["2"],
    "receipt_key": ["2"],
    "api_keys": [[]],
    "cors_origins": [[]],
}
FIELDS = [
    pytest.param(config, field, id=f"{config.__name__}.{field.name}")
    for config in (EngineConfig, ServerConfig)
    for field in dataclasses.fields(config)
]


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_odd_values_of_every_field_cost_one_line(config, field):
    known = GOOD.get(field.name, [])
    for value in ODD:
        if isinstance(field.default, bool) and value is True:
            continue
        if any(type(value) is type(one) and value == one for one in known):
            config(**{field.name: value})
            continue
        with pytest.raises(ConfigError, match=f"^{field.name}: ") as refusal:
            config(**{field.name: value})
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_none_is_taken_only_where_it_is_the_default(config, field):
    if field.default is None:
        assert config(**{field.name: None}) == config()
    else:
        with pytest.raises(ConfigError, match=f"^{field.name}: "):
            config(**{field.name: None})


@pytest.mark.parametrize("device", [{"device": "cuda"}, {"numerics": "native"}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_profile_native_has_no_other_cache_than_its_own(device, dtype):
    refusal = rf"^kv_cache_dtype: got '{dtype}' with profile native, expected auto \("
    with pytest.raises(ConfigError, match=refusal):
        EngineConfig(kv_cache_dtype=dtype, **device)
    assert EngineConfig(**device).resolve().kv_cache_dtype == "auto"
    assert EngineConfig().resolve().kv_cache_dtype == "float32"


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    def limits(maximum, current, inactive=0):
        (tmp_path / "memory.max").write_text(f"{maximum}\n")
        (tmp_path / "memory.current").write_text(f"{current}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
        (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
        monkeypatch.setattr(machine, "CGROUP", tmp_path)
        monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")

    return limits


def test_available_memory_is_the_machines_or_what_the_control_group_leaves(cgroup):
    cgroup("max", 100)
    assert machine.available_memory() == 8_000_000 << 10
    cgroup(3 << 30, 1 << 30, inactive=1 << 29)
    assert machine.available_memory() == (3 << 30) - (1 << 30) + (1 << 29)
    cgroup(1 << 30, 2 << 30)
    assert machine.available_memory() == 0
    cgroup("", "")
    assert machine.available_memory() == 8_000_000 << 10


def test_what_the_machine_cannot_hold_is_refused_in_one_line(cgroup, monkeypatch):
    cgroup(4 << 30, 0)
    monkeypatch.setattr(engine_module, "make_runner", lambda config: FakeRunner())
    for kv_cache_memory in (None, 4 << 30):
        Engine(EngineConfig(kv_cache_memory=kv_cache_memory))
    too_much = r"^kv_cache_memory: got 900\.0 GiB, but 4\.0 GiB of memory are available$"
    with pytest.raises(ConfigError, match=too_much):
        Engine(EngineConfig(kv_cache_memory=900 << 30))
    # A row of logits is a float a token of the vocabulary: 97 of them here.
    Engine(EngineConfig(max_num_seqs=10**6))
    with pytest.raises(ConfigError, match=r"^max_num_seqs: got 100000000, but .* 36\.1 GiB, and 4"):
        Engine(EngineConfig(max_num_seqs=10**8))


@pytest.mark.parametrize("field", dataclasses.fields(SamplingParams), ids=lambda field: field.name)
def test_odd_values_of_every_sampling_parameter_are_refused_by_name(field):
    odd = [-7, 10**12 + 0.5, math.nan, b"x", object(), [object()]]
    if field.name != "json_schema":  # any object is one
        odd.append({"a": "b"})
    for value in odd if "None" in field.type else [*odd, None]:
        with pytest.raises(RequestError, match=f"^{field.name}: "):
            SamplingParams(**{field.name: value})
