"""The Chinese catalogue: nothing missing, nothing dead, and how a line is put together."""

from __future__ import annotations

import re
from string import Formatter

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from message_texts import Text, all_texts, error_texts, shape_of, texts_in

from rlcli.cli.main import app
from rlcli.config.presets import list_presets, load_preset
from rlcli.terminal.i18n import CATALOGUE, Entry, entries, language, translator, width

HAN = re.compile(r"[\u4e00-\u9fff]")
SPEAKING = (
    "trainer/build.py",
    "trainer/run_plan.py",
    "models/causal_lm.py",
    "run_dir/checkpoint.py",
    "cli/usage.py",
    "distributed/agree.py",
    "distributed/gather.py",
    "config/",
    "data/files.py",
    "data/messages.py",
    "data/prompts.py",
    "data/readers.py",
    "data/rendering.py",
    "data/sets.py",
    "data/templates.py",
    "system/disk.py",
    "run_dir/disk_usage.py",
    "hub.py",
    "setup/resources.py",
    "distributed/process_count.py",
    "models/load_check/",
    "monitor/health.py",
    "monitor/judge_health_checks.py",
    "monitor/trackers.py",
    "monitor/health_checks.py",
    "setup/checks/",
    "distributed/rank_env.py",
    "tools/reward_test/feed.py",
    "tools/reward_test/judges.py",
    "tools/reward_test/planning.py",
    "tools/reward_test/responses.py",
    "tools/reward_test/rows.py",
    "tools/reward_test/verdicts.py",
    "rewards/judge/call.py",
    "rewards/judge/budget.py",
    "rewards/judge/cache.py",
    "rewards/judge/check.py",
    "rewards/judge/faults.py",
    "rewards/judge/providers.py",
    "rewards/judge/scorer.py",
    "rewards/encoding.py",
    "rewards/reward_model.py",
    "rewards/model_files.py",
    "rewards/process_pool.py",
    "rewards/process.py",
    "rewards/remote.py",
    "rewards/rules/__init__.py",
    "rewards/rules/code_tests.py",
    "rewards/rules/exact.py",
    "rewards/rules/gsm8k.py",
    "rewards/rules/length.py",
    "rewards/rules/math.py",
    "rewards/sandbox/box.py",
    "rewards/sandbox/finding.py",
    "rewards/build.py",
    "rewards/worker.py",
    "rollout/vllm/replica.py",
    "trainer/session.py",
    "launcher/",
    "tools/dry_run.py",
)
"""Files whose every sentence reaches the user, in an error, a note or the banner."""
UNSAID = {
    # what to type, the same in every language
    "export {}=your_api_key",
    "apt-get install bubblewrap",
    "apt-get install python3",
    "sudo sysctl {}={}",
    "pip install -e '.[judge]'",
    "pip install -e '.[trackers]'",
    "--preset quickstart",
    "rlcli train",
    "rlcli doctor --nodes",
    "rlcli runs resume {}",
    "wandb sync {}",
    "gemini-1.5-flash, gemini-1.5-pro; newer: gemini-flash-latest",
    "claude-3-haiku-20240307, claude-3-sonnet-20240229; newer: claude-haiku-4-5",
    # looked for in what others say
    "No such option",
    "No such command",
    "Input should be",
    ", unable to",
    "Extra data",
    "Is a directory",
    "credit balance is too low",
    "content filtering",
    "source path",
    # parts of files, types and questions to a model
    "--- process {} ---",
    "# rlcli train --config THIS_FILE",
    "^def check\\(",
    "| setting | default | meaning |",
    "{} One of {}.",
    "dict[str, Any]",
    "Mapping[Any, Any]",
    "from rlcli.system.hardware import die_with_parent; die_with_parent(); "
    "from rlcli.cli.main import run_process; run_process()",
    "SELECT count(*) FROM sqlite_master",
    "SELECT score, reason, model FROM verdicts WHERE key = ?",
    "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)",
    "CREATE TABLE verdicts (key BLOB PRIMARY KEY, score REAL, reason TEXT, model TEXT, "
    "day TEXT NOT NULL) WITHOUT ROWID",
    "## system",
    "## scoring",
    "{}: scale",
    "What is 1 + 1?",
    # too little to tell a sentence by: PUT_TOGETHER has what is said
    "shrunk to",
    "{} is {}: {}.",
    # only said of a program's own mistake
    "the last try returns",
    "the scorer is closed",
    "the scorer was closed",
    "run {}",
}
"""Prose that needs no translation."""
COMMANDS = (
    "rlcli algo compare grpo rloo --preset quickstart --seeds 2",
    "{prompt} {response} {ground_truth}",
)
"""Lines of help that are the same in every language."""
PUT_TOGETHER = {
    "node {}",
    "nodes {}",
    "{} is {}: the {} loss is one number per sequence.",
    "the chat template cannot show the replies: {}",
}
"""Sentences whose parts stand in several places."""


def wanted() -> dict[str, str]:
    """Shape of every sentence that needs a translation, to the place that says it."""
    told: list[Text] = [*error_texts(), *texts_in(SPEAKING)]
    return {text.shape: text.where for text in told if text.shape not in UNSAID}


def help_texts() -> set[str]:
    """Lines of the help of every command and option, and the titles of their panels."""
    found: set[str] = set()
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        texts = [command.help, *(getattr(option, "help", "") for option in command.params)]
        texts += [getattr(option, "rich_help_panel", "") for option in command.params]
        found |= {line for text in texts for line in (text or "").split("\n") if line}
    return found


def preset_notes() -> set[str]:
    notes = (load_preset(preset.name, origin="test").note for preset in list_presets())
    return {note for note in notes if note}


def catalogue(*, but: str = "") -> list[Entry]:
    """The entries, without those of the file named `but`."""
    unwanted = (CATALOGUE / but).read_text("utf-8").splitlines() if but else []
    return [entry for _, entry in entries() if entry.source not in unwanted]


def test_every_message_has_a_translation() -> None:
    known = {shape_of(entry.source) for entry in catalogue()}
    missing = {shape: where for shape, where in wanted().items() if shape not in known}
    lines = [f"{where}: {shape}" for shape, where in sorted(missing.items(), key=lambda x: x[1])]
    assert not lines, "add to rlcli/assets/zh, or to UNSAID here:\n" + "\n".join(lines)


def test_every_line_of_help_has_a_translation() -> None:
    known = {entry.source for entry in catalogue()}
    assert help_texts() - known - {*COMMANDS} == set()


def test_every_preset_s_note_has_a_translation() -> None:
    known = {entry.source for entry in catalogue()}
    assert preset_notes() - known == set()


def test_no_translation_is_of_something_nobody_says() -> None:
    said = {text.shape for text in all_texts()} | help_texts() | preset_notes() | PUT_TOGETHER
    dead = [entry.source for entry in catalogue(but="libraries.txt")]
    assert [source for source in dead if source not in said] == []


def test_nothing_is_translated_twice() -> None:
    sources = [entry.source for entry in catalogue()]
    assert {source for source in sources if sources.count(source) > 1} == set()


def test_what_needs_no_translation_is_still_there() -> None:
    assert UNSAID - {text.shape for text in all_texts()} == set()


def test_both_sides_have_the_same_gaps() -> None:
    for entry in catalogue():
        names = [name for _, name, _, _ in Formatter().parse(entry.target) if name is not None]
        order = range(len(names)) if not any(names) else sorted(map(int, names))
        assert [*order] == [*range(len(entry.pieces) - 1)], entry.source


def test_every_entry_says_itself() -> None:
    """A line made from an entry comes out as its translation, not as that of a wider one."""
    say = translator("zh")
    for entry in catalogue():
        values = [f"<{number}>" for number in range(len(entry.pieces) - 1)]
        said, wanted_said = say(entry.source.format(*values)), entry.target.format(*values)
        assert said.replace(" ", "") == wanted_said.replace(" ", ""), entry.source


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        (
            "grpo needs rollout.n >= 2, got 1 (from env ROLLOUT_N). Raise it, or use --algo rloo.",
            "grpo 需要 rollout.n >= 2，现在是 1（来自环境变量 ROLLOUT_N）。"
            "请调大，或用 --algo rloo。",
        ),
        ("unknown setting foo.bar=3.", "未知设置 foo.bar=3。"),
        (
            "unknown setting actor.lrr=1. Nearest: train.lr, critic.lr.",
            "未知设置 actor.lrr=1。最接近的是：train.lr, critic.lr。",
        ),
        (
            "  algorithm.kl_coef  0.01                  flag --kl_coef",
            "  algorithm.kl_coef  0.01                  选项 --kl_coef",
        ),
        (
            "note: 8 prompts x n=4 = 32 rollouts/step -> 2 mini-batches x 16, 3 times "
            "(train.ppo_epochs) -> micro-batches of <= 24,000 tokens",
            "提示：8 条提示词 x n=4 = 每步 32 条 rollout -> 2 个 mini-batch x 16，重复 3 次"
            "（train.ppo_epochs） -> 每个 micro-batch <= 24,000 个 token",
        ),
        (
            "not used: lora.alpha, lora.dropout (lora.rank is 0: full weights are trained).",
            "未使用：lora.alpha, lora.dropout（lora.rank 是 0：训练全部权重）。",
        ),
        (
            "note: not here: model a/b is empty: no config.json is in the repository. Or download "
            "its files where there is a network, and give their path.",
            "提示：本机没有：模型 a/b 是空的：仓库里没有 config.json。"
            "或者在有网络的地方下载它的文件，再给出路径。",
        ),
        (
            "Held-out pass@1: 30.6% before, 82.9% after 40 steps on sums_val",
            "留出集 pass@1（sums_val）：训练前 30.6%，40 步之后 82.9%",
        ),
        (
            "health: the judge leaves 30% of the rollouts unscored; they are masked out. "
            "Most often: rate limit. Fix the reward function, or raise reward.timeout_s (now 5).",
            "诊断：评分模型让 30% 的 rollout 未评分；它们不参与训练。"
            "最常见的原因：触发限流。请修好奖励，或调大 reward.timeout_s（现为 5）。",
        ),
        (
            "the judge (openai gpt-5 at https://x.y/v1) failed its probe call: the key is refused: "
            "401 no.\nSet a key that it accepts: export OPENAI_API_KEY=your_api_key.",
            "评分模型（openai gpt-5，https://x.y/v1）的试调用失败：密钥被拒绝：401 no。\n"
            "请设置它接受的密钥：export OPENAI_API_KEY=your_api_key。",
        ),
        ("Model: outputs/run/checkpoints/final", "模型：outputs/run/checkpoints/final"),
        ("Actor Loss: 0.234, KL: 0.012, Reward: 0.456",) * 2,
        ("", ""),
    ],
)
def test_a_line_is_translated_with_what_fills_its_gaps(english: str, chinese: str) -> None:
    assert translator("zh")(english) == chinese
    assert translator("en")(english) == english


GAP = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: text.strip())


@given(st.data())
def test_what_fills_a_gap_is_never_lost(data: st.DataObject) -> None:
    entry = data.draw(st.sampled_from(catalogue()))
    values = [f"<{data.draw(GAP)}>".replace("\n", " ") for _ in entry.pieces[1:]]
    said = translator("zh")(entry.source.format(*values))
    for number, value in enumerate(values):
        assert value in said or HAN.search(value), (number, said)


@given(st.text(max_size=200))
def test_no_text_breaks_the_translator(text: str) -> None:
    assert translator("zh")(text).count("\n") == text.count("\n")


def test_an_unknown_line_and_a_long_one_are_left_alone() -> None:
    say = translator("zh")
    for line in ("the moon is not a flag --cheese of ours", "{x} {} {{", "x" * 10_000):
        assert say(line) == line


@pytest.mark.parametrize(
    ("words", "variable", "lang"),
    [
        (["train"], "", ""),
        (["train"], "zh", "zh"),
        (["train", "--lang", "zh"], "", "zh"),
        (["train", "--lang=en"], "zh", "en"),
        (["train", "run.lang=zh", "--algo", "grpo"], "en", "zh"),
        (["train", "--lang"], "zh", ""),
    ],
)
def test_the_command_line_beats_the_environment(words: list[str], variable: str, lang: str) -> None:
    assert language(words, {"RLCLI_LANG": variable}) == lang


def test_a_chinese_character_takes_two_columns() -> None:
    assert width("数据 ok") == 7
