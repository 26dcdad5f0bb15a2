# Conversations through chat templates, answered by transformers: tests/data/turns/cases.json. Needs transformers, no torch.
#
# A case has a template and a row, and the ids of apply_chat_template with the mask of return_assistant_tokens_mask. `tagged` is the template's twin
# with {% generation %} tags around what an assistant writes, from which the mask comes where the template itself has no tags.
import json, pathlib
from transformers import PreTrainedTokenizerFast

here = pathlib.Path(__file__).parent
tok = PreTrainedTokenizerFast.from_pretrained(here.parent / "bpe512")

HEAD = "{{ '<|im_start|>' + m.role + '\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# < and > stand for the generation tags, or for nothing.
PLAIN = "{% for m in messages %}" + HEAD + "{% if m.role == 'assistant' %}<{{ m.content + '<|im_end|>\n' }}>{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}" + ASK
# Space around the content is trimmed, BOS stands in front, EOS behind an answer.
TRIMMED = "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}<{{ m.content | trim }}{{ eos_token }}>{% else %}{{ m.content | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
# Qwen3's way: thoughts of answers before the last question are dropped; the last answer has a place for thoughts, even for none.
THOUGHTS = """{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}<
{%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}
{{- '[think]\n' + (m.reasoning_content or '') + '\n[/think]\n\n' }}
{%- endif %}
{{- (m.content or '') }}
{%- if m.tool_calls %}{{- '[call]' + (m.tool_calls | tojson) }}{%- endif %}
{{- '<|im_end|>\n' }}>
{%- else %}
{{- m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '[think]\n\n[/think]\n\n' }}{%- endif %}
{%- endif %}"""
# R1's way: the question ends with a token that begins thoughts, and the text with the answer drops thoughts. Its tag begins behind the role.
ASKS_FOR_THOUGHTS = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '[assistant]' }}<{{ m.content.split('[/think]')[-1] + eos_token }}>{% else %}{{ '[user]' + m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]<|pad|>\n' }}{% endif %}"
# The same where the token is none, so that an answer may begin as it does.
ASKS_IN_LETTERS = ASKS_FOR_THOUGHTS.replace("<|pad|>", "[think]")
# Phi's way: EOS stands behind the last message alone, whoever said it.
ENDED = PLAIN.replace(ASK, "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}")
ENDED_ANEW = THOUGHTS.replace("{%- if add_generation_prompt %}", "{%- if not add_generation_prompt %}{{- eos_token }}{%- endif %}\n{%- if add_generation_prompt %}")
TOOLS = "{% if tools %}{{ 'tools: ' + (tools | tojson) + '\n' }}{% endif %}" + PLAIN
NAMED = PLAIN.replace("m.role + '\n'", "m.role + (' ' + m.name if m.name else '') + '\n'")
PARTS = "{% for m in messages %}" + HEAD + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ '(' + p.text + ')' }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + ASK


def m(role, content, **more):
    return dict(role=role, content=content, **more)


ONE = [m("user", "Say hi"), m("assistant", "hi")]
TWO = [m("system", "Be brief."), m("user", "Say hi"), m("assistant", "hi"), m("user", "And bye"), m("assistant", " bye 😀 ")]
SAME = [m("user", "hi"), m("assistant", "hi"), m("user", "hi"), m("assistant", "hi"), m("user", "hi"), m("assistant", "hi")]
ROW = [m("user", "One"), m("assistant", "a"), m("assistant", "b"), m("user", "Two"), m("assistant", "c")]
THINKING = [m("user", "Say hi"), m("assistant", "hi", reasoning_content="They want a greeting."), m("user", "And bye"), m("assistant", "bye", reasoning_content="Now the other.")]
BRACKETS = [m("user", "Say hi"), m("assistant", "[hi]"), m("user", "And bye"), m("assistant", "[think]\nhm[/think][t]bye")]
CALL = dict(type="function", function=dict(name="wave", arguments=dict(z=1, a="é")))
CHAIN = [m("user", "Wave"), m("assistant", None, tool_calls=[CALL], reasoning_content="A tool."), m("tool", "done", tool_call_id="x", name="wave"), m("assistant", "I did.", reasoning_content="Say so."),
         m("user", "Again"), m("assistant", "Yes.")]
WAVE = dict(type="function", function=dict(name="wave", parameters=dict(type="object", properties=dict(z=dict(type="integer"), a=dict(type="string")))))
IN_PARTS = [m("user", [dict(type="text", text="Say"), dict(type="text", text=" hi")]), m("assistant", [dict(type="text", text="hi")])]

TEMPLATES = dict(plain=PLAIN, trimmed=TRIMMED, thoughts=THOUGHTS, asks=ASKS_FOR_THOUGHTS, letters=ASKS_IN_LETTERS, ended=ENDED, anew=ENDED_ANEW, tools=TOOLS, named=NAMED, parts=PARTS)
ROWS = [
    ("plain", dict(messages=ONE)), ("plain", dict(messages=TWO)), ("plain", dict(messages=SAME)), ("plain", dict(messages=ROW)),
    ("trimmed", dict(messages=ONE)), ("trimmed", dict(messages=TWO)), ("trimmed", dict(messages=SAME)),
    ("thoughts", dict(messages=ONE)), ("thoughts", dict(messages=TWO)), ("thoughts", dict(messages=SAME)), ("thoughts", dict(messages=THINKING)), ("thoughts", dict(messages=CHAIN)),
    # The question holds a part of what the answer repeats, so that prefixes find less than tags.
    ("thoughts", dict(messages=THINKING, chat_template_kwargs=dict(enable_thinking=False)), False),
    ("asks", dict(messages=ONE)), ("asks", dict(messages=TWO[1:])), ("asks", dict(messages=SAME)),
    ("asks", dict(messages=[m("user", "Say hi"), m("assistant", "[think]\nhm[/think]hi"), m("user", "And bye"), m("assistant", "<bye")])),
    ("letters", dict(messages=ONE)), ("letters", dict(messages=BRACKETS[:2])), ("letters", dict(messages=BRACKETS)),
    # Tags leave out what stands behind the last answer, and prefixes do not.
    ("ended", dict(messages=ONE), "end"), ("ended", dict(messages=TWO), "end"), ("ended", dict(messages=SAME), "end"),
    ("anew", dict(messages=TWO), "end"), ("anew", dict(messages=THINKING), "end"), ("anew", dict(messages=CHAIN), "end"),
    ("tools", dict(messages=ONE, tools=[WAVE])), ("tools", dict(messages=TWO, tools=json.dumps([WAVE]))), ("tools", dict(messages=ONE)),
    ("named", dict(messages=[m("user", "Say hi", name="Ann"), m("assistant", "hi", name=None)])),
    ("parts", dict(messages=IN_PARTS)), ("plain", dict(messages=[m("user", "x"), m("assistant", "<|im_end|>")])),
]


def variants(source):
    tags = ("{% generation %}", "{% endgeneration %}")
    # Tags in the sources above stand as a lone < and >, which occur in them nowhere else but in the names of tokens and in comparisons.
    marked = source.replace("}<{{", "}\1{{").replace("}}>{%", "}}\2{%").replace("%}<\n", "%}\1\n").replace("}}>\n", "}}\2\n")
    return marked.replace("\1", "").replace("\2", ""), marked.replace("\1", tags[0]).replace("\2", tags[1])


cases = []
for name, row, *by_prefixes in ROWS:
    plain, tagged = variants(TEMPLATES[name])
    tools = row.get("tools")
    more = dict(tools=json.loads(tools) if isinstance(tools, str) else tools, **row.get("chat_template_kwargs", {}))
    apply = lambda messages, template, **kw: tok.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True, **more, **kw)
    messages = row["messages"]
    ids = apply(messages, plain)["input_ids"]
    both = apply(messages, tagged, return_assistant_tokens_mask=True)
    assert both["input_ids"] == ids, name
    asks = apply(messages[:-1], plain, add_generation_prompt=True)["input_ids"]
    has_tags = plain != tagged
    cases.append(dict(name=name, template=plain, tagged=tagged if has_tags else None, row=row, ids=ids, asks=asks, assistant=both["assistant_masks"] if has_tags else None, by_prefixes=(by_prefixes or [True])[0]))
    shown = "".join(f"[{tok.decode([i])}]" if a else tok.decode([i]) for i, a in zip(ids, both["assistant_masks"]))
    print(name, repr(shown))
json.dump(cases, open(here / "cases.json", "w"), ensure_ascii=False, separators=(",", ":"))
