from __future__ import annotations

import pytest
from fake_engine import INFO, FakeEngine
from streams import events

from detinfer.server.api.sglang.body import SGLangRequest, SGLangSampling

PROOF = {"deterministic": True, "seed": None, "system_fingerprint": INFO.system_fingerprint}


def _body(**fields: object) -> dict:
    return {"text": "ab", "sampling_params": {"max_new_tokens": 3, "temperature": 0.0}} | fields


def test_answer_is_sglangs_with_our_proof_in_meta_info(client):
    response = client.generate(_body())
    answer = response.json()
    meta = answer["meta_info"]
    assert meta.pop("id").startswith("gen-")
    assert meta.pop("digest") == response.headers["x-detinfer-digest"]
    assert answer == {
        "text": "opq",
        "output_ids": [111, 112, 113],
        "meta_info": {
            "finish_reason": {"type": "length", "length": 3},
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "cached_tokens": 0,
            **PROOF,
        },
    }
    ours = client.generate({"prompt": "ab", "max_tokens": 3}).json()
    assert response.headers["x-detinfer-digest"] == ours["digest"]


def test_events_have_the_text_so_far(client):
    values = events(client.generate(_body(stream=True)).text)
    assert [value["text"] for value in values] == ["o", "op", "opq"]
    assert [value["output_ids"] for value in values] == [[111], [111, 112], [111, 112, 113]]
    metas = [value["meta_info"] for value in values]
    assert [meta["completion_tokens"] for meta in metas] == [1, 2, 3]
    assert [meta["finish_reason"] for meta in metas] == [
        None,
        None,
        {"type": "length", "length": 3},
    ]
    assert ["digest" in meta for meta in metas] == [False, False, True]
    whole = client.generate(_body()).json()["meta_info"]
    assert metas[-1] | {"id": ""} == whole | {"id": ""}


@pytest.mark.parametrize(
    ("script", "sampling", "text", "matched"),
    [
        ("ok\0", {}, "ok", 0),
        ("né STOP", {"stop": ["xx", "STOP", "OP"]}, "né ", "STOP"),
    ],
)
def test_what_ended_an_answer_is_named(make_client, script, sampling, text, matched):
    answer = make_client(FakeEngine(script=script.encode())).generate(
        {"text": "a", "sampling_params": {"max_new_tokens": 20} | sampling}
    )
    assert answer.json()["text"] == text
    assert answer.json()["meta_info"]["finish_reason"] == {"type": "stop", "matched": matched}


@pytest.mark.parametrize("prompts", [{"text": ["a", "b"]}, {"input_ids": [[97], [98]]}])
def test_lists_of_prompts_give_lists_of_answers(client, prompts):
    body = {**prompts, "sampling_params": {"max_new_tokens": 2}}
    assert [answer["text"] for answer in client.generate(body).json()] == ["uv", "vw"]
    last = {
        value["index"]: value for value in events(client.generate(body | {"stream": True}).text)
    }
    assert [last[index]["text"] for index in range(2)] == ["uv", "vw"]


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"text": "a", "rid": "x"}, ["x"]),
        ({"text": ["a", "b"], "rid": "x"}, ["x_0", "x_1"]),
        ({"text": ["a", "b"], "rid": ["x", "y"]}, ["x", "y"]),
        ({"text": ["a"], "rid": ["x"], "sampling_params": {"n": 2}}, ["x_0", "x_1"]),
    ],
)
def test_rid_is_the_answers_id_and_may_be_used_again(client, fields, ids):
    for _ in range(2):
        answers = client.generate(fields).json()
        answers = answers if isinstance(answers, list) else [answers]
        assert [answer["meta_info"]["id"] for answer in answers] == ids


def test_logprobs_are_sglangs_triples(client):
    body = _body(return_logprob=True, logprob_start_len=0, top_logprobs_num=1)
    meta = client.generate(body | {"return_text_in_logprobs": True}).json()["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 97, "a"], [-0.5, 98, "b"]]
    assert meta["input_top_logprobs"] == [None, [[-0.5, 98, "b"]]]
    assert meta["output_token_logprobs"] == [[-0.5, 111 + i, "opq"[i]] for i in range(3)]
    assert meta["output_top_logprobs"] == [[[-0.5, 111 + i, "opq"[i]]] for i in range(3)]
    assert events(client.generate(body | {"stream": True}).text)[-1]["meta_info"][
        "output_token_logprobs"
    ] == [[-0.5, 111 + i, None] for i in range(3)]
    for start, ids in [(-1, []), (0, [97, 98]), (1, [98]), (2, []), (9, []), (None, [])]:
        meta = client.generate(_body(return_logprob=True, logprob_start_len=start)).json()[
            "meta_info"
        ]
        assert [one[1] for one in meta["input_token_logprobs"]] == ids
        assert [one[0] is None for one in meta["input_token_logprobs"]] == [
            one == 97 for one in ids
        ]
        assert "output_top_logprobs" not in meta


@pytest.mark.parametrize("stream", [False, True])
def test_no_new_tokens_only_reads_the_prompt(client, stream):
    body = _body(sampling_params={"max_new_tokens": 0}, return_logprob=True, stream=stream)
    response = client.generate(body)
    answer = events(response.text)[-1] if stream else response.json()
    assert (answer["text"], answer["output_ids"]) == ("", [])
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 0}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (2, 0)
    assert meta["input_token_logprobs"] == [[None, 97, None], [-0.5, 98, None]]
    assert meta["output_token_logprobs"] == []


# Every field of SGLang 0.5.23's GenerateReqInput and SamplingParams that a client can send, at the
# value it has there unless given.
DEFAULTS = {
    "rid": None, "session_id": None, "input_ids": None, "input_embeds": None, "image_data": None,
    "video_data": None, "audio_data": None, "mm_hashes": None, "mm_content_hashes": None,
    "use_audio_in_video": False, "video_config": None, "watermark": None, "return_logprob": None,
    "logprob_start_len": None, "top_logprobs_num": None, "token_ids_logprob": None,
    "return_sampling_mask": None, "sampling_logprobs_mode": None, "return_text_in_logprobs": False,
    "return_flat_raw_top_logprobs": False, "return_flat_raw_output_top_logprobs": False,
    "return_flat_raw_top_logprobs_b64": False, "stream": False, "log_metrics": True,
    "return_hidden_states": False, "return_routed_experts": False, "routed_experts_start_len": 0,
    "return_indexer_topk": False, "modalities": None, "session_params": None, "lora_path": None,
    "lora_id": None, "custom_logit_processor": None, "positional_embed_overrides": None,
    "bootstrap_host": None, "bootstrap_port": None, "bootstrap_room": None,
    "bootstrap_pair_key": None, "decode_tp_size": None, "routed_dp_rank": None,
    "data_parallel_rank": None, "disagg_prefill_dp_rank": None, "routing_key": None,
    "conversation_id": None, "http_worker_ipc": None, "background": False,
    "require_reasoning": False, "max_thinking_tokens": None, "priority": None, "extra_key": None,
    "no_logs": False, "custom_labels": None, "return_bytes": False, "return_entropy": False,
    "return_prompt_token_ids": False, "external_trace_header": None, "received_time": None,
    "need_wait_for_mm_inputs": None, "num_items_assigned": None, "encoder_urls": None,
    "max_dynamic_patch": None, "min_dynamic_patch": None, "image_max_dynamic_patch": None,
    "video_max_dynamic_patch": None, "images_config": None, "mm_processor_kwargs": None,
    "multi_item_delimiter_indices": None, "token_indices_to_pool": None, "cache_salt": None,
    "kv_hints": None,
}  # fmt: skip
SAMPLING_DEFAULTS = {
    "stop": None, "stop_token_ids": None, "stop_regex": None, "top_p": 1.0, "top_k": -1,
    "min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0,
    "min_new_tokens": 0, "n": 1, "beam_width": None, "json_schema": None, "regex": None,
    "ebnf": None, "structural_tag": None, "ignore_eos": False, "skip_special_tokens": True,
    "spaces_between_special_tokens": True, "no_stop_trim": False, "stream_interval": None,
    "logit_bias": None, "sampling_seed": None, "custom_params": None, "watermark": None,
    "max_new_tokens": 3, "temperature": 0.0,
}  # fmt: skip


def test_every_field_is_known_and_its_default_changes_nothing(client):
    ours = {"deterministic", "receipt"}
    assert SGLangRequest.model_fields.keys() - ours == {"text", "sampling_params", *DEFAULTS}
    extra = {"best_of", "deterministic"}
    assert SGLangSampling.model_fields.keys() - extra == SAMPLING_DEFAULTS.keys()

    def answer(body: dict) -> dict:
        response = client.generate(body)
        assert response.status_code == 200, response.text
        value = response.json()
        value["meta_info"].pop("id")
        return value

    plain = answer(_body())
    assert answer({"text": "ab", "sampling_params": SAMPLING_DEFAULTS, **DEFAULTS}) == plain
    nulls = dict.fromkeys(SAMPLING_DEFAULTS) | {"max_new_tokens": 3}
    assert answer({"text": "ab", "sampling_params": nulls, **dict.fromkeys(DEFAULTS)}) == plain
    empty = {"custom_labels": {}, "session_params": {}, "lora_path": "", "image_data": []}
    assert answer(_body(**empty, session_id="s", no_logs=True)) == plain


# What a client may set.
BUILT = {
    "text", "input_ids", "sampling_params", "deterministic", "receipt", "stream", "rid",
    "return_logprob",
    "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs", "session_id",
    "conversation_id", "routing_key", "no_logs", "log_metrics", "cache_salt", "extra_key",
    "return_prompt_token_ids",
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(SGLangRequest.model_fields.keys() - BUILT))
def test_what_is_not_built_is_refused_by_name(client, field):
    for value in (True, "x", 3, [1], {"a": 1}):
        response = client.generate(_body(**{field: value}))
        assert response.status_code == 400, value
        error = response.json()["error"]
        assert error["param"] == field
        assert "not supported yet" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"log_metrics": False}, "log_metrics", "got false, not supported yet, expected true"),
        ({"sampling_params": {"regex": 1}}, "sampling_params.regex", "got 1, expected a string"),
        ({"sampling_params": {"json_schema": 1}}, "sampling_params.json_schema", "got 1, expected"),
        ({"sampling_params": {"beam_width": 2}}, "sampling_params.beam_width", "not supported"),
        ({"cache_salt": ""}, "cache_salt", "expected 1 to 128 characters"),
        ({"extra_key": "x" * 129}, "extra_key", "expected 1 to 128 characters"),
        ({"sampling_params": [{}]}, "sampling_params", "got a list, expected an object"),
        ({"logprob_start_len": -2}, "logprob_start_len", "got -2, expected an integer in -1.."),
        ({"logprob_start_len": 1 << 21}, "logprob_start_len", "expected an integer in -1..1048576"),
        ({"top_logprobs_num": 21}, "top_logprobs_num", "got 21, expected an integer in 0..20"),
        (
            {"return_logprob": True, "top_logprobs_num": 21},
            "top_logprobs_num",
            "got 21, expected an integer in 0..20",
        ),
        ({"rid": ["x", "y"]}, "rid", "got 2 ids for 1 prompts"),
        ({"rid": 5}, "rid", "got 5, expected a string or a list of strings"),
        ({"input_ids": [97]}, "input_ids", "got it beside text"),
        ({"text": None}, "text", "missing, expected text or input_ids"),
        ({"txt": "a"}, "txt", "unknown field, did you mean text?"),
    ],
)
def test_bad_fields_are_a_400_that_names_them(client, fields, param, message):
    response = client.generate(_body(**fields))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_salts_of_the_clients_choosing_part_what_prompts_share(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    for salts in (
        {},
        {"cache_salt": "x"},
        {"extra_key": "y"},
        {"cache_salt": "x", "extra_key": "y"},
    ):
        assert client.generate(_body(**salts)).is_success
    assert len(set(engine.salts)) == 4


def test_texts_may_keep_what_ended_them_and_answers_show_the_prompts_ids(make_client):
    client = make_client(FakeEngine(script=b"ok\x01 STOP"))
    sampling = {"max_new_tokens": 20, "stop": "STOP"}
    for asked, text in [
        ({}, "ok "),
        ({"no_stop_trim": True}, "ok STOP"),
        ({"skip_special_tokens": False}, "ok<|im_start|> "),
    ]:
        body = {"text": "a", "sampling_params": sampling | asked, "return_prompt_token_ids": True}
        answer = client.generate(body).json()
        assert (answer["text"], answer["prompt_token_ids"]) == (text, [97])
        parameters = {"max_new_tokens": 20, "stop": ["STOP"], "details": True}
        if "no_stop_trim" in asked:
            continue
        theirs = client.generate({"inputs": "a", "parameters": parameters | asked}).json()
        assert theirs["generated_text"] == text
        tokens = theirs["details"]["tokens"]
        if not asked:
            tokens = [token for token in tokens if not token["special"]]
        assert "".join(token["text"] for token in tokens) == text


def test_failure_in_mid_stream_is_an_event(make_client):
    client = make_client(FakeEngine(fail_after=1))
    values = events(client.generate(_body(stream=True)).text)
    assert values[-1]["error"]["code"] == "generation_failed"


def test_model_and_server_say_what_they_are(client):
    for path in ("/get_model_info", "/model_info"):
        info = client.get(path).json()
        assert (info["model_path"], info["is_generation"]) == ("fake-model", True)
        assert info["weight_version"] == INFO.fingerprint["weights"]
    assert client.get("/get_server_info").json() == client.get("/server_info").json()


def test_health_generates_a_token_unless_others_are_served(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    assert client.get("/health_generate").status_code == 200
    assert [params.max_tokens for params in engine.seen] == [1]
    client.app.state.service.active = 1
    assert client.get("/health_generate").status_code == 200
    assert len(engine.seen) == 1
    assert make_client(FakeEngine(fail_after=0)).get("/health_generate").status_code == 500
    assert make_client(loading=True).get("/health_generate").status_code == 503


def test_flush_makes_later_prompts_of_the_same_key_start_cold(make_client):
    engine = FakeEngine()
    client = make_client(engine, api_keys=("one", "two"))

    def salt(key: str) -> str:
        client.generate(_body(), headers={"authorization": f"Bearer {key}"})
        return engine.salts[-1]

    before = {key: salt(key) for key in ("one", "two")}
    flushed = client.request("POST", "/flush_cache", headers={"authorization": "Bearer one"})
    assert flushed.status_code == 200
    assert salt("two") == before["two"]
    assert salt("one") == salt("one") not in before.values()
