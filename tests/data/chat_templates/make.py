#!/usr/bin/env python3
"""Writes cases.json: texts that transformers 5.24 (Jinja2 3.1.6) makes of chat templates, or that it refuses them.

    make.py            pieces of Jinja (pieces.txt) and the templates in trl/, which are TRL's (Apache-2.0, see trl/README.md)
    make.py --all DIR  all templates that TRL ships, into DIR; then `JOINTWISE_CHAT_TEMPLATES=DIR cargo test --test data chat_templates`

Needs transformers==5.24.0, and trl==1.16.0 for --all; no torch. The clock stands at 2026-07-26 12:34:56."""
import copy, datetime, json, shutil, sys
from pathlib import Path
from unittest import mock

from transformers.utils import chat_template_utils as hf

HERE = Path(__file__).resolve().parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 7, 26, 12, 34, 56)


def say(role, content, **more):
    return {"role": role, "content": content, **more}


TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a <city> & \"more\".", "parameters": {
        "type": "object", "properties": {
            "location": {"type": "string", "description": "City, z.B. Köln", "enum": ["Köln", "Oslo"]},
            "days": {"type": "integer", "default": 3, "minimum": 0.5},
            "options": {"type": "object", "properties": {"units": {"type": ["string", "null"]}}, "additionalProperties": False},
            "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["location"]}, "return": {"type": "object"}}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = {"location": "Köln", "days": 2, "ratio": 1.0, "small": 1e-07, "exact": True, "none": None,
             "options": {"units": "°C", "a": [1, "b'c", {}, []]}, "text": "a \"b\"\n<c>"}


def call(name, arguments, id="abcdef123"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


PLAIN = [say("user", " Hi there, <b>x</b> & 'y' "), say("assistant", " Hello. \n")]
TURNS = [say("system", "Be brief."), say("user", "1+1?"), say("assistant", "2"), say("user", "And 2+2?"), say("assistant", "4")]
CALLS = [say("system", "Use tools."), say("user", "Weather?"),
         say("assistant", "", tool_calls=[call("get_weather", ARGUMENTS), call("now", {}, "ghijkl456")]),
         say("tool", "{\"temp\": 20.0}", name="get_weather", tool_call_id="abcdef123"),
         say("tool", "12:00", name="now", tool_call_id="ghijkl456"), say("assistant", "20 °C")]
THOUGHT = [say("user", "Q"), say("assistant", "A", reasoning_content="Hm, let me see.\n"), say("user", "Q2"),
           say("assistant", "A2", reasoning_content="Again.")]
CONVERSATIONS = {
    "plain": {"messages": PLAIN},
    "turns": {"messages": TURNS},
    "ask": {"messages": TURNS[:-1], "add_generation_prompt": True},
    "no_thinking": {"messages": TURNS[:-1], "add_generation_prompt": True, "kwargs": {"enable_thinking": False}},
    "thinking": {"messages": TURNS[:-1], "add_generation_prompt": True, "kwargs": {"enable_thinking": True, "reasoning_effort": "high"}},
    "calls": {"messages": CALLS, "tools": TOOLS},
    "one_call": {"messages": [CALLS[0], CALLS[1], say("assistant", None, tool_calls=[call("now", {"zone": "x"})]), CALLS[4]],
                 "tools": TOOLS[1:], "add_generation_prompt": True},
    "ask_tools": {"messages": CALLS[1:2], "tools": TOOLS, "add_generation_prompt": True},
    "thought": {"messages": THOUGHT},
    "inline_thought": {"messages": [say("user", "Q"), say("assistant", "<think>\nHm\n</think>\n\nA"), say("user", "Q2")],
                       "add_generation_prompt": True},
    "parts": {"messages": [say("user", [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]), say("assistant", [{"type": "text", "text": "ok"}])]},
    "developer": {"messages": [say("developer", "Be kind."), say("user", "Hi"), say("assistant", "ok")]},
    "two_users": {"messages": [say("user", "a"), say("user", "b"), say("assistant", "c")]},
    "assistant_first": {"messages": [say("assistant", "c"), say("user", "a")]},
    "late_system": {"messages": [say("user", "a"), say("system", "s"), say("assistant", "c")]},
    "nobody": {"messages": [say("stranger", "a")]},
}
# What the pieces of Jinja see beside `messages`.
PIECES = {"messages": CALLS + THOUGHT[1:2], "tools": TOOLS, "kwargs": {"a": {"z": 1, "b": [True, None, 1.0, "x'y", "é"], "c": {}}, "text": "Ab c", "zero": 0}}


def transformers_text(template, case):
    case = copy.deepcopy(case)
    messages = hf._normalize_chat_messages(case["messages"])
    kwargs = {**TOKENS, **case.get("kwargs", {})}
    try:
        with mock.patch.object(hf, "datetime", Clock):
            texts, _ = hf.render_jinja_template([messages], tools=case.get("tools"), chat_template=template,
                                                add_generation_prompt=case.get("add_generation_prompt", False), **kwargs)
        return {"text": texts[0]}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def spans(template, case):
    """Byte ranges of the texts within {% generation %}, as transformers counts them; None where it would count them wrongly."""
    kwargs = {**TOKENS, **case.get("kwargs", {})}
    messages = hf._alias_reasoning_fields(hf._normalize_chat_messages(copy.deepcopy(case["messages"])))
    try:
        with mock.patch.object(hf, "datetime", Clock):
            text, found = hf._render_with_assistant_indices(hf._compile_jinja_template(template), messages, case.get("tools"), None,
                                                            case.get("add_generation_prompt", False), **kwargs)
    except Exception:
        return None
    return [[len(text[:a].encode()), len(text[:b].encode())] for a, b in found]


def main():
    everything = len(sys.argv) > 1 and sys.argv[1] == "--all"
    out = Path(sys.argv[2]) if everything else HERE
    if everything:
        import trl
        (out / "trl").mkdir(parents=True, exist_ok=True)
        for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
            shutil.copy(path, out / "trl" / path.name)
    found = {"conversations": CONVERSATIONS, "piece": PIECES, "pieces": [], "templates": []}
    for piece in (HERE / "pieces.txt").read_text().split("\n"):
        if piece and not piece.startswith("##"):
            source = json.loads(f'"{piece[1:]}"') if piece.startswith("!") else piece
            found["pieces"].append({"jinja": source, **transformers_text(source, PIECES)})
    for path in sorted((out / "trl").glob("*.jinja")):
        template = path.read_bytes().decode()
        for name, case in CONVERSATIONS.items():
            got = {"template": path.name, "conversation": name, **transformers_text(template, case)}
            if "generation %}" in template and "text" in got and (marks := spans(template, case)) is not None:
                got["assistant"] = marks
            found["templates"].append(got)
    lines = lambda rows: "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"
    (out / "cases.json").write_text('{\n"conversations": ' + json.dumps(CONVERSATIONS, ensure_ascii=False) + ',\n"piece": ' + json.dumps(PIECES, ensure_ascii=False)
                                    + ',\n"pieces": ' + lines(found["pieces"]) + ',\n"templates": ' + lines(found["templates"]) + "\n}\n")
    refused = sum("error" in t for t in found["templates"])
    print(f"{len(found['pieces'])} pieces; {len(found['templates'])} texts of {len(list((out / 'trl').glob('*.jinja')))} templates, {refused} refused")


main()
