"""What a user of `--lang zh` or RLCLI_LANG=zh sees; machines see English."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlcli.cli.main import main
from rlcli.cli.options import OPTIONS
from rlcli.terminal.i18n import translator, width

ROOT = Path(__file__).resolve().parent.parent.parent
HAN = re.compile(r"[\u4e00-\u9fff]")


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """(exit code, stdout, stderr) of a command line."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--algo", "grop"], "没有算法 'grop'（来自选项 --algo）。最接近的是：grpo。"),
        (["trian"], "rlcli 没有命令 trian。最接近的是：train。"),
        (["train", "--lrr", "1"], "rlcli train 没有选项 --lrr。最接近的是：--lr"),
        (["train", "--lr", "x"], "rlcli train：'--lr' 的值无效：应为数字。见 rlcli train --help。"),
        (["train", "--lr"], "选项 '--lr' 需要一个值。"),
        (["train", "--dry_run=1"], "选项 '--dry-run' 不带值。"),
        (["presets", "show"], "rlcli presets show：缺少参数 'name'。"),
        (["presets", "show", "a", "b"], "多出了参数（b）。"),
        (["train", "rollout.n=0"], "rollout.n = 0（来自命令行 rollout.n=0）：应为不小于 1 的数。"),
        (["train", "algorithm.clip_ratio_c=1"], "应为大于 1 的数。"),
        (["train", "algorithm.lam=2"], "应为不大于 1 的数。"),
        (["train", "train.beta1=1"], "应为小于 1 的数。"),
        (["train", "train.lr=abc"], "应为数字。"),
        (["train", "train.lr=inf"], "应为有限的数。"),
        (["train", "rollout.n=abc"], "应为整数。"),
        (["train", "lora.rank=8", "train.dynamic_batch=7"], "应为 true 或 false。"),
        (["train", "reward.weights=3"], "应为键值对。"),
        (["train", "model.dtype=x"], "应为 'auto', 'float32' 或 'bfloat16'。"),
    ],
)
def test_an_error_is_in_chinese_and_names_the_same(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RLCLI_LANG", "zh")
    code, out, err = told(words, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("错误：")
    assert says in err
    assert len(err.splitlines()) <= 3


@pytest.mark.parametrize("command", [["presets", "list"], ["--version"], ["presets"]])
def test_lang_may_be_given_to_every_command(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = told([*command, "--lang", "zh"], capsys)
    assert "--lang" not in err
    assert (code, out) == told(["--lang=zh", *command], capsys)[:2]


def child(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "PYTHONUTF8": "1", **variables}
    code = "from rlcli.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=env, cwd=ROOT, capture_output=True, text=True
    )


def test_help_of_train_is_chinese_and_has_every_option() -> None:
    done = child("train", "--lang", "zh", "--help", COLUMNS="140")
    assert done.returncode == 0
    assert "╭─ 训练什么 ─" in done.stdout
    assert "按名字写任意设置" in done.stdout
    for option in OPTIONS:
        assert f"--{option.name.replace('_', '-')}" in done.stdout
        if translator("zh")(option.help) != option.help:
            assert option.help not in done.stdout


@pytest.mark.parametrize("command", ["train", "eval", "plan"])
def test_help_fits_80_columns_whole(command: str) -> None:
    done = child(command, "--help", RLCLI_LANG="zh")
    lines = done.stdout.splitlines()
    assert max(map(width, lines)) <= 80
    assert [line for line in lines if "…" in line and "unsafe-code" not in line] == []


def test_the_list_of_commands_is_chinese() -> None:
    done = child("--help", "--lang", "zh")
    _, _, commands = done.stdout.partition("─ 命令 ─")
    rows = [line for line in commands.splitlines() if re.match(r"│ \w", line)]
    assert len(rows) >= 9
    assert [row for row in rows if not HAN.search(row)] == []


def test_an_error_in_a_process_of_its_own() -> None:
    done = child("train", "--algo", "grop", RLCLI_LANG="zh")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("错误：")
    assert len(done.stderr.splitlines()) <= 3
    assert "'grop'" in done.stderr
    assert "grpo" in done.stderr


def test_english_reads_no_catalogue() -> None:
    code = (
        "import sys, contextlib\n"
        "from rlcli.terminal import i18n\n"
        "from rlcli.cli.main import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['train', '--help'])\n"
        "assert i18n.entries.cache_info().misses == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


DRY_RUN = ["train", "--preset", "quickstart", "--dry_run", "--lang", "zh", "lora.dropout=0.1"]


def test_the_banner_of_a_dry_run_is_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(DRY_RUN, capsys)
    assert code == 0
    assert out.startswith("rlcli：grpo（grpo + clip），模型 builtin:quickstart\n数据：800 条提示词")
    assert "  run.lang " in out
    assert "提示：64 条提示词 x n=8 = 每步 512 条 rollout" in out
    assert "提示：未使用：lora.dropout（lora.rank 是 0：训练全部权重）。" in out
    assert [line for line in out.splitlines() if not HAN.search(line)] == []


def test_json_stays_english(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told([*DRY_RUN, "--json"], capsys)
    assert code == 0
    assert not HAN.search(out)
    said = json.loads(out)
    assert said["config"]["run"]["lang"] == "zh"
    assert said["sources"]["lora.dropout"] == "override lora.dropout=0.1"
    assert any(note.startswith("not used: lora.dropout") for note in said["warnings"])
