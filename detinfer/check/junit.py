"""The JUnit report: what CI systems read, a test case a prompt and mode."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from detinfer.check.mode_result import ModeResult
from detinfer.check.prompt_result import PromptResult
from detinfer.check.result import CheckResult

# XML 1.0 has no way to write these, and answers may have any of them.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(result: CheckResult) -> str:
    """Return the report; modes beside the one that is judged have no failures."""
    root = ElementTree.Element("testsuites", name="detinfer check")
    for mode in result.by_mode.values():
        judged = mode is result.judged
        failures = sum(bool(prompt.divergent_runs) for prompt in mode.prompts) if judged else 0
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=mode.mode,
            tests=str(len(mode.prompts)),
            failures=str(failures),
            errors="0",
            time=f"{mode.seconds:.3f}",
        )
        facts = {
            "source": result.source,
            "system_fingerprint": result.fingerprint,
            "seed": str(result.seed),
            "loads": str(mode.loads),
        }
        for family, counts in mode.by_family(result.families).items():
            facts[f"family {family.name} runs"] = str(counts.runs)
            facts[f"family {family.name} unique digests"] = str(counts.unique_digests)
        for line in result.told():
            name, told = line.split(": ", 1)
            facts[name] = told
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in facts.items():
            ElementTree.SubElement(properties, "property", name=name, value=_written(value))
        for prompt in mode.prompts:
            suite.append(_case(result, mode, prompt, judged))
    ElementTree.indent(root)
    declaration = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return declaration + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(
    result: CheckResult, mode: ModeResult, prompt: PromptResult, judged: bool
) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=f"detinfer.check.{mode.mode}",
        name=_written(f"{result.noun} {prompt.number + 1}: {prompt.target.label}"),
        time=f"{mode.seconds * len(prompt.runs) / max(1, mode.runs):.3f}",  # its share of runs
    )
    told = (
        f"{len(prompt.runs)} runs, {prompt.unique_outputs} unique outputs, "
        f"{prompt.unique_digests} unique digests"
    )
    first = prompt.first_divergence
    if judged and first is not None:
        message = f"{prompt.divergent_runs} of {told}; run {first.run + 1}: {first.what}"
        failure = ElementTree.SubElement(case, "failure", message=_written(message))
        failure.text = _written(f"alone:       {first.expected.text!r}\n")
        failure.text += _written(f"in the load: {first.got.text!r}\n")
        shrunk = result.shrunk
        if shrunk is not None and first is result.first_divergence:
            failure.text += _written(f"it takes {' and '.join(shrunk.families)}\n")
            lines = () if shrunk.parting is None else shrunk.parting.lines
            failure.text += _written("".join(f"{line}\n" for line in lines))
    ElementTree.SubElement(case, "system-out").text = told
    return case


def _written(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)
