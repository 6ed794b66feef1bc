"""``detinfer generate --receipt`` and ``detinfer verify``, over an engine without a model."""

import base64
import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from loopback import served_on_a_thread
from receipt_samples import KEY, engine, made_consistent
from tiny_engine import TinyEngine

from detinfer import cli
from detinfer.check.client import Client
from detinfer.engine import engine as engine_module
from detinfer.receipts import seal

PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
PEM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
VERDICT = {"match": True, "findings": [], "tokens": 1, "signed_by": None, "seconds": 0.1}


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    real = engine_module.Engine

    def made(config, runner=None):
        if runner is not None:
            return real(config, runner)
        one = engine()
        one.tokenizer.chat_template = None
        return one

    monkeypatch.setattr("detinfer.cli.generate.Engine", made)
    monkeypatch.setattr("detinfer.engine.engine.Engine", made)


@pytest.fixture
def run(capsys):
    def command(*arguments):
        status = cli.main([str(one) for one in arguments])
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())

    return command


@pytest.fixture
def receipt(run, tmp_path):
    key, path = tmp_path / "key.pem", tmp_path / "r.json"
    key.write_bytes(KEY.private_bytes(*PEM))
    done = run(
        "generate", "-p", "(hello", "--max-tokens", 30, "--temperature", 1, "--seed", 5,
        "--receipt", path, "--receipt-key", key,
    )  # fmt: skip
    assert done.status == 0
    return path


def test_a_receipt_holds(run, receipt):
    done = run("verify", receipt, "--signed-by", PUBLIC)
    assert done.status == 0
    assert done.out.startswith("holds: ")
    assert f"signed by {PUBLIC}" in done.out


def test_it_may_come_by_a_pipe_and_the_verdict_as_json(run, receipt, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(receipt.read_bytes())))
    verdict = json.loads(run("verify", "-", "--json").out)
    assert verdict["match"]
    assert verdict["findings"] == []
    assert verdict["tokens"] == len(json.loads(receipt.read_text())["answer"]["token_ids"])


def test_an_edited_one_does_not(run, receipt):
    value = json.loads(receipt.read_text())
    value["answer"]["text"] = "goodbye"
    receipt.write_text(json.dumps(value))
    done = run("verify", receipt)
    assert done.status == 1
    assert "signature: not of this content by this key" in done.out
    assert "seal: the receipt is not what its sha256 was made of" in done.out


def test_another_signer_is_refused(run, receipt):
    done = run("verify", receipt, "--signed-by", "AAAA")
    assert done.status == 1
    assert f"signature: by {PUBLIC}, expected AAAA" in done.out


@pytest.fixture
def url():
    with served_on_a_thread(TinyEngine(engine=engine()), api_keys=("k",)) as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("edit", [None, "text", "token", "part"])
@pytest.mark.parametrize("form", [(), ("--json",), ("--signed-by", "AAAA")])
def test_a_server_says_what_this_process_says(run, receipt, url, monkeypatch, edit, form):
    monkeypatch.setenv("DETINFER_API_KEY", "k")
    value = json.loads(receipt.read_text())
    if edit == "text":
        value["answer"]["text"] = "goodbye"
    elif edit == "token":
        value["answer"]["token_ids"][3] = 7
        value = seal.seal(made_consistent(seal.opened(value)), KEY)
    elif edit == "part":
        value["fingerprint"]["rope"] = "other"
        value = seal.seal(made_consistent(seal.opened(value)), KEY)
    receipt.write_text(json.dumps(value))
    told, own = run("verify", receipt, "--url", url, *form), run("verify", receipt, *form)

    def without_seconds(text):
        return re.sub(r'in [0-9.]+ s|"seconds": [0-9.]+', "", text)

    assert without_seconds(told.out) == without_seconds(own.out) != ""
    assert told.status == own.status == (1 if edit or "AAAA" in form else 0)
    assert told.err == own.err == ""


@pytest.mark.parametrize(
    ("key", "flags", "said"),
    [
        ("", (), "API key"),
        ("other", (), "set DETINFER_API_KEY"),
        ("k", ("--model", "some"), "MODEL: got it beside --url"),
        ("k", ("--url", "http://127.0.0.1:1"), "http://127.0.0.1:1: cannot be reached"),
        ("k", ("--url", "ftp://host"), "--url: got 'ftp://host'"),
    ],
)
def test_what_no_server_can_say_is_status_2(run, receipt, url, monkeypatch, key, flags, said):
    monkeypatch.setenv("DETINFER_API_KEY", key)
    done = run("verify", receipt, "--url", url, *flags)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_what_no_server_takes_is_told_before_it_is_sent(run, receipt, url):
    value = json.loads(receipt.read_text())
    value["answer"]["text"] = "x" * (4 << 20)
    receipt.write_text(json.dumps(value))
    done = run("verify", receipt, "--url", url)
    assert (done.status, done.out) == (2, "")
    assert "bytes, a server takes at most 4194304; verify it without --url" in done.err


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        VERDICT | {"findings": [{"part": "token"}]},
        VERDICT | {"match": False},
        VERDICT | {"tokens": "many"},
    ],
)
def test_an_answer_that_is_no_verdict_is_none(run, receipt, monkeypatch, answer):
    monkeypatch.setattr(Client, "post", lambda self, route, body: answer)
    done = run("verify", receipt, "--url", "http://127.0.0.1:1")
    assert (done.status, done.out) == (2, "")
    assert "not a detinfer server (/verify told no verdict)" in done.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "form: got None, expected 'detinfer-receipt-1'"),
        (b"[1]", "receipt: got list, expected an object"),
        (b'{"form":', "receipt: not JSON"),
    ],
)
def test_what_is_none_is_status_2_and_one_line(run, tmp_path, content, said):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    for flags in ((), ("--url", "http://127.0.0.1:1")):  # told before anybody is asked
        done = run("verify", path, *flags)
        assert done.status == 2
        assert said in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--receipt", "."), "--receipt: . is a folder"),
        (("--receipt", "/nowhere/r.json"), "--receipt: /nowhere/r.json cannot be written"),
        (
            ("--receipt", "r", "--receipt-key", "/nowhere/k"),
            "--receipt-key: /nowhere/k: no private",
        ),
        (("--receipt", "r", "--no-default-deterministic"), "receipt: got it for an answer that is"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_answer(run, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    done = run("generate", "-p", "(hello", *flags)
    assert done.status == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\n", "P-256"])
def test_a_key_that_cannot_sign_is_told_before_the_server_starts(run, tmp_path, content):
    path = tmp_path / "key.pem"
    if content == "P-256":
        content = ec.generate_private_key(ec.SECP256R1()).private_bytes(*PEM)
    if content is not None:
        path.write_bytes(content)
    done = run("serve", "no-such-model", "--receipt-key", path)
    assert done.status == 2
    assert done.err.startswith(f"detinfer: error: --receipt-key: {path}: ")
    assert done.err.count("\n") == 1
