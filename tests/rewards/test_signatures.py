"""Reward functions with the signatures of other trainers, called as those call them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlcli.rewards.base import score_all
from rlcli.types import Prompt, Reward, Rollout

CHAT = ({"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"})


@pytest.fixture
def ask(user_file: Any, pool: Any, rollout: Any) -> Any:
    """ask(source, text="4", chat=False, **columns) -> Reward; the ground truth is "4"."""

    def score(source: str, text: str = "4", *, chat: bool = False, **columns: Any) -> Reward:
        made: Rollout = rollout(text, gold="4", data_source="sums", level=3)
        messages = CHAT if chat else ({"role": "user", "content": "2 + 2?"},)
        prompt: Prompt = replace(
            made.prompt,
            messages=messages,
            columns={"answer": "4", **columns, "prompt": CHAT if chat else "2 + 2?"},
        )
        return score_all(pool(user_file(source)), [replace(made, prompt=prompt)])[0]

    return score


@pytest.mark.parametrize(
    "source",
    [
        "async def compute_score(solution_str, ground_truth):\n"
        "    import asyncio\n"
        "    await asyncio.sleep(0)\n"
        "    return solution_str == ground_truth\n",
        "class compute_score:\n"
        "    async def __call__(self, solution_str, ground_truth): return solution_str == '4'\n",
        "import functools\n"
        "def score(data_source, solution_str, ground_truth, extra_info=None, *, right=0.0):\n"
        "    return right if (solution_str, data_source) == (ground_truth, 'mine') else 0.0\n"
        "compute_score = functools.partial(score, data_source='mine', right=1.0)\n",
        "def compute_score(solution_str, ground_truth, /): return solution_str == ground_truth\n",
        "def compute_score(solution_str, ground_truth, method='strict', score=1.0):\n"
        "    return score if method == 'strict' else 0.5\n",
        "def compute_score(prompt, response, answer):\n"
        "    return (prompt, response, answer) == ('2 + 2?', '4', '4')\n",
        "def compute_score(messages, completion, extra_info):\n"
        "    return messages[0]['content'] == '2 + 2?' and extra_info == {'level': 3}\n",
        "def compute_score(**row): return row['answer'] == row['solution_str'] == '4'\n",
        "def compute_score(data_sources, solution_strs, ground_truths, extra_infos, **others):\n"
        "    return [s == g and e['level'] == 3 for s, g, e in\n"
        "            zip(solution_strs, ground_truths, extra_infos)]\n",
        "def compute_score(data_sources, solution_strs, ground_truths, extra_infos):\n"
        "    return [{'score': float(s == g)} for s, g in zip(solution_strs, ground_truths)]\n",
        "def compute_score(completions, answer, **kwargs):\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]\n",
        "async def compute_score(prompts, completions, completion_ids, trainer_state, **kwargs):\n"
        "    return [float(prompts == ['2 + 2?'] and completion_ids == [[1]])]\n",
        "import torch\n"
        "def compute_score(queries, prompts, labels):\n"
        "    assert prompts == ['2 + 2?']\n"
        "    right = [q == p + g for q, p, g in zip(queries, prompts, labels)]\n"
        "    return torch.tensor(right)\n",
        "import numpy\n"
        "def compute_score(completions, **_):\n"
        "    return numpy.array([[c == '4'] for c in completions])\n",
    ],
)
def test_signatures_of_other_trainers_are_called_as_they_are(ask: Any, source: str) -> None:
    assert ask(source) == replace(ask(source), value=1.0)
    assert ask(source).error is None


def test_a_chat_is_a_list_of_messages_to_trl_and_one_text_to_openrlhf(ask: Any) -> None:
    trl = (
        "def compute_score(prompts, completions, **_):\n"
        "    answer = [{'role': 'assistant', 'content': '4'}]\n"
        "    return [p[-1]['content'] == '2 + 2?' and c == answer\n"
        "            for p, c in zip(prompts, completions)]\n"
    )
    assert ask(trl, chat=True).value == 1.0
    openrlhf = (
        "def compute_score(queries, **_): return [q == 'Add.\\n\\n2 + 2?4' for q in queries]\n"
    )
    assert ask(openrlhf, chat=True).value == 1.0


def test_what_openrlhf_and_trl_log_beside_the_score_becomes_parts(ask: Any) -> None:
    openrlhf = (
        "import torch\n"
        "def compute_score(queries, prompts, labels):\n"
        "    return {'rewards': torch.ones(1), 'scores': torch.zeros(1),\n"
        "            'extra_logs': {'short': torch.tensor([0.5])}}\n"
    )
    assert ask(openrlhf) == Reward(value=1.0, parts={"short": 0.5})
    trl = (
        "def compute_score(completions, log_metric, log_extra, **_):\n"
        "    log_metric('short', 0.5); log_extra('read', ['4'])\n"
        "    return [1.0]\n"
    )
    assert ask(trl) == Reward(value=1.0, parts={"short": 0.5})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return [None]", "the reward returned NoneType None"),
        ("return [float('nan')]", "the reward is nan"),
        ("return [1.0, 1.0]", "2 scores for 1 response"),
        ("return []", "0 scores for 1 response"),
        ("return 1.0", "expected a list of scores"),
        ("return {'score': [1.0]}", "expected a list, or 'rewards'"),
        ("raise ValueError('no answer')", "ValueError: no answer (reward.py:2)"),
    ],
)
def test_a_list_that_scores_no_response_leaves_it_unscored(ask: Any, body: str, error: str) -> None:
    reward = ask(f"def compute_score(completions, **_):\n    {body}\n")
    assert reward.value is None
    assert error in (reward.error or "")


def test_a_parameter_that_is_no_column_is_named_with_the_columns_there_are(ask: Any) -> None:
    reward = ask("def compute_score(completions, solution): return [1.0]\n", level=1)
    assert reward.value is None
    assert "asks for solution" in (reward.error or "")
    assert "answer, level, prompt" in (reward.error or "")


def test_one_loop_serves_all_calls_of_an_async_function(
    user_file: Any, pool: Any, rollout: Any
) -> None:
    source = (
        "import asyncio\n"
        "lock = asyncio.Lock()\n"
        "loops = set()\n"
        "async def compute_score(solution_str):\n"
        "    async with lock:\n"
        "        loops.add(asyncio.get_running_loop())\n"
        "    return len(loops)\n"
    )
    rewards = score_all(pool(user_file(source)), [rollout(str(i)) for i in range(3)])
    assert [reward.value for reward in rewards] == [1.0] * 3
