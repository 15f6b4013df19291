"""The command line under other launchers: one model, that of one process, or a clear refusal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from launched import free_port
from safetensors.torch import load_file
from two_hosts import REWARD, ROOT, WORDS
from waiting import wait_until

PYTHON = sys.executable
RLCLI = ("-m", "rlcli.cli.main")
TORCHRUN = (PYTHON, "-m", "torch.distributed.run")
LAST = 5
Start = Callable[..., list[subprocess.Popen[str]]]
NIGHTLY = pytest.mark.nightly


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a process in `folder` for each (command, variables); kills those that are left."""
    started: list[subprocess.Popen[str]] = []

    def begin(*commands: tuple[Sequence[str], dict[str, str]]) -> list[subprocess.Popen[str]]:
        started.extend(launch(folder, command, env) for command, env in commands)
        return started[-len(commands) :]

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def launch(folder: Path, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
    clean = {name: text for name, text in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    return subprocess.Popen(
        list(command),
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends_of(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(exit code, output) of each."""
    said = [process.communicate(timeout=240)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def plain(port: int, *words: str, first: tuple[str, ...] = ()) -> list[Any]:
    """Two ranks that nothing but RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tells apart."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        ((PYTHON, *RLCLI, *WORDS, *words, *(() if rank else first)), {**place, "RANK": str(rank)})
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The run directories of one process, and of two ranks that nothing disturbed."""
    found: dict[int, Path] = {}
    for number in (1, 2):
        folder = tmp_path_factory.mktemp("alone")
        (folder / "reward.py").write_text(REWARD)
        commands = plain(free_port()) if number == 2 else [((PYTHON, *RLCLI, *WORDS), {})]
        ends = ends_of([launch(folder, *command) for command in commands])
        assert [code for code, _ in ends] == [0] * number, ends
        found[number] = folder / "run"
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{LAST}/policy.safetensors")


def rewards(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["reward_mean"] for line in lines]


def check_one_model(run: Path, alone: Path) -> None:
    """The weights, moments and rewards that one process gives."""
    found, expected = weights(run), weights(alone)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert rewards(run) == pytest.approx(rewards(alone), abs=1e-6)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def check_same_bits(run: Path, undisturbed: Path) -> None:
    found, expected = weights(run), weights(undisturbed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def agents(*words: str) -> list[Any]:
    return [
        ((*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", *words, *node, *RLCLI, *WORDS), {})
        for node in (("--node-rank", "0"), ("--node-rank", "1"))
    ]


def started_by(launcher: str) -> list[Any]:
    """The command lines of a launcher, and their variables."""
    port = str(free_port())
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = (*RLCLI, *WORDS)
    rank = [(PYTHON, *words)] * 2
    if launcher == "torchrun":
        return [((*TORCHRUN, "--standalone", "--nproc-per-node", "2", *words), {})]
    if launcher == "torchrun, two agents, static":
        return agents("--master-addr", "127.0.0.1", "--master-port", port)
    if launcher == "torchrun, two agents, c10d":
        return agents("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    if launcher == "deepspeed":
        command = (
            PYTHON,
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus",
            "2",
            "--master_port",
            port,
        )
        script = ("--module", "rlcli.cli.main", *WORDS)
        return [((*command, *script), {"DS_ACCELERATOR": "cpu"})]
    if launcher == "accelerate":
        command = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
        command = (PYTHON, "-m", *command, "--num_machines", "1", "--mixed_precision", "no")
        return [((*command, "--dynamo_backend", "no", "--main_process_port", port, *words), {})]
    if launcher == "accelerate on a CPU":
        command = (PYTHON, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
        return [((*command, *words), {})]
    tables: dict[str, Callable[[int], dict[str, str]]] = {
        "SLURM, a task per GPU": lambda i: slurm(i, nodes=1),
        "SLURM, a task per node": lambda i: slurm(i, nodes=2) | here | {"N_GPUS": "1"},
        "OpenMPI": lambda i: {
            "OMPI_COMM_WORLD_RANK": str(i),
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "MASTER_PORT": port,
        },
        "Kubeflow": lambda i: (
            here
            | {
                "RANK": str(i),
                "WORLD_SIZE": "2",
                "N_GPUS": "1",
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            }
        ),
    }
    return [(command, tables[launcher](i)) for i, command in enumerate(rank)]


def slurm(i: int, *, nodes: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i if nodes == 1 else 0),
        "SLURM_NODEID": str(0 if nodes == 1 else i),
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "localhost",
    }


@pytest.mark.parametrize(
    "launcher",
    [
        "torchrun",
        pytest.param("torchrun, two agents, static", marks=NIGHTLY),
        "torchrun, two agents, c10d",
        "deepspeed",
        pytest.param("accelerate", marks=NIGHTLY),
        pytest.param("accelerate on a CPU", marks=NIGHTLY),
        "SLURM, a task per GPU",
        pytest.param("SLURM, a task per node", marks=NIGHTLY),
        pytest.param("OpenMPI", marks=NIGHTLY),
        pytest.param("Kubeflow", marks=NIGHTLY),
    ],
)
def test_every_launcher_trains_the_model_of_one_process(
    launcher: str, folder: Path, start: Start, runs: dict[int, Path]
) -> None:
    """test_rank_env.py reads the variables of all launchers in every run."""
    for package in ("deepspeed", "accelerate"):
        if launcher.startswith(package) and find_spec(package) is None:
            pytest.skip(f"needs {package}")
    ends = ends_of(start(*started_by(launcher)))
    assert all(code == 0 for code, _ in ends), ends
    check_one_model(folder / "run", runs[1])
    assert "Traceback" not in "".join(text for _, text in ends)
    num_ranks = 1 if launcher == "accelerate on a CPU" else 2
    assert (folder / "run" / "rank_1.log").exists() == (num_ranks == 2)


def test_ranks_that_only_variables_tell_apart_train_it_too(runs: dict[int, Path]) -> None:
    check_one_model(runs[2], runs[1])
    assert (runs[2] / "rank_1.log").exists()


def test_ranks_meet_where_ray_train_already_listens(
    folder: Path, start: Start, runs: dict[int, Path]
) -> None:
    """Ray Train has joined a group of its own before it runs anything."""
    ray_s = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    commands = [
        (command, env | {"LOCAL_RANK": env["RANK"], "NODE_RANK": "0", "RAY_JOB_ID": "01000000"})
        for command, env in plain(ray_s.port)
    ]
    ends = ends_of(start(*commands))
    assert [code for code, _ in ends] == [0, 0], ends
    check_one_model(folder / "run", runs[1])


def test_all_ranks_take_the_directory_that_rank_0_names(
    folder: Path, start: Start, runs: dict[int, Path]
) -> None:
    """Without --output_dir the name has the time in it, and ranks start at different times."""
    one, two = plain(free_port())
    words = [word for word in WORDS if word not in ("--output_dir", "run")]
    first = start(((PYTHON, *RLCLI, *words), one[1]))
    time.sleep(1.2)
    ends = ends_of([*first, *start(((PYTHON, *RLCLI, *words), two[1]))])
    assert [code for code, _ in ends] == [0, 0], ends
    made = [path for path in (folder / "outputs").iterdir() if not path.is_symlink()]
    assert len(made) == 1
    check_one_model(made[0], runs[1])


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The rank processes below a launcher, by rank."""
    found: dict[int, psutil.Process] = {}
    for child in psutil.Process(launcher.pid).children(recursive=True):
        if "rlcli.cli.main" in child.cmdline() and (rank := child.environ().get("RANK")):
            found.setdefault(int(rank), child)
    return found


def await_step(run: Path, step: int) -> None:
    wait_until((run / "checkpoints" / f"step_{step}").exists, 120.0)


def standalone(*words: str, restarts: int = 0) -> Any:
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts))
    return (*TORCHRUN, *options, *RLCLI, *WORDS, *words), {}


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_torchrun_restarts_a_killed_rank_from_the_last_checkpoint(
    rank: int, folder: Path, start: Start, runs: dict[int, Path]
) -> None:
    (launcher,) = start(standalone(restarts=2))
    await_step(folder / "run", 2)
    ranks_of(launcher)[rank].kill()
    ((code, said),) = ends_of([launcher])
    assert code == 0, said
    assert "resumed from" in said
    check_same_bits(folder / "run", runs[2])


def test_ranks_end_with_a_killed_torchrun_and_the_run_can_be_resumed(
    folder: Path, start: Start, runs: dict[int, Path]
) -> None:
    (launcher,) = start(standalone())
    await_step(folder / "run", 2)
    ranks = ranks_of(launcher).values()
    launcher.kill()
    wait_until(lambda: not any(is_running(rank) for rank in ranks), 5.0)
    ends = ends_of(start(*plain(free_port(), "--resume", "auto")))
    assert [code for code, _ in ends] == [0, 0], ends
    check_same_bits(folder / "run", runs[2])


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=NIGHTLY)])
def test_sigterm_through_torchrun_saves_before_it_ends(
    goes_on: bool, folder: Path, start: Start, runs: dict[int, Path]
) -> None:
    """test_killed_ranks.py resumes runs of several ranks in every run of the tests."""
    (launcher,) = start(standalone())
    await_step(folder / "run", 2)
    launcher.send_signal(signal.SIGTERM)
    ends_of([launcher])
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["state"], status["resumable"]) == ("preempted", True)
    assert (folder / "run" / "checkpoints" / f"step_{status['step']}").is_dir()
    if goes_on:
        ((code, said),) = ends_of(start(standalone("--resume", "auto")))
        assert code == 0, said
        check_same_bits(folder / "run", runs[2])


def test_another_setting_is_named_by_rank(folder: Path, start: Start) -> None:
    ends = ends_of(start(*plain(free_port(), first=("--lr", "2e-4"))))
    assert [code for code, _ in ends] == [2, 2], ends
    assert "train.lr: 0.0002 on rank 0; 0.0001 on rank 1" in ends[0][1]
    assert not (folder / "run").exists()


@pytest.mark.nightly
def test_other_data_is_named(folder: Path, start: Start) -> None:
    """test_facts.py tells data apart in every run."""
    rows = '{"prompt": "1 + 1", "ground_truth": "2", "data_source": "sums"}\n'
    for name, text in (("a.jsonl", rows * 8), ("b.jsonl", rows.replace("1 + 1", "2 + 0") * 8)):
        (folder / name).write_text(text)
    one, two = plain(free_port())
    commands = [((*c, "--data", name), e) for (c, e), name in ((one, "a.jsonl"), (two, "b.jsonl"))]
    ends = ends_of(start(*commands))
    assert [code for code, _ in ends] == [2, 2], ends
    assert "data.train: " in ends[0][1]
    assert not (folder / "run").exists()


def test_a_file_that_one_rank_lacks_ends_all_ranks(folder: Path, start: Start) -> None:
    one, two = plain(free_port())
    ends = ends_of(start(one, ((*two[0], "--data", "nowhere.jsonl"), two[1])))
    assert [code for code, _ in ends] == [2, 2], ends
    assert "rank 1 on " in ends[0][1]
    assert "nowhere.jsonl" in ends[0][1]
    assert not (folder / "run").exists()


def test_a_directory_that_holds_a_run_is_refused_on_all_ranks(folder: Path, start: Start) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "model.txt").write_text("not a run")
    ends = ends_of(start(*plain(free_port())))
    assert [code for code, _ in ends] == [2, 2], ends
    assert "holds files that are of no run" in ends[0][1]
    assert ends[1][1] == ""


def test_a_port_that_another_program_has_is_named(folder: Path, start: Start) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ((code, said),) = ends_of(start(plain(port)[0]))
    assert code == 2, said
    assert f"rank 0: port {port} is taken" in said
