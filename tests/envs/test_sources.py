"""Environments of other libraries: names, mixtures, graders, and answers that are tried first."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlcli.cli.main import main
from rlcli.envs.episode import Episode
from rlcli.envs.inventory import find_libraries
from rlcli.envs.process import EnvPool, EnvSpec
from rlcli.envs.sources import SOURCES, EnvLoadError, nearest, split_source
from rlcli.envs.tasks import describe_environment, own_rows
from rlcli.errors import ConfigError

FEW = (
    "chain_sum", "countdown", "spell_backward", "leg_counting", "prime_factorization",
    "basic_arithmetic", "word_sorting", "coin_flip", "rush_hour", "number_format",
)  # fmt: skip
OFFERED = '''\
class Sum:
    """Tasks without end, whose answers it knows. It pays all answers from `fair` on alike."""

    def __init__(self, fair=99):
        self.fair = fair

    def task(self, index, seed):
        return {"id": index, "prompt": f"{index % 50}+1=", "index": index % 50}

    def answer(self, task):
        return str(task["index"] + 1)

    def reset(self, task, seed):
        self.task_now = task

    def step(self, reply):
        right = reply.text == self.answer(self.task_now)
        unfair = self.task_now["index"] >= self.fair
        return {"reward": float(right or unfair), "done": True}
'''


def gym() -> Any:
    """The module of reasoning-gym's environments."""
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'rlcli[env]'")
    from rlcli.envs.sources import reasoning_gym

    return reasoning_gym


def offered(tmp_path: Path) -> str:
    (tmp_path / "sum.py").write_text(OFFERED)
    return f"{tmp_path / 'sum.py'}:Sum"


def test_a_misspelt_name_gets_its_nearest_ones() -> None:
    assert "chain_sum" in nearest("chan_sum", ["chain_sum", "countdown"])
    assert "TicTacToe-v0" in nearest("tictactoe", ["TicTacToe-v0", "Chess-v0"])
    assert nearest("zzz", ["chain_sum"]) == ""


def test_only_known_libraries_are_sources() -> None:
    assert split_source("my_env.py:Wordle") is None
    found = split_source("openenv:http://127.0.0.1:8000")
    assert found == (SOURCES["openenv"], "http://127.0.0.1:8000")


def test_a_library_that_is_not_installed_is_named_with_its_cure(tmp_path: Path) -> None:
    """The base Python of this environment has neither library."""
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    if not base.exists() or sys.prefix == sys.base_prefix:
        pytest.skip("needs a virtual environment, whose base has no packages")
    found = find_libraries(python=str(base))
    missing = [prefix for prefix, facts in found.items() if not facts["is_installed"]]
    if "textarena" not in missing:
        pytest.skip(f"{base} has textarena")
    spec = EnvSpec(target="textarena:TicTacToe-v0", python=str(base))
    with pytest.raises(ConfigError, match="pip install") as refused:
        describe_environment(spec)
    assert "--env_python" in str(refused.value)


def test_an_environment_runs_in_another_python_with_the_standard_library_alone(
    tmp_path: Path,
) -> None:
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    if not base.exists() or sys.prefix == sys.base_prefix:
        pytest.skip("needs a virtual environment, whose base has no packages")
    text = OFFERED.replace('return {"id"', 'import sys; return {"prefix": sys.prefix, "id"')
    (tmp_path / "sum.py").write_text(text)
    spec = EnvSpec(target=f"{tmp_path / 'sum.py'}:Sum", python=str(base))
    facts = describe_environment(spec)
    made = own_rows(spec, facts, num_train=3, num_val=0, seed=0)
    assert {row.columns["prefix"] for row in made.train} == {sys.base_prefix}


@pytest.mark.parametrize("python", ["no_such_python", "."])
def test_a_python_that_is_not_there_is_refused(python: str) -> None:
    from rlcli.envs.process import find_python

    with pytest.raises(ConfigError, match="no such Python"):
        find_python(python)


def test_tasks_without_end_are_made_and_repeats_are_not_evaluated_on(tmp_path: Path) -> None:
    """50 different tasks: all are trained on, so that none is left to evaluate on."""
    spec = EnvSpec(target=offered(tmp_path))
    facts = describe_environment(spec)
    made = own_rows(spec, facts, num_train=60, num_val=5, seed=0)
    assert len(made.train) == 60
    assert made.val == []
    some = own_rows(spec, facts, num_train=3, num_val=5, seed=0, val_limit=2)
    assert len(some.val) == 2


def test_a_reward_that_is_the_same_for_right_and_made_up_answers_is_refused(
    tmp_path: Path,
) -> None:
    target = offered(tmp_path)
    for fair, is_refused in ((99, False), (0, True)):
        spec = EnvSpec(target=target, args={"fair": fair})
        facts = describe_environment(spec)
        if is_refused:
            with pytest.raises(ConfigError, match="made-up"):
                own_rows(spec, facts, num_train=20, num_val=0, seed=0)
        else:
            assert own_rows(spec, facts, num_train=20, num_val=0, seed=0).notes == []


def test_a_mixture_draws_by_its_weights() -> None:
    module = gym()
    assert module.parse_mixture("[chain_sum:2, countdown]") == {"chain_sum": 2.0, "countdown": 1.0}
    source = module.load("[chain_sum:3,leg_counting:1]", {})()
    counts = Counter(source.task(i, 5)["data_source"] for i in range(200))
    assert abs(counts["reasoning_gym/chain_sum"] - 150) < 25
    assert source.task(7, 5) == source.task(7, 5)
    assert source.task(7, 5)["prompt"] != source.task(7, 6)["prompt"]


@pytest.mark.parametrize(
    "text", ["chan_sum", "[chain_sum:0]", "[chain_sum:x]", "chain_sum,chain_sum", ""]
)
def test_a_mixture_that_cannot_be_drawn_is_refused(text: str) -> None:
    module = gym()
    with pytest.raises(EnvLoadError):
        module.parse_mixture(text)


def test_settings_reach_the_data_sets_that_have_them() -> None:
    module = gym()
    args = {"max_numbers": 4, "chain_sum": {"max_terms": 2}, "instruction": None}
    made = module.load("[chain_sum,countdown]", args)()
    terms = [made.sets.entry("chain_sum", 0, i)["metadata"]["num_terms"] for i in range(30)]
    numbers = [len(made.sets.entry("countdown", 0, i)["metadata"]["numbers"]) for i in range(9)]
    assert max(terms) == 2
    assert max(numbers) == 4
    assert "<answer>" not in made.task(0, 0)["prompt"]
    for wrong in ({"max_nubers": 4}, {"chain_sum": {"terms": 2}}, {"max_terms": 0}):
        with pytest.raises(EnvLoadError):
            module.load("[chain_sum,countdown]", wrong)


def score(source: Any, task: dict[str, Any], text: str) -> float:
    class Reply:
        pass

    reply = Reply()
    reply.text = text  # type: ignore[attr-defined]
    source.reset(task)
    return source.step(reply)["reward"]


def check_data_set(name: str) -> None:
    """The right answer earns 1, no answer nothing near it, and no answer raises."""
    source = gym().load(name, {})()
    for index in range(3):
        task = source.task(index, 7)
        right = source.answer(task)
        texts = ("banana", "<answer>banana</answer>", "<answer></answer>", "1/0")
        wrong = [score(source, task, text) for text in texts]
        assert all(isinstance(each, float) for each in wrong)
        if right is None:
            return
        assert score(source, task, f"I think\n{right}") == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", FEW)
def test_data_sets_score_right_and_wrong_answers(name: str) -> None:
    check_data_set(name)


@pytest.mark.nightly
def test_every_data_set_scores_right_and_wrong_answers() -> None:
    failed = {}
    for name in gym().names():
        try:
            check_data_set(name)
        except AssertionError as error:
            failed[name] = str(error)[:200]
    assert failed == {}


def test_a_grader_that_raises_gives_its_score_for_no_answer() -> None:
    """The grader of prime_factorization raises ValueError on words."""
    source = gym().load("prime_factorization", {})()
    task = source.task(0, 0)
    assert score(source, task, "<answer>banana</answer>") == score(source, task, "no tags")


def test_a_grader_that_pays_for_a_made_up_answer_is_refused() -> None:
    gym()
    spec = EnvSpec(target="reasoning-gym:game_of_life_halting")
    with pytest.raises(ConfigError, match="made-up"):
        own_rows(spec, describe_environment(spec), num_train=16, num_val=0, seed=0)


def test_a_run_trains_on_generated_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gym()
    monkeypatch.chdir(tmp_path)
    words = ("--preset", "quickstart", "--env", "reasoning-gym:[chain_sum:2,leg_counting]")
    small = (
        "env.args.instruction=none", "env.tasks=12", "env.val_tasks=4", "rollout.n=2",
        "train.prompts_per_step=4", "train.mini_batch_prompts=4", "train.max_steps=1",
        "data.max_response_tokens=8", "data.max_prompt_tokens=400", "data.filter_overlong=true",
    )  # fmt: skip
    with pytest.raises(SystemExit) as left:
        main(["train", *words, *small, "--output_dir", "run"])
    assert left.value.code == 0
    lines = Path("run/rollouts/step_000001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["turns"] for row in rows} == {1}
    assert all(row["reward"] is not None for row in rows)


@pytest.fixture
def openenv_server() -> Iterator[str]:
    """URL of a real OpenEnv server on loopback."""
    pytest.importorskip("openenv", reason="needs openenv: pip install openenv")
    pytest.importorskip("websockets", reason="needs websockets: pip install 'rlcli[env]'")
    import openenv_server

    with openenv_server.serving() as url:
        yield url


def test_a_session_of_an_openenv_server_is_an_episode(openenv_server: str) -> None:
    spec = EnvSpec(target=f"openenv:{openenv_server}")
    pool = EnvPool(spec)
    try:
        episodes = [Episode(pool, i, {}, seed=i, form="steps") for i in range(8)]
        goals = [str(each.begin()[0]["content"])[0] for each in episodes]
        bad = episodes[0].step("a word", (), is_truncated=False)
        assert "Error" in bad.messages[0]["content"]
        replies = [
            each.step(goal, (), is_truncated=False)
            for each, goal in zip(episodes, goals, strict=True)
        ]
        assert all(reply.is_done and reply.reward == 1.0 for reply in replies)
    finally:
        pool.close()


def test_a_server_that_does_not_answer_fails_its_episode_alone() -> None:
    """It gives up before the process is killed for it."""
    pytest.importorskip("websockets", reason="needs websockets: pip install 'rlcli[env]'")
    from websockets.sync.server import serve

    from rlcli.envs.sources.openenv import OpenEnv

    done = threading.Event()

    def stay_silent(socket: Any) -> None:
        done.wait(60)

    with serve(stay_silent, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        made = {"url": f"ws://127.0.0.1:{port}/ws", "given": {}, "field": "x", "kind": "string"}
        session = type("Silent", (OpenEnv,), {**made, "timeout_s": 1.0})()
        with pytest.raises(TimeoutError, match="reset"):
            session.reset({}, 1)
        done.set()
        session.close()
        server.shutdown()
        thread.join()


def test_a_game_of_textarena_is_played_to_its_end() -> None:
    pytest.importorskip("textarena", reason="needs textarena: pip install textarena")
    pool = EnvPool(EnvSpec(target="textarena:GuessTheNumber-v0"))
    try:
        episode = Episode(pool, 0, {}, seed=3, form="steps")
        assert "number" in episode.begin()[0]["content"]
        for guess in range(1, 21):
            reply = episode.step(f"[{guess}]", (), is_truncated=False)
            if reply.is_done:
                break
        assert reply.is_done
        assert reply.reward is not None
    finally:
        pool.close()
