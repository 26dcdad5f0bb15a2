# Other tokenizers and chat templates, answered by transformers: tests/data/tokenizers/
import json, pathlib
from tokenizers import Regex, Tokenizer, models, trainers, pre_tokenizers, decoders, normalizers, processors
from transformers import PreTrainedTokenizerFast
out = pathlib.Path(__file__).parent
prefs = [json.loads(l) for l in open(out.parent / "prefs.jsonl")]
corpus = [v for r in prefs for v in r.values()] * 4 + ["### Instructions: a\n\n### Response: b", "café naïve 你好 世界"]
TEXTS = ["Hello world", " leading", "trailing ", "two  spaces", "line\n\nbreak", "café 你好 😀", "", "it's DON'T", "ﬁ ½ é", "a<|eos|>b", "▁meta"]
PAIRS = [("Say hi", "Hi there"), ("Say hi", " Hi there"), ("Say hi", "\nHi"), ("Say hi", ": colon"), ("Say", ":"), ("", "empty"), ("你好", "世界"), ("x ", "  y"),
         ("Say hi", "#"), ("Say hi", "\n\n### Response: again")]
WORDS = prefs[0]["i_chosen"][:60]
def pair(tok, i, r, template="### Instructions: {}\n\n### Response:"):
    p = template.replace("{}", i)
    enc = lambda t: tok(t, add_special_tokens=False)["input_ids"]
    full, pp = enc(p + r), enc(p)
    trl = len(pp) if full[:len(pp)] == pp else len(pp) - 1
    ends = [e for _, e in tok(p + r, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    n = next((k for k, e in enumerate(ends) if e > len(p)), len(full))
    bos = [tok.bos_token_id] if tok.bos_token_id is not None and full[:1] != [tok.bos_token_id] else []
    eos = [tok.eos_token_id] if tok.eos_token_id is not None and full[-1:] != [tok.eos_token_id] else []
    return dict(instruction=i, response=r, input_ids=bos + full + eos, prompt_len=n + len(bos), merged=full[:len(pp)] != pp, agree=n == trl)
LLAMA3 = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
GEMMA = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{ tools | tojson }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content.split('</think>')[-1].lstrip('\\n') }}
        {%- if message.tool_calls %}{{ message.tool_calls | tojson }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if message['role'] == 'user' %}\n        {%- if loop.first and system_message is defined %}\n            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n        {%- else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n        {%- endif %}\n    {%- elif message['role'] == 'assistant' %}\n        {{- ' ' + message['content'] + eos_token}}\n    {%- else %}\n        {{- raise_exception('Only user and assistant roles are supported!') }}\n    {%- endif %}\n{%- endfor %}\n"
CHATS = [[["user", "Hi"]], [["user", " Hi \n"], ["assistant", "Hello!"], ["user", "More"]], [["system", "Be brief."], ["user", "Hi"]],
         [["system", "S"], ["user", "Q"], ["assistant", "<think>x</think>\n\nA"], ["user", "R"]]]
def bpe():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=["<|eos|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    return t
def unigram(scheme):
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]) if scheme == "always" else None
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    t.decoder = decoders.Metaspace(prepend_scheme=scheme)
    t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "<|eos|>"], unk_token="<unk>", show_progress=False))
    return t
def sp_bpe():
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "<|eos|>"] + [f"<0x{i:02X}>" for i in range(256)], max_token_length=8, show_progress=False))
    j = json.loads(t.to_str())
    # The bytes are ordinary tokens.
    j["added_tokens"] = [a for a in j["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(j))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t
def emit(name, t, template, bos, eos="<|eos|>"):
    tok = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False)
    tok.chat_template = template
    chats = []
    for c in CHATS:
        m = [dict(role=r, content=x) for r, x in c]
        for g in (False, True):
            try: text = tok.apply_chat_template(m, tokenize=False, add_generation_prompt=g)
            except Exception as e: text = None
            chats.append(dict(messages=m, add_generation_prompt=g, text=text))
    encode = []
    for x in TEXTS:
        i = tok(x, add_special_tokens=False)["input_ids"]
        encode.append(dict(text=x, ids=i, decoded=tok.decode(i), decoded_skip_special=tok.decode(i, skip_special_tokens=True)))
    pairs = [pair(tok, i, r) for i, r in PAIRS]
    # Nothing between instruction and response, so tokens span the boundary. TRL's rule (one token back) is the offsets' rule where
    # only the last token changes; elsewhere PAPER.md's offsets decide.
    bare = [pair(tok, WORDS[:k], WORDS[k:], "{}") for k in range(1, len(WORDS))]
    print(name, "bare", len(bare), "merged", sum(p["merged"] for p in bare), "of which TRL agrees", sum(p["merged"] and p["agree"] for p in bare), "unmerged", all(p["agree"] for p in bare + pairs if not p["merged"]), "paper", all(p["agree"] for p in pairs))
    config = dict(bos_token=bos, eos_token=eos, chat_template=template)
    json.dump(dict(tokenizer=json.loads(t.to_str()), config=config, encode=encode, pairs=pairs, bare=bare, chat=chats), open(out / f"{name}.json", "w"), ensure_ascii=False, separators=(",", ":"))
    print(name, t.get_vocab_size(), "merged", sum(p["merged"] for p in pairs), "refused", sum(c["text"] is None for c in chats))
emit("gpt2-like", bpe(), LLAMA3, "<|eos|>")
emit("unigram-first", unigram("first"), GEMMA, "<s>")
emit("unigram-always", unigram("always"), MISTRAL, None)
emit("llama2-like", sp_bpe(), QWEN, "<s>")
