"""What the launch variables and a scheduler may say, and how many processes follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rlcli import launcher
from rlcli.cli.main import main
from rlcli.config.resolved import Resolved
from rlcli.config.resolver import resolve
from rlcli.config.schema import Config, TrainConfig, defaults
from rlcli.distributed.process_count import check_processes, fit_to_env, num_local, read_node
from rlcli.distributed.rank_env import RankEnv, read_rank
from rlcli.doctor import gpu
from rlcli.errors import ConfigError, LaunchError
from rlcli.system.hardware import Gpu
from rlcli.system.packages import Package


def run(nnodes: int = 1, n_gpus: int | None = None) -> Resolved:
    sources = dict.fromkeys(defaults(), "default")
    sources |= {"train.nnodes": "env NNODES", "train.n_gpus": "env N_GPUS"}
    config = Config(train=TrainConfig(nnodes=nnodes, n_gpus=n_gpus))
    return Resolved(config=config, sources=sources, notes=[], explicit=frozenset())


def read(nnodes: int, **env: str):
    return read_node(run(nnodes).config, env)


def notes(
    resolved: Resolved,
    num_visible_gpus: int | None = 0,
    here: int | None = None,
    /,
    **env: str,
) -> list[str]:
    return check_processes(
        resolved,
        env,
        num_processes=here or num_local(resolved.config, num_visible_gpus or 0),
        num_visible_gpus=num_visible_gpus,
        num_cores=4,
    )


def test_nothing_set_is_node_0_at_torchs_port() -> None:
    launch = read(1)
    assert (launch.node_rank, launch.master_addr, launch.master_port) == (0, "", 29500)


def test_the_guides_second_node_is_read() -> None:
    launch = read(2, NODE_RANK="1", MASTER_ADDR="192.168.1.1", MASTER_PORT="29501")
    assert (launch.node_rank, launch.master_addr, launch.master_port) == (1, "192.168.1.1", 29501)


def test_an_empty_variable_counts_as_unset() -> None:
    assert read(2, NODE_RANK="", MASTER_ADDR=" ", MASTER_PORT="") == read(2)


def test_an_ipv6_address_is_an_address() -> None:
    assert read(2, MASTER_ADDR="fe80::1").master_addr == "fe80::1"


@pytest.mark.parametrize("rank", ["2", "-1", "one", "1.0", "\u0661", "9" * 5000])
def test_a_rank_outside_the_nodes_is_refused(rank: str) -> None:
    with pytest.raises(ConfigError, match=r"NODE_RANK=.*out of range: train.nnodes is 2"):
        read(2, NODE_RANK=rank, MASTER_ADDR="a")


def test_a_second_rank_without_nnodes_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match="Set NNODES to the number of nodes"):
        read(1, NODE_RANK="1", MASTER_ADDR="a")


def test_a_rank_needs_the_address_of_node_0() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set"):
        notes(run(2), NODE_RANK="0")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "29500.0"])
def test_a_port_is_a_number_up_to_65535(port: str) -> None:
    with pytest.raises(ConfigError, match=r"MASTER_PORT=.*from 1 to 65535"):
        read(1, MASTER_PORT=port)


@pytest.mark.parametrize("address", ["http://a", "two words", "a/b"])
def test_an_address_is_one_word(address: str) -> None:
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=.*expected the host name"):
        read(2, NODE_RANK="0", MASTER_ADDR=address)


def test_a_port_in_the_address_is_told_apart() -> None:
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=10\.0\.0\.1:29501 .*into MASTER_PORT"):
        read(2, NODE_RANK="0", MASTER_ADDR="10.0.0.1:29501")


def test_launch_variables_of_one_node_are_not_used() -> None:
    said = notes(run(), NODE_RANK="0", MASTER_ADDR="a")
    assert said == ["not used: env NODE_RANK, env MASTER_ADDR (train.nnodes is 1; set NNODES)."]


def test_nodes_without_an_address_are_refused_with_what_to_type() -> None:
    with pytest.raises(LaunchError, match="cannot find each other") as caught:
        notes(run(nnodes=2))
    said = str(caught.value)
    assert said.startswith("train.nnodes=2 (from env NNODES), but MASTER_ADDR is not set")
    assert "NNODES=2 NODE_RANK=0 MASTER_ADDR=192.168.1.1 ./train.sh" in said
    assert said.count("\n") < 3


def test_nodes_and_their_processes_are_counted() -> None:
    env = {"NODE_RANK": "1", "MASTER_ADDR": "a"}
    assert notes(run(2, 8), 8, **env) == [
        "2 nodes x 8 processes train together, on a GPU each."
    ]  # fmt: skip
    assert notes(run(2), **env) == ["2 nodes x 1 processes train together, on the CPU."]
    assert notes(run(1, 2)) == ["2 processes train together, on the CPU."]
    assert notes(run()) == []


def test_more_processes_than_cores_are_slow_without_gpus_alone() -> None:
    assert notes(run(n_gpus=8))[1] == "more processes (8) than cores (4): fewer are faster."
    assert len(notes(run(n_gpus=4))) == len(notes(run(n_gpus=8), 8)) == 1


def test_more_processes_than_gpus_are_refused_with_the_cure() -> None:
    with pytest.raises(LaunchError, match="this machine shows 2") as caught:
        notes(run(n_gpus=8), 2)
    assert "train.n_gpus=8 (from env N_GPUS)" in str(caught.value)
    assert "Set N_GPUS=2" in str(caught.value)
    on_cpu = run(n_gpus=8).override({"train.device": "cpu"})
    assert "on the CPU" in notes(on_cpu, 2)[0]


def test_processes_without_gpus_are_as_many_as_cores_can_bear() -> None:
    assert notes(run(n_gpus=32))[1] == "more processes (32) than cores (4): fewer are faster."
    for resolved in (run(n_gpus=1000), run(n_gpus=33).override({"train.device": "cpu"})):
        for num_gpus in (0, 64)[: 1 + (resolved.config.train.device == "cpu")]:
            with pytest.raises(LaunchError) as caught:
                notes(resolved, num_gpus)
            assert str(caught.value) == (
                f"train.n_gpus={resolved.config.train.n_gpus} (from env N_GPUS), but without GPUs "
                "this machine takes 32 processes at most, 8 for each of 4 cores.\n"
                "Set N_GPUS=4, or see CUDA_VISIBLE_DEVICES and rlcli doctor."
            )
    assert notes(run(n_gpus=64), 64) == ["64 processes train together, on a GPU each."]
    assert notes(run(n_gpus=64), None)  # the GPUs were not counted yet


def test_every_gpu_has_a_process_where_nobody_says_how_many() -> None:
    assert [num_local(run().config, gpus) for gpus in (0, 1, 8)] == [1, 1, 8]
    assert num_local(run(n_gpus=2).config, 8) == 2
    assert notes(run(), 8) == [
        "8 processes train together, on a GPU each.",
        "all 8 GPUs are used, as train.n_gpus is not set. N_GPUS=1 uses one.",
    ]
    assert notes(run(n_gpus=1), 4) == notes(run(), 1) == []


def test_gpus_that_the_environment_lets_through_are_what_a_run_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[int] = []

    def launch(resolved: Resolved, env: Mapping[str, str], cwd: Path, *, num_gpus: int) -> int:
        taken.append(num_gpus)
        return 0

    cards = [Gpu(f"card {number}", 81559, 0, "570.86") for number in range(4)]
    monkeypatch.setattr(gpu, "ask_driver", lambda: (cards, None))
    monkeypatch.setattr(gpu, "installed", lambda names: {"torch": Package("2.13.0", "cu130")})
    monkeypatch.setattr(gpu, "ask_torch", lambda: ({"seen": 3, "cuda": "13.0", "said": []}, None))
    monkeypatch.setattr(launcher, "launch", launch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,3")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--preset", "quickstart", "--data", "nowhere.jsonl"]
    codes: list[object] = []
    for more in ([], ["--n_gpus", "2"], ["--n_gpus", "1"], ["train.device=cpu"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        codes.append(ended.value.code)
    assert (codes, taken) == ([0, 0, 2, 2], [3, 3])
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_gpus_that_nvidia_smi_and_torch_do_not_both_see_are_told() -> None:
    assert notes(run(), 8, 1) == [
        "this run uses 1 of 8 GPUs: nvidia-smi does not show the others. "
        "--n_gpus 8 trains on all of them."
    ]
    for seen in (0, 7):
        with pytest.raises(LaunchError) as caught:
            notes(run(), seen, 8)
        assert f"nvidia-smi shows 8 GPUs, but torch finds {seen}.\n" in str(caught.value)
        assert f"set N_GPUS={max(1, seen)}." in str(caught.value)


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "a", "TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "2"}


def ranks(**env: str) -> RankEnv:
    found = read_rank(TORCHRUN | env)
    assert found is not None
    return found


def test_ranks_of_a_launcher_need_no_settings_and_are_counted() -> None:
    open_run = replace(run(), sources=run().sources | {"train.nnodes": "default"})
    fitted = fit_to_env(open_run, ranks(), {})
    assert fitted.config.train.nnodes == 2
    assert fitted.notes == ["4 processes train together, started by torchrun."]
    assert fit_to_env(run(2, 2), ranks(), {}).config == run(2, 2).config


@pytest.mark.parametrize(("nnodes", "n_gpus"), [(2, 8), (2, 1), (1, None), (4, 2)])
def test_other_numbers_than_the_launcher_started_are_refused(
    nnodes: int, n_gpus: int | None
) -> None:
    with pytest.raises(LaunchError, match="but torchrun started 2 ") as caught:
        fit_to_env(run(nnodes, n_gpus), ranks(), {})
    assert "\n" not in str(caught.value)


def test_one_node_of_several_does_not_train_alone() -> None:
    for env in (
        {"SLURM_NNODES": "2", "SLURM_NODELIST": "a[1-2]", "SLURM_NODEID": "1", "SLURM_PROCID": "1"},
        {"KUBERNETES_SERVICE_HOST": "k", "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "m"},
    ):
        with pytest.raises(LaunchError, match="would train a model of its own"):
            fit_to_env(run(), None, env)
    batch_script = {"SLURM_NNODES": "2", "SLURM_NODELIST": "a[1-2]", "SLURM_NODEID": "0"}
    batch_script |= {"SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}
    assert fit_to_env(run(), None, batch_script).config.train.nnodes == 1


SLURM = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "gpu[07-09]"}


def test_a_scheduler_s_nodes_count_where_nobody_said_another_number() -> None:
    open_run = replace(run(), sources=run().sources | {"train.nnodes": "default"})
    counted = fit_to_env(open_run, None, SLURM)
    assert counted.config.train.nnodes == 3
    assert counted.sources["train.nnodes"] == "env SLURM_JOB_NUM_NODES"
    launch = read_node(counted.config, SLURM)
    assert (launch.node_rank, launch.master_addr, launch.master_port) == (2, "gpu07", 29500)
    said = check_processes(counted, SLURM, num_processes=1, num_visible_gpus=0, num_cores=4)
    assert said[0] == "SLURM: this is node 2 of 3, node 0 is gpu07."

    given = fit_to_env(run(), None, SLURM)
    assert given.config.train.nnodes == 1
    assert given.notes == [
        "SLURM gave this job 3 nodes, but train.nnodes=1 (from env NNODES) is used."
    ]
    assert fit_to_env(open_run, None, {}) is open_run


def test_what_the_user_says_beats_the_scheduler() -> None:
    env = {**SLURM, "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29600"}
    launch = read(3, **env)
    assert (launch.node_rank, launch.master_addr, launch.master_port) == (1, "10.0.0.1", 29600)
    assert launch.scheduler == ""
    partly = read(3, **SLURM, MASTER_ADDR="10.0.0.1")
    assert (partly.node_rank, partly.master_addr, partly.scheduler) == (2, "10.0.0.1", "SLURM")


def test_a_pod_is_one_node() -> None:
    pods = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "WORLD_SIZE": "2", "RANK": "1"}
    pods |= {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
    open_run = replace(run(), sources=run().sources | {"train.nnodes": "default"})
    launch = read_node(fit_to_env(open_run, None, pods).config, pods)
    assert (launch.node_rank, launch.master_addr, launch.is_pod) == (1, "job-master-0", True)


def test_a_rank_of_rlcli_s_own_agent_has_the_agent_s_notes_and_numbers() -> None:
    own = ranks(RLCLI_AGENT=json.dumps({"pid": 1, "notes": ["two of two"]}))
    assert own.launcher == "rlcli"
    assert fit_to_env(run(2, 1), own, {}).notes == ["two of two"]
    fitted = fit_to_env(run(4, 1), own, {})  # a run that has lost two nodes
    assert fitted.config.train.nnodes == 2
    assert fitted.notes == []


def test_a_run_may_go_on_with_fewer_nodes() -> None:
    resolved = resolve(flags={}, overrides=[], files=[], env={"NNODES": "1:2"})
    launch = read_node(resolved.config, {"NODE_RANK": "1", "MASTER_ADDR": "a"})
    assert (launch.min_nodes, launch.nnodes) == (1, 2)
    assert read(2, NODE_RANK="1", MASTER_ADDR="a").min_nodes == 2
    resolved = resolve(flags={}, overrides=[], files=[], env={"NNODES": "3:2"})
    with pytest.raises(ConfigError, match="min_nodes=3 is more than"):
        read_node(resolved.config, {"MASTER_ADDR": "a"})


def served(**train: int | None) -> Resolved:
    resolved = run(**train)
    rollout = resolved.config.rollout.model_copy(
        update={"engine": "vllm_server", "replicas": 2, "tensor_parallel": 2}
    )
    return replace(resolved, config=resolved.config.model_copy(update={"rollout": rollout}))


def test_servers_of_vllm_have_gpus_of_their_own() -> None:
    assert num_local(served().config, 8) == 4
    assert num_local(served().config, 0) == 1
    assert not [note for note in notes(served(), 8, 4) if "not set" in note and "of 8" in note]
    with pytest.raises(LaunchError, match=r"6 to train and 4 for vLLM's servers .* the 8 of"):
        notes(served(n_gpus=6), 8, 6)
    assert notes(served(n_gpus=4), 8, 4)


def test_servers_are_started_for_one_machine_only() -> None:
    with pytest.raises(LaunchError, match=r"(?s)starts servers for one machine.*rollout\.url"):
        notes(served(nnodes=2, n_gpus=1), 8, 1, MASTER_ADDR="10.0.0.1", NODE_RANK="0")
    with pytest.raises(LaunchError, match="starts servers for one machine"):
        fit_to_env(served(nnodes=2), ranks(), {})
