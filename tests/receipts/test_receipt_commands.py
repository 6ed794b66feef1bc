"""``detinfer generate --receipt`` and ``detinfer verify``, over an engine without a model."""

import base64
import io
import json
import sys
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from test_receipts import engine

from detinfer import cli
from detinfer.engine import engine as engine_module

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


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
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
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
    done = run("verify", path)
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
