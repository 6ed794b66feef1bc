"""How families of models write calls, and which family a model is of."""

from __future__ import annotations

from typing import Any, NamedTuple

from detinfer.plain_tools import knows_tools


class Family(NamedTuple):
    """How calls are written: a mark, a JSON object or an array of them, another mark.

    Attributes:
        sign: what the chat templates of the family have.
        begin, end: the marks; the second may be missing. Where there is none it is empty.
        bare: whether calls may come without a mark, where the answer begins and after other calls.
        named: whether what follows the mark may be a name and, after ``[ARGS]``, the arguments.
        id_length: characters of a call's id; None for our own form of them.
    """

    sign: str = ""
    begin: str = ""
    end: str = ""
    bare: bool = False
    named: bool = False
    id_length: int | None = None


FAMILIES = {
    # Hermes 2 Pro, Qwen 2.5 and 3, …
    "hermes": Family("<tool_call>", "<tool_call>", "</tool_call>"),
    # Llama 3.1 and 3.2; some of its templates name the keys and not the mark.
    "llama3_json": Family('{"name": function name, "parameters": ', "<|python_tag|>", ";", True),
    # Its templates refuse ids of other lengths.
    "mistral": Family("[TOOL_CALLS]", "[TOOL_CALLS]", named=True, id_length=9),
    "json": Family(bare=True),
}


def family_of(tokenizer: Any, name: str) -> Family:
    """Return the family of that name; for ``auto`` the one whose sign the chat template has.

    A model whose template knows of no tools is told of them with Hermes' marks.
    """
    if name != "auto":
        return FAMILIES[name]
    if not knows_tools(tokenizer):
        return FAMILIES["hermes"]
    template = tokenizer.get_chat_template(tools=[])
    signed = (one for one in FAMILIES.values() if one.sign and one.sign in template)
    return next(signed, FAMILIES["json"])
