"""One node: exit codes, deaths of ranks, new starts, signals, and that nobody is left behind."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launched import Lead, command_of, is_alive, start_node
from waiting import wait_until

from rlcli.run_dir.folder import RunDir

pytestmark = pytest.mark.slow  # threads of the tests wait for processes

WAIT = "time.sleep(60)\n"


@pytest.fixture
def lead(tmp_path: Path) -> Lead:
    return Lead(tmp_path)


def meanwhile(do: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def signals_here(lead: Lead, *numbers: int) -> Callable[[], None]:
    """Sends signals to this process once rank 0 is ready."""

    def send() -> None:
        wait_until((lead.run_dir / "ready").exists)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    return send


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 130])
def test_the_exit_code_is_that_of_rank_0(lead: Lead, code: int) -> None:
    assert lead(f"if rank: time.sleep(60)\nsys.exit({code})", leave_s=0.0) == code
    assert lead.told == []


@pytest.mark.nightly
def test_20_of_20_killed_ranks_are_followed_by_a_fresh_start(lead: Lead) -> None:
    chance = random.Random(0)
    killed: list[int] = []

    def kill() -> None:
        for number in range(20):
            pids = [lead.pid(rank, number) for rank in range(2)]
            killed.append(chance.randrange(2))
            os.kill(pids[killed[-1]], signal.SIGKILL)

    thread = meanwhile(kill)
    script = "if relaunches < 20: time.sleep(60)\nwrite(f'port_{rank}')\nawait_file('port_0')\n"
    begin_s = time.monotonic()
    assert lead(script, restarts=20) == 0
    assert time.monotonic() - begin_s < 60
    thread.join()
    assert len(lead.told) == 20
    for number, (rank, said) in enumerate(zip(killed, lead.told, strict=True), start=1):
        assert said == (
            f"rank {rank} was killed (SIGKILL); starting again from the beginning "
            f"({number} of 20 in 10 minutes)"
        )


def test_the_new_start_names_the_step_it_begins_at(lead: Lead) -> None:
    script = (
        "(folder / 'checkpoints' / 'step_12').mkdir(parents=True, exist_ok=True)\n"
        "await_file('pid_1_0')\n"
        "if not relaunches and rank == 1: os.kill(os.getpid(), 9)\n"
        "if not relaunches: time.sleep(60)\n"
    )
    assert lead(script) == 0
    assert lead.told[0].endswith("starting again from step 12 (1 of 3 in 10 minutes)")


DIES_FIRST = """
write(f"resume_{rank}_{relaunches}")
await_file(f"resume_{1 - rank}_{relaunches}")
if relaunches: sys.exit(0)
BEGIN
if rank: await_file("begun"); os.kill(os.getpid(), 9)
write("begun")
time.sleep(60)
"""
"""Both say what they go on from; in the first start rank 1 dies once rank 0 did BEGIN."""
BEGUN = "if not rank: write('status.json', json.dumps({'state': 'running', 'step': STEP}))"


@pytest.mark.parametrize("asked", [3, "no", "newest"])
def test_a_new_start_before_the_run_has_begun_goes_on_from_what_was_asked(
    lead: Lead, asked: int | str
) -> None:
    for step in (3, 9):
        (lead.run_dir / "checkpoints" / f"step_{step}").mkdir(parents=True)
    lead.resume = asked  # type: ignore[assignment]
    assert lead(DIES_FIRST.replace("BEGIN", "")) == 0
    where = {3: "from step 3", "no": "from the beginning", "newest": "from step 9"}[asked]
    assert f"; starting again {where} (1 of 3" in lead.told[0]


def test_the_fourth_death_ends_the_run(lead: Lead) -> None:
    script = (
        "write('status.json', json.dumps({'state': 'running', 'step': 7}))\n"
        "if rank: os.kill(os.getpid(), 9)\n" + WAIT
    )
    assert lead(script) == 1
    assert len(lead.told) == 4
    assert lead.told[3].endswith("giving up after 3 new starts in 10 minutes")
    status = RunDir(lead.run_dir).status()
    assert status is not None
    assert (status["state"], status["step"], status["resumable"]) == ("failed", 7, False)
    assert status["reason"] == lead.told[3]


def test_the_root_is_the_killed_rank_and_not_who_lost_contact(lead: Lead) -> None:
    script = (
        "if relaunches: sys.exit(0)\n"
        "await_file('pid_2_0')\n"
        "if rank < 2: sys.exit(70)\n"
        "time.sleep(0.4)\nos.kill(os.getpid(), 9)\n"
    )
    assert lead(script, num=3) == 0
    assert lead.told[0].startswith("rank 2 was killed (SIGKILL); starting again")


def test_lost_contact_alone_is_a_reason_to_start_again(lead: Lead) -> None:
    script = "if rank and not relaunches: time.sleep(60)\nsys.exit(0 if relaunches else 70)\n"
    assert lead(script, linger_s=0.1) == 0
    assert lead.told[0].startswith("rank 0 lost contact with another rank; starting again")


def test_the_error_of_a_rank_ends_the_run_with_its_last_words(lead: Lead) -> None:
    log = "old\na\n[rank1]:   b\n   ^^~~\n\nc"
    script = f"if rank:\n    print({log!r})\n    sys.exit(3)\n{WAIT}"
    assert lead(script, linger_s=0.1) == 3
    assert lead.told == ["rank 1 ended with exit code 3; its last words: a / b / c"]


def test_last_words_are_those_of_this_start(lead: Lead) -> None:
    script = "if rank: print('start', relaunches, flush=True); os.kill(os.getpid(), 11)\n" + WAIT
    lead(script, restarts=1)
    assert "rank 1 was killed (SIGSEGV); its last words: start 0; " in lead.told[0]
    assert "its last words: start 1; giving up" in lead.told[1]
    lines = (lead.run_dir / "rank_1.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("start")] == ["start 0", "start 1"]


def test_rank_0_may_end_by_itself_after_another_s_error(lead: Lead) -> None:
    script = "if rank: sys.exit('no memory')\nawait_file('pid_1_0')\ntime.sleep(0.3)\nsys.exit(1)\n"
    assert lead(script) == 1
    assert lead.told == []  # rank 0 has said it


def test_a_wrong_setting_is_told_once_and_leaves_nothing(tmp_path: Path) -> None:
    lead = Lead(tmp_path / "outputs" / "one")
    lead.folder.mkdir(parents=True)
    script = (
        "if rank:\n    while (folder / 'pid_1_0').exists(): time.sleep(0.01)\n    sys.exit(2)\n"
        "await_file('pid_1_0')\n[path.unlink() for path in folder.glob('pid*')]\nsys.exit(2)\n"
    )
    assert lead(script) == 2
    assert lead.told == []
    assert not lead.run_dir.exists()


def test_a_refusal_leaves_a_run_that_was_there_as_it_was(lead: Lead) -> None:
    lead.run_dir.mkdir()
    (lead.run_dir / "status.json").write_text('{"state": "finished", "step": 3}')
    assert lead("print('wrong', flush=True)\nawait_file('pid_1_0')\nsys.exit(2)\n") == 2
    assert "finished" in (lead.run_dir / "status.json").read_text()


def test_a_rank_may_end_well_before_rank_0(lead: Lead) -> None:
    assert lead("if rank: sys.exit(0)\nawait_file('pid_1_0')\ntime.sleep(0.3)\n") == 0
    assert lead.told == []


def test_a_rank_that_dies_after_the_end_is_none_that_is_missed(lead: Lead) -> None:
    script = (
        "if rank: await_file('status.json'); os.abort()\n"
        "write('status.json', json.dumps({'state': 'finished', 'step': 3}))\ntime.sleep(0.5)\n"
    )
    assert lead(script) == 0
    assert lead.told == []


def test_ranks_that_stay_after_rank_0_are_killed(lead: Lead) -> None:
    begin_s = time.monotonic()
    assert lead("if rank: time.sleep(60)\nawait_file('pid_1_0')\n", leave_s=0.3) == 0
    assert time.monotonic() - begin_s < 40  # not until a sleeper wakes
    assert not is_alive(lead.pid(1))


def test_what_a_killed_rank_has_started_is_killed_too(lead: Lead) -> None:
    script = (
        "import subprocess\n"
        "if relaunches: sys.exit(0)\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "write(f'child_{rank}', str(child.pid))\n"
        "await_file('child_0'); await_file('child_1')\n"
        "if rank: os.kill(os.getpid(), 9)\n" + WAIT
    )
    assert lead(script) == 0
    for rank in (0, 1):
        child = int((lead.run_dir / f"child_{rank}").read_text())
        wait_until(lambda pid=child: not is_alive(pid))


HANDLED = """
def stop(number, frame):
    write(f"signal_{rank}", str(number))
    sys.exit(CODE)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if rank:
    await_file("signal_0")
    sys.exit(0)
await_file("pid_1_0")
write("ready")
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_goes_to_rank_0_alone(lead: Lead, number: int, code: int) -> None:
    meanwhile(signals_here(lead, number))
    assert lead(HANDLED.replace("CODE", str(code))) == code
    assert (lead.run_dir / "signal_0").read_text() == str(int(number))
    assert not (lead.run_dir / "signal_1").exists()
    assert lead.told == []


def test_a_signal_before_rank_0_handles_it_ends_all_at_once(lead: Lead) -> None:
    begin_s = time.monotonic()
    meanwhile(signals_here(lead, signal.SIGTERM))
    assert lead("if not rank: write('ready')\n" + WAIT) == 143
    assert time.monotonic() - begin_s < 40  # not until a sleeper wakes
    assert lead.told == []


def test_a_rank_0_that_loads_and_does_not_listen_is_not_waited_for(lead: Lead) -> None:
    begin_s = time.monotonic()
    meanwhile(signals_here(lead, signal.SIGINT))
    script = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nif not rank: write('ready')\n" + WAIT
    assert lead(script, stop_s=0.3) == 130
    assert time.monotonic() - begin_s < 40  # not until a sleeper wakes
    assert lead.told == []
    assert not (lead.run_dir / "status.json").exists()


def test_a_signal_while_the_other_ranks_leave_ends_the_wait(lead: Lead) -> None:
    begin_s = time.monotonic()
    meanwhile(signals_here(lead, signal.SIGTERM))
    # a signal that finds rank 0 still here is not to end it
    ends = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwrite('ready')\n"
    script = f"if rank: time.sleep(60)\nawait_file('pid_1_0')\n{ends}"
    assert lead(script) == 0
    assert time.monotonic() - begin_s < 40  # not until a sleeper wakes


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_between_two_starts_is_preempted(
    lead: Lead, number: int, code: int
) -> None:
    lead.preempt_exit_code = 85
    script = (
        f"if not relaunches: {BEGUN.replace('STEP', '4').partition(': ')[2]} if not rank else 0\n"
        "(folder / 'checkpoints' / 'step_3').mkdir(parents=True, exist_ok=True)\n"
        "await_file(f'pid_{1 - rank}_{relaunches}')\n"
        "if not relaunches and rank: await_file('status.json'); os.kill(os.getpid(), 9)\n"
        "if relaunches and not rank: write('ready')\n"
    )
    meanwhile(signals_here(lead, number))
    assert lead(script + WAIT, stop_s=0.3) == code
    assert len(lead.told) == 1
    status = RunDir(lead.run_dir).status()
    assert status is not None
    assert (status["state"], status["step"], status["resumable"]) == ("preempted", 4, True)
    assert status["reason"] == ("SIGTERM" if code == 85 else "Ctrl-C")


def test_a_death_after_a_stop_was_asked_for_is_no_reason_either(lead: Lead) -> None:
    script = (
        "signal.signal(signal.SIGTERM, lambda *_: write('asked'))\n"
        "if rank: await_file('asked'); os.kill(os.getpid(), 9)\nwrite('ready')\n" + WAIT
    )
    meanwhile(signals_here(lead, signal.SIGTERM))
    assert lead(script) == 1
    assert lead.told == ["rank 1 was killed (SIGKILL); not started again, as it was asked to stop"]


def test_a_second_ctrl_c_ends_a_rank_0_that_does_not_listen(lead: Lead) -> None:
    script = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nif not rank: write('ready')\n" + WAIT
    meanwhile(signals_here(lead, signal.SIGINT, signal.SIGINT))
    begin_s = time.monotonic()
    assert lead(script, hurry_s=0.3) == 130
    assert time.monotonic() - begin_s < 40  # not until a sleeper wakes
    assert lead.told == ["rank 0 did not end at the second Ctrl-C"]


def test_a_second_run_in_the_directory_is_refused_and_does_not_touch_the_first(
    tmp_path: Path,
) -> None:
    lead = Lead(tmp_path)
    command = command_of("if rank: await_file('go'); os.kill(os.getpid(), 9)\n" + WAIT, tmp_path)
    settings = ("train.n_gpus=2", "train.device=cpu", "run.resume=auto")
    first = start_node(tmp_path, command, *settings, restarts=50)
    pids = [lead.pid(rank) for rank in range(2)]
    second = start_node(tmp_path, command, *settings)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 2
    assert f"run is in use by process {first.pid}. Wait for it, or choose another" in said
    assert all(map(is_alive, pids))
    (lead.run_dir / "go").touch()  # from now on it starts again and again
    lead.pid(1, 1)
    holders = set()
    while not (lead.run_dir / "pid_1_5").exists():
        holders.add(RunDir(lead.run_dir).holder())
    assert holders == {f"process {first.pid}"}
    first.kill()
    first.communicate()


def test_a_rank_is_the_command_as_given_with_the_threads_asked_for(
    tmp_path: Path,
) -> None:
    script = "print(os.environ['OMP_NUM_THREADS'], sys.argv) if not rank else None\n"
    command = (*command_of(script, tmp_path), "a b", "$$x ${rank}")
    node = start_node(tmp_path, command, "train.n_gpus=2", env={"OMP_NUM_THREADS": "3"})
    said, _ = node.communicate(timeout=600)
    assert node.returncode == 0, said
    assert said.startswith("3 [")
    assert said.strip().endswith("'a b', '$$x ${rank}']")
