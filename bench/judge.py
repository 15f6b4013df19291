"""How near the judge comes to concurrency / latency, and what it adds to a step of training.

python bench/judge.py calls [--case 64:0.5 ...] [--sdk openai claude gemini] [--calls 5000]
python bench/judge.py step [--case 16:0.4 ...] [--steps 6] [--repeats 3]

The judge is a server in a process of its own that answers after a constant latency L.
`calls` gives the judge 5,000 distinct responses at concurrency C, beside the same calls by the
bare SDK and by bare HTTP with C workers: what this machine can do at best. `step` trains the
quickstart model with a rule and with a judge that needs less time than sampling takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcli.config.rewards import JudgeConfig
from rlcli.rewards.base import score_all
from rlcli.rewards.judge import JudgeScorer
from rlcli.rewards.judge.client import verdict_schema
from rlcli.rewards.judge.templates import load_template, render
from rlcli.types import Prompt, Rollout

ROOT = Path(__file__).resolve().parent.parent
MODELS = {"openai": "gpt-4o-mini", "claude": "claude-haiku-4-5", "gemini": "gemini-2.5-flash"}
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
MAX_TOKENS = 2048
SCHEMA = verdict_schema((1, 10))

Ask = Callable[[str], Awaitable[Any]]
Make = Callable[[], tuple[Ask, Callable[[], Awaitable[Any]]]]
"""Makes a client in the running event loop: (one call, what closes it)."""


@dataclass(frozen=True, slots=True)
class Case:
    """Calls in flight at most, and seconds the server takes for one."""

    concurrency: int
    latency_s: float

    @classmethod
    def read(cls, text: str) -> Case:
        """The case `C:L`."""
        concurrency, _, latency_s = text.partition(":")
        return cls(int(concurrency), float(latency_s))


CALL_CASES = [Case(8, 0.05), Case(32, 0.2), Case(64, 0.5), Case(64, 1.0), Case(128, 1.0)]
STEP_CASES = [Case(8, 0.15), Case(16, 0.3), Case(32, 0.5)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Of one way to make all calls. server_s: what the server took for one, on average."""

    wall_s: float
    cpu_s: float
    server_s: float
    most: int


@contextmanager
def judge_server(latency_s: float) -> Iterator[str]:
    """Its address while it runs."""
    command = [sys.executable, str(ROOT / "bench" / "judge_server.py"), str(latency_s)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.kill()
        server.wait()


def rollouts(number: int) -> list[Rollout]:
    """Answers to one question of mathematics, no two alike, of about 400 characters."""
    question = "A train leaves at 9:40 and arrives at 13:05. How many minutes does it take? " * 2
    prompt = Prompt(
        id="bench:1",
        messages=({"role": "user", "content": question},),
        token_ids=(1,),
        ground_truth="205",
    )
    text = "From 9:40 to 13:00 there are 200 minutes, and 5 more make 205. " * 6
    return [
        Rollout(
            prompt=prompt,
            text=f"{text} ({index})",
            token_ids=(1,),
            logprobs=(0.0,),
            finish_reason="stop",
            policy_version=0,
        )
        for index in range(number)
    ]


def settings(provider: str, url: str, concurrency: int) -> JudgeConfig:
    """A judge on the server."""
    return JudgeConfig.model_validate(
        {
            "enabled": True,
            "provider": provider,
            "model": MODELS[provider],
            "base_url": url + ("/v1" if provider == "openai" else ""),
            "concurrency": concurrency,
            "prompt": "math",
            "cache": "off",
        }
    )


def by_rlcli(provider: str, url: str, *, concurrency: int, number: int) -> Timing:
    """All calls through the judge of rlcli, submitted at once."""
    answers = rollouts(number)
    scorer = JudgeScorer(settings(provider, url, concurrency), env=dict.fromkeys(KEYS, "k"))
    try:
        scored, timing = timed(lambda: score_all(scorer, answers), url)
    finally:
        scorer.close()
    assert all(reward.value == 7 / 9 for reward in scored), scored[0]
    return timing


def by_workers(make: Make, url: str, *, concurrency: int, number: int) -> Timing:
    """All calls by `concurrency` workers that do nothing else."""
    template, _ = load_template(JudgeConfig(prompt="math"))
    fields = [
        {"prompt": r.prompt.messages[0]["content"], "response": r.text, "ground_truth": "205"}
        for r in rollouts(number)
    ]
    texts = [render(template, values, nonce="0123456789abcdef") for values in fields]

    async def work(ask: Ask) -> None:
        while texts:
            await ask(texts.pop())

    async def all_work() -> None:
        ask, close = make()
        await asyncio.gather(*(work(ask) for _ in range(concurrency)))
        await close()

    return timed(lambda: asyncio.run(all_work()), url)[1]


def timed(work: Callable[[], Any], url: str) -> tuple[Any, Timing]:
    """(what `work` gives, wall and CPU seconds of this process with the server's figures)."""
    begun, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    with urllib.request.urlopen(f"{url}/stats") as answer:
        stats = json.load(answer)
    return result, Timing(wall_s=wall_s, cpu_s=cpu_s, server_s=stats["mean_s"], most=stats["most"])


def bare_http(provider: str, url: str, concurrency: int) -> Make:
    """A maker of: post one body, read the answer's JSON."""
    paths = {
        "openai": "/v1/chat/completions",
        "claude": "/v1/messages",
        "gemini": f"/v1beta/models/{MODELS['gemini']}:generateContent",
    }
    system = load_template(JudgeConfig(prompt="math"))[0].system

    def make() -> tuple[Ask, Callable[[], Awaitable[Any]]]:
        import httpx2

        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency)
        client = httpx2.AsyncClient(timeout=None, limits=limits)

        async def ask(text: str) -> Any:
            body = BODIES[provider](system, text)
            return (await client.post(url + paths[provider], json=body)).json()

        return ask, client.aclose

    return make


def bare_sdk(provider: str, url: str, concurrency: int) -> Make:
    """A maker of: one call as the SDK's own examples make it."""
    system = load_template(JudgeConfig(prompt="math"))[0].system

    def make() -> tuple[Ask, Callable[[], Awaitable[Any]]]:
        if provider == "openai":
            import openai

            gpt = openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)
            return lambda text: gpt.chat.completions.create(**openai_body(system, text)), gpt.close
        if provider == "claude":
            import anthropic

            claude = anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0)
            return lambda text: claude.messages.create(**claude_body(system, text)), claude.close
        return gemini_sdk(system, url)

    return make


def gemini_sdk(system: str, url: str) -> tuple[Ask, Callable[[], Awaitable[Any]]]:
    """google-genai on the same HTTP client as the others."""
    import httpx2
    from google import genai
    from google.genai import types

    http = httpx2.AsyncClient(timeout=None, limits=httpx2.Limits(max_connections=None))
    options = types.HttpOptions(base_url=url, api_version="v1beta", httpx_async_client=http)
    client = genai.Client(api_key="k", vertexai=False, http_options=options)

    async def ask(text: str) -> Any:
        config = types.GenerateContentConfig(
            system_instruction=system,
            temperature=0.0,
            max_output_tokens=MAX_TOKENS,
            response_mime_type="application/json",
            response_json_schema=SCHEMA,
        )
        return await client.aio.models.generate_content(
            model=MODELS["gemini"], contents=text, config=config
        )

    return ask, http.aclose


def openai_body(system: str, text: str) -> dict[str, Any]:
    """A call to chat/completions."""
    return {
        "model": MODELS["openai"],
        "max_tokens": MAX_TOKENS,
        "temperature": 0.0,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    }


def claude_body(system: str, text: str) -> dict[str, Any]:
    """A call to messages."""
    return {
        "model": MODELS["claude"],
        "max_tokens": MAX_TOKENS,
        "system": system,
        "messages": [{"role": "user", "content": text}],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }


def gemini_body(system: str, text: str) -> dict[str, Any]:
    """A call to generateContent."""
    form = {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
    return {
        "contents": [{"role": "user", "parts": [{"text": text}]}],
        "systemInstruction": {"parts": [{"text": system}]},
        "generationConfig": {"temperature": 0.0, "maxOutputTokens": MAX_TOKENS, **form},
    }


BODIES = {"openai": openai_body, "claude": claude_body, "gemini": gemini_body}


def calls(provider: str, case: Case, *, number: int) -> str:
    """A row of the table: share of C / L and CPU milliseconds a call, of the three ways."""
    found: list[Timing] = []
    with judge_server(case.latency_s) as url:
        for make in (bare_http, bare_sdk):
            maker = make(provider, url, case.concurrency)
            found.append(by_workers(maker, url, concurrency=case.concurrency, number=number))
        found.append(by_rlcli(provider, url, concurrency=case.concurrency, number=number))
    assert max(timing.most for timing in found) <= case.concurrency
    ideal_s = number * case.latency_s / case.concurrency
    shares = " | ".join(f"{ideal_s / timing.wall_s:.3f}" for timing in found)
    costs = " | ".join(f"{1e3 * timing.cpu_s / number:.2f}" for timing in found)
    late_ms = 1e3 * (max(timing.server_s for timing in found) - case.latency_s)
    return (
        f"| {provider} | {case.concurrency} | {case.latency_s:g} | {number / ideal_s:.0f} "
        f"| {shares} | {costs} | {late_ms:.1f} |"
    )


CALLS_HEAD = """\
| SDK | C | L s | C/L | HTTP | SDK | rlcli | HTTP ms | SDK ms | rlcli ms | server late ms |
|---|---|---|---|---|---|---|---|---|---|---|"""


def train(folder: Path, words: Sequence[str], *, steps: int) -> list[dict[str, float]]:
    """The metrics of a short training run of the quickstart model, the first step left out.

    Its rate is 0, so that every run samples the same responses; at temperature 10 they are long and
    hardly two alike.
    """
    command = [
        sys.executable, "-m", "rlcli.cli.main", "train", "--preset", "quickstart",
        "--output_dir", str(folder), "--max_steps", str(steps + 1), *TRAINING, *words,
    ]  # fmt: skip
    env = os.environ | dict.fromkeys(KEYS, "k")
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder.parent)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited {done.returncode}:\n{done.stderr}")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][1:]


TRAINING = (
    "train.lr=0", "train.prompts_per_step=32", "train.mini_batch_prompts=32", "rollout.n=8",
    "rollout.temperature=10", "rollout.max_num_seqs=1", "data.max_response_tokens=160",
    "data.val=[]", "run.save_every=0",
)  # fmt: skip


def step(case: Case, *, steps: int, repeats: int) -> str:
    """A row of the table: step time with the rule and with the judge, in turn, medians."""
    plain: list[dict[str, float]] = []
    judged: list[dict[str, float]] = []
    with judge_server(case.latency_s) as url, tempfile.TemporaryDirectory() as name:
        for index in range(repeats):
            folder = Path(name)
            plain += train(folder / f"rule{index}", [], steps=steps)
            given = [
                "reward.judge.enabled=true", "reward.judge.provider=openai",
                f"reward.judge.model={MODELS['openai']}", f"reward.judge.base_url={url}/v1",
                f"reward.judge.concurrency={case.concurrency}", "reward.judge.cache=off",
                "reward.judge.canary_every=0",
            ]  # fmt: skip
            judged += train(folder / f"judge{index}", given, steps=steps)

    def middle(records: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(record[key] for record in records)

    sample_s, plain_s = middle(plain, "time/sample_s"), middle(plain, "time/step_s")
    step_s, number = middle(judged, "time/step_s"), middle(judged, "judge/calls")
    judge_s = number * case.latency_s / case.concurrency
    share = (step_s - plain_s) / judge_s
    return (
        f"| {case.concurrency} | {case.latency_s:g} | {number:.0f} | {sample_s:.2f} "
        f"| {judge_s:.2f} | {plain_s:.2f} | {step_s:.2f} | {share:.0%} |"
    )


STEP_HEAD = """\
| C | L s | calls a step | sampling s | judge alone s | step, rule s | step, judge s | growth |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("calls", "step"))
    parser.add_argument("--case", nargs="+", type=Case.read, help="C:L pairs")
    parser.add_argument("--sdk", nargs="+", choices=MODELS, default=["openai"])
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    if args.what == "calls":
        print(CALLS_HEAD, flush=True)
        for case in args.case or CALL_CASES:
            for provider in args.sdk:
                print(calls(provider, case, number=args.calls), flush=True)
        return
    print(STEP_HEAD, flush=True)
    for case in args.case or STEP_CASES:
        print(step(case, steps=args.steps, repeats=args.repeats), flush=True)


if __name__ == "__main__":
    main()
