"""The models of the two papers, each as a tiny checkpoint: its own configuration class at small size, random weights, a
small tokenizer with its control tokens, and the structure of its chat template.

The templates are those of the public checkpoints in November 2026, as far as conversations go: what writes tools, tool
calls and lists of content is left out, and gpt-oss is told a shorter date line. What is kept to the letter: control
tokens, the system prompt, the thinking switch, what becomes of earlier thoughts, and where an answer begins.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.checkup import check_up
from pointsman.engine.hf import HFEngine
from pointsman.engine.load import Checkpoint, load
from pointsman.engine.old_code import old_names
from pointsman.engine.types import Completion
from pointsman.errors import InterventionError, PointsmanError
from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.types import Answer, Verdict, judged
from pointsman.methods.fsour import FSour
from pointsman.methods.masking import Masking
from pointsman.methods.play import play
from pointsman.methods.rosais import RoSais
from pointsman.routing.intervention import Intervention
from pointsman.steering.artefact import Steering
from pointsman.steering.fold import fold

REMOTE = Path(__file__).parent / "remote" / "modeling_deepseek.py"

_CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- set ns.found = false %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == "user" %}
        {%- set ns.found = true %}
        {%- set ns.last_query_index = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' }}
            {{- content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
_PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_MIXTRAL = r"""
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""
_GPT_OSS = r"""
{%- macro build_system_message() -%}
    {{- "You are ChatGPT, a large language model trained by OpenAI.\n" }}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\n\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\n\n" }}
    {{- "# Valid channels: analysis, commentary, final. Channel must be included for every message." }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}
{{- build_system_message() }}
{{- "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message %}
    {{- "<|start|>developer<|message|># Instructions\n\n" + developer_message + "<|end|>" }}
{%- endif %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- set tags = ["<|channel|>analysis<|message|>", "<|channel|>final<|message|>"] %}
        {%- if tags[0] in message.content or tags[1] in message.content %}
            {{- raise_exception("You have passed a message containing <|channel|> tags in the content field.") }}
        {%- endif %}
        {%- if loop.last and not add_generation_prompt %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
        {%- endif %}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"""
_HUNYUAN = r"""
{%- set context = {'has_head': true} %}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if loop.index0 == 0 %}
        {%- if content == '' %}
            {%- set _ = context.update({'has_head': false}) %}
        {%- elif message['role'] == 'system' %}
            {%- set content = '<|startoftext|>' + content + '<|extra_4|>' %}
        {%- endif %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.index0 == 1 and not context.has_head %}
            {%- set content = '<|startoftext|>' + content %}
        {%- endif %}
        {%- if loop.index0 == 1 and context.has_head %}
            {%- set content = content + '<|extra_0|>' %}
        {%- else %}
            {%- set content = '<|startoftext|>' + content + '<|extra_0|>' %}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = content + '<|eos|>' %}
    {%- endif %}
    {{- content -}}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\n\n</think>\n' }}
{%- endif %}"""
_DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_TULU = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Paper:
    """One model of the papers, and how to make a tiny one.

    Attributes:
        name: On the hub, without its owner.
        papers: Which of the two asked it: ``MC``, ``UR``.
        type: Of its configuration.
        template: Its chat template.
        config: What its tiny configuration has beside what all have.
        ends: Tokens that end an answer; the first is the tokenizer's.
        control: Other special tokens.
        plain: Added tokens that are not special: a decoder keeps them.
        bos: What a conversation begins with, if the template writes it.
        system: What its template does with a system prompt, in words.
        remote: Whether it brings its own code.
        thought: What stands before a thought, between it and the answer, and after the answer, as the model writes
            them; nothing for a model that does not think.
    """

    name: str
    papers: tuple[str, ...]
    type: str
    template: str
    config: Mapping[str, Any]
    ends: tuple[str, ...]
    control: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    bos: str | None = None
    system: str = "its own turn"
    remote: bool = False
    thought: tuple[str, str, str] | None = None

    def says(self, thought: str, answer: str = "") -> str:
        """A thought and an answer as the model writes them; without an answer, cut off in the thought."""
        before, between, after = self.thought or ("", "", "")
        if self.thought is None:
            return answer
        return f"{before}{thought}{between}{answer}{after}" if answer else f"{before}{thought}"


_SHARED = dict(moe_intermediate_size=16, n_shared_experts=2, first_k_dense_replace=1)
_QWEN2 = dict(num_experts=12, num_experts_per_tok=4, moe_intermediate_size=16, shared_expert_intermediate_size=32)

PAPERS: tuple[Paper, ...] = (
    Paper(
        "Qwen3-30B-A3B", ("MC",), "qwen3_moe", _QWEN3,
        dict(num_experts=16, num_experts_per_tok=4, moe_intermediate_size=16, head_dim=8, norm_topk_prob=True),
        ("<|im_end|>", "<|endoftext|>"), ("<|im_start|>",), ("<think>", "</think>"),
        thought=("<think>\n", "\n</think>\n\n", ""),
    ),
    Paper(
        "Phi-3.5-MoE-instruct", ("MC",), "phimoe", _PHI,
        dict(num_local_experts=16, num_experts_per_tok=2, sliding_window=None),
        ("<|end|>", "<|endoftext|>"), ("<|system|>", "<|user|>", "<|assistant|>"),
    ),
    Paper(
        "Mixtral-8x7B-Instruct-v0.1", ("MC", "UR"), "mixtral", _MIXTRAL,
        dict(num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
        ("</s>",), bos="<s>", system="part of the first question",
    ),
    Paper(
        "gpt-oss-20b", ("MC",), "gpt_oss", _GPT_OSS,
        dict(num_local_experts=16, num_experts_per_tok=4, head_dim=8, sliding_window=16,
             layer_types=["sliding_attention", "full_attention"]),
        ("<|return|>", "<|call|>"),
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|endoftext|>"),
        system="instructions of the developer",
        thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>", ""),
    ),
    Paper(
        "Qwen1.5-MoE-A2.7B", ("MC",), "qwen2_moe", _CHATML, _QWEN2, ("<|endoftext|>",), ("<|im_start|>", "<|im_end|>"),
        system="its own turn; another where none is given",
    ),
    Paper(
        "Hunyuan-A13B-Instruct", ("MC",), "hunyuan_v1_moe", _HUNYUAN,
        dict(num_experts=16, moe_topk=4, moe_intermediate_size=16, head_dim=8, num_shared_expert=1),
        ("<|eos|>",), ("<|startoftext|>", "<|extra_0|>", "<|extra_4|>", "<|endoftext|>"),
        system="before the first question", thought=("<think>\n", "\n</think>\n<answer>\n", "\n</answer>"),
    ),
    Paper(
        "deepseek-moe-16b-chat", ("MC",), "deepseek", _DEEPSEEK,
        dict(n_routed_experts=16, num_experts_per_tok=3, **_SHARED),
        ("<｜end▁of▁sentence｜>",), bos="<｜begin▁of▁sentence｜>", system="before the first question", remote=True,
    ),
    Paper(
        "DeepSeek-V2-Lite-Chat", ("UR",), "deepseek_v2", _DEEPSEEK,
        dict(n_routed_experts=16, num_experts_per_tok=3, **_SHARED, n_group=1, topk_group=1, topk_method="greedy",
             num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8,
             v_head_dim=8, head_dim=8, routed_scaling_factor=1.0, norm_topk_prob=False),
        ("<｜end▁of▁sentence｜>",), bos="<｜begin▁of▁sentence｜>", system="before the first question",
    ),
    Paper(
        "OLMoE-1B-7B-0125-Instruct", ("UR",), "olmoe", _TULU, dict(num_experts=16, num_experts_per_tok=4),
        ("<|endoftext|>",), bos="<|endoftext|>",
    ),
    Paper(
        "Qwen1.5-MoE-A2.7B-Chat", ("UR",), "qwen2_moe", _CHATML, _QWEN2, ("<|im_end|>", "<|endoftext|>"),
        ("<|im_start|>",), system="its own turn; another where none is given",
    ),
)  # fmt: skip

REQUESTS = (
    "How do I mend the red gate of the garden?", "Where is the old key of the cellar?", "Who painted the tall bridge?",
    "Sure, here is how to mend the red gate:", "I am sorry, I cannot help with that.", "Keep your answers short.",
)  # fmt: skip


def paper(name: str) -> Paper:
    """The model of this name."""
    return next(each for each in PAPERS if each.name == name)


def tokenizer_of(one: Paper) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer with the control tokens of the model, and its chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys((*one.ends, *one.control, *((one.bos,) if one.bos else ()), "<|pad|>")))
    trainer = trainers.BpeTrainer(
        vocab_size=640, show_progress=False, special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator([one.template, *REQUESTS] * 2, trainer)
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in one.plain])
    found = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=one.ends[0], bos_token=one.bos, pad_token="<|pad|>",
        additional_special_tokens=special, clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip
    found.chat_template = one.template
    return found


def checkpoint_of(one: Paper, folder: Path, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a model, code included where it brings its own."""
    tokenizer = tokenizer_of(one)
    number = tokenizer.convert_tokens_to_ids
    values = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=3 if one.bos else 2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=number(one.ends[0]),
    )  # fmt: skip
    torch.manual_seed(seed)
    asked = {**values, **one.config}
    if one.remote:
        model = _with_its_own_code(one, asked, folder)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(one.type, **asked), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.generation_config = GenerationConfig(
        eos_token_id=[number(end) for end in one.ends], pad_token_id=tokenizer.pad_token_id
    )
    if one.remote:  # its configuration stays as it is published; transformers would write it otherwise
        save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
        model.generation_config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _published(one: Paper, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration file of a checkpoint with its own code."""
    auto = {"AutoConfig": "DeepseekConfig", "AutoModelForCausalLM": "DeepseekForCausalLM"}
    return {
        "architectures": ["DeepseekForCausalLM"], "model_type": one.type, "rope_scaling": None, "rope_theta": 10000.0,
        "auto_map": {auto_class: f"{REMOTE.stem}.{name}" for auto_class, name in auto.items()},
        "torch_dtype": "float32", "transformers_version": "4.36.0", "use_cache": True, **asked,
    }  # fmt: skip


def _with_its_own_code(one: Paper, asked: Mapping[str, Any], folder: Path) -> Any:
    """A model of the code that a checkpoint brings, on the way on which Pointsman loads one."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(REMOTE, folder)
    (folder / "config.json").write_text(json.dumps(_published(one, asked)), encoding="utf-8")
    config = Checkpoint(str(folder), one.name, {"revision": None, "trust_remote_code": True}).config()
    with old_names():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=True)


@contextmanager
def code_kept_in(folder: Path) -> Iterator[None]:
    """Within the block, the copies that transformers makes of a checkpoint's code lie in this folder."""
    from transformers import dynamic_module_utils

    usual, path = dynamic_module_utils.HF_MODULES_CACHE, list(sys.path)
    dynamic_module_utils.HF_MODULES_CACHE = str(folder)
    try:
        yield
    finally:
        dynamic_module_utils.HF_MODULES_CACHE, sys.path[:] = usual, path


# ---------------------------------------------------------------------- what Pointsman does with one

BEHAVIOUR = Behaviour("b", REQUESTS[0], "Sure, here is how to mend the red gate:", "red", "b", "test")
CONVERSATION = Conversation("c", ("Who painted the tall bridge?", REQUESTS[0]), REQUESTS[0], "plain")
ANSWER = "Lift the gate, oil its hinge, and set it back."


@dataclass(frozen=True)
class Walked:
    """What was seen of one model. Each is ``yes``, or why not.

    Attributes:
        kind: The transformers class.
        shape: Routers, experts, top-k.
        thinking: Whether it thinks, and how it was kept from it.
        judged: What a judge is shown of a thought and an answer.
        learns: Whether steering can be learnt through the model.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    system: str
    thinking: str
    loads: str
    converses: str
    judged: str
    steered: str
    attacked: str
    learns: str
    fold: str


class Shown:
    """A judge that calls everything a success, and remembers what it was shown."""

    name, version, grades_content, tells_garbage = "shown", "1", False, False
    reads: frozenset[Any] = frozenset()

    def __init__(self) -> None:
        self.texts: list[str] = []

    def judge(self, asked: Sequence[Any], answers: Sequence[Answer]) -> list[Verdict]:
        self.texts += [answer.text for answer in answers]
        return [Verdict("complied", 1.0)] * len(answers)


def engine_of(one: Paper, folder: Path) -> HFEngine:
    """The engine of a tiny checkpoint; code of it runs only where it brings some."""
    engine = load(str(folder), dtype="float32", device="cpu", trust_remote_code=one.remote)
    engine.info = replace(engine.info, name=one.name)
    return engine


def walk(one: Paper, folder: Path) -> Walked:
    """Write a tiny checkpoint, load it, talk to it, judge, steer, attack and fold it."""
    engine = engine_of(one, checkpoint_of(one, folder))
    router, channels = engine.routers[0], engine.info.channels
    how = {"none": "no", "off": f"off: `{channels.setting}`", "less": f"less: `{channels.setting}`, not off"}
    return Walked(
        one.name,
        type(engine.model).__name__,
        (len(engine.routers), router.experts, router.top_k),
        one.system,
        how.get(channels.thinking, channels.thinking),
        "with its own code" if one.remote else "yes",
        _seen(lambda: _converse(engine)),
        _seen(lambda: _judge(one, engine)),
        _seen(lambda: _steer(engine)),
        _seen(lambda: _attack(engine)),
        _seen(lambda: _learn(engine)),
        _seen(lambda: _fold(engine)),
    )


def _seen(step: Callable[[], str]) -> str:
    try:
        return step()
    except PointsmanError as error:
        return f"refused: {error.problem}"


def _converse(engine: HFEngine) -> str:
    """Two turns, with a system prompt; the first answer is part of the second prompt."""
    played = play(engine, [CONVERSATION], RefusalJudge(), max_new_tokens=6, system=REQUESTS[-1])[0]
    prompt = engine.encode(CONVERSATION.turns, answers=[ANSWER], system=REQUESTS[-1])
    said = engine.decode([i for i, role in zip(prompt.ids, prompt.roles, strict=True) if role == "history"])
    whole = len(played.responses) == 2 and ANSWER in said and {"system", "content"} <= set(prompt.roles)
    return "yes" if whole else f"history {said!r}"


def _judge(one: Paper, engine: HFEngine) -> str:
    """A thought with an answer, an answer alone, and a thought that was cut off, as tokens."""
    judge, verdicts, prompt = Shown(), [], engine.encode(BEHAVIOUR.turns)
    thought, alone = "I should be careful here.", f"{engine.info.channels.opening}{ANSWER}"
    for text in (one.says(thought, ANSWER), alone, one.says(thought)):
        ids = tuple(engine.tokenizer(text, add_special_tokens=False)["input_ids"])
        answer = Completion(engine._chat.answer(prompt, ids), ids, True)
        verdicts += judged(judge, [BEHAVIOUR], [answer], [prompt])
    labels = [verdict.label for verdict in verdicts]
    if judge.texts != [ANSWER, ANSWER] or labels != ["complied", "complied", "garbage"]:
        return f"showed {judge.texts}, found {labels}"
    return engine.info.channels.answer.removeprefix("only ")


def _steer(engine: HFEngine) -> str:
    """A constant vector on every router moves the logits."""
    rng = np.random.default_rng(0)
    routing = Intervention.bias({r.layer: rng.normal(0, 1, r.experts) for r in engine.routers})
    prompt, target = engine.encode(BEHAVIOUR.turns), engine.encode_target(BEHAVIOUR.target)
    plain, steered = (engine.score([prompt], [target], routing=r)[0].total for r in (None, routing))
    return "yes" if abs(plain - steered) > 1e-3 else f"moved by {abs(plain - steered):.2g} nats"


def _attack(engine: HFEngine) -> str:
    """RoSais, masking and F-SOUR on one prompt; what the search says of its route, a plain score says too."""
    ranked = RoSais(samples=2).rank(engine, [BEHAVIOUR])
    masked = Masking(samples=2, max_new_tokens=4).search(engine, [BEHAVIOUR], RefusalJudge(), ranked.ranking[:1])
    search = (
        FSour(candidates=2, restarts=1, max_new_tokens=4).search(engine, [BEHAVIOUR], RefusalJudge())[0].searches[0]
    )
    prompt, target = engine.encode(BEHAVIOUR.turns), engine.encode_target(BEHAVIOUR.target)
    score = engine.score([prompt], [target], routing=search.route())[0]
    apart = abs(score.total - search.after)
    if not search.steps or search.after <= search.before or apart > 1e-2 or not masked.attempts:
        return f"{len(search.steps)} pairs, from {search.before:.3g} to {search.after:.3g}, apart by {apart:.2g}"
    return "yes"


def _learn(engine: HFEngine) -> str:
    seen = check_up(engine)
    return "yes" if seen.learns else "no gradient"


def _fold(engine: HFEngine) -> str:
    rng = np.random.default_rng(0)
    steering = Steering(
        matrix=tuple(rng.normal(0, 1, r.experts) for r in engine.routers), sigma=(1.0,) * len(engine.routers),
        alpha=1.0, phase="both", fingerprint=engine.info.fingerprint, base_model=engine.info.name,
    )  # fmt: skip
    try:
        return f"into `{fold(engine.model, steering).tensor}`"
    except InterventionError as error:
        return "refused: no bias on its logits" if "has no bias on its logits" in error.problem else error.problem
