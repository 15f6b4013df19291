"""A supervisor of any node but 0: it does what node 0 says, and tells how its ranks fare."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rlcli.doctor.nodes.meeting import interface_of
from rlcli.doctor.nodes.wire import Channel, StrangerError, whole_number
from rlcli.errors import LaunchError, TrainingError, UsageError
from rlcli.supervisor.job import Death, Job
from rlcli.supervisor.nodes import BEAT_S, TURN_S, join, read_start, tell_death
from rlcli.supervisor.processes import Ranks
from rlcli.supervisor.signals import Signals


def follow(job: Job, *, tell: Callable[[str], None], wait: Callable[[str], None]) -> int:
    """The exit code that node 0 decides on.

    Raises: LaunchError where the nodes cannot start together; TrainingError where node 0 was lost
    and does not come back.
    """
    channel = join(job, wait)
    while True:
        wait("")
        with Signals() as signals:
            code = _Follower(job, channel, signals, tell).serve()
            if code is not None:
                signals.ignore()
        if code is not None:
            return code
        tell("node 0 is lost or starts again; the ranks of this node are stopped until it is back.")
        try:
            channel = join(job, wait)
        except LaunchError as error:
            raise TrainingError(f"node 0 did not come back: {error}") from error


class _Follower:
    """One line to node 0, from the meeting until one of the two ends it."""

    def __init__(
        self, job: Job, channel: Channel, signals: Signals, tell: Callable[[str], None]
    ) -> None:
        self._job = job
        self._channel = channel
        self._signals = signals
        self._tell = tell
        self._ranks: Ranks | None = None
        self._code: int | None = None
        self._heard_s = time.monotonic()
        self._beat_s = 0.0

    def serve(self) -> int | None:
        """The exit code; None where node 0 is gone."""
        try:
            while self._code is None:
                self._turn()
            return self._code
        except (OSError, StrangerError):
            return None
        finally:
            if self._ranks is not None:
                self._ranks.kill()
            self._channel.close()

    def _turn(self) -> None:
        now_s = time.monotonic()
        messages = self._channel.read(TURN_S)
        if messages:
            self._heard_s = now_s
        elif now_s - self._heard_s > self._job.limits.silence_s:
            raise ConnectionResetError
        for message in messages:
            self._obey(message)
        if self._code is None:
            self._speak(now_s)

    def _speak(self, now_s: float) -> None:
        """What has come to pass here, and that this node is there."""
        if self._ranks is not None:
            for death in self._ranks.deaths():
                self._channel.send(tell_death(death))
        for number in self._signals.take():
            self._channel.send({"signal": number})
        if now_s - self._beat_s >= BEAT_S:
            self._beat_s = now_s
            self._channel.send({"beat": 0})

    def _obey(self, message: dict[str, Any]) -> None:
        if "start" in message:
            self._start(message["start"])
        elif "kill" in message:
            if self._ranks is not None:
                self._ranks.kill()
            self._channel.send({"killed": 0})
        elif "end" in message:
            self._end(message["end"])

    def _end(self, said: object) -> None:
        if not isinstance(said, dict):
            raise StrangerError
        code, leave_ms = whole_number(said.get("code")), whole_number(said.get("leave_ms"))
        self._channel.close()  # node 0 waits for that
        if self._ranks is not None:
            self._ranks.wait(leave_ms / 1000, self._signals)
            self._ranks.kill()
            if said.get("is_void") is True:
                self._ranks.logs.forget()
                if code == UsageError.exit_code:
                    self._tell("the run was refused before it began; node 0 says why.")
        self._code = code

    def _start(self, said: object) -> None:
        launch = self._job.launch
        interface = interface_of(self._channel.own_address)
        start = read_start(said, launch.master_addr or "", interface)
        try:
            self._ranks = Ranks(self._job, start)
        except OSError as error:
            rank = launch.node_rank * self._job.num_local
            words = f"{start.run_dir}: {error.strerror}"
            self._channel.send(tell_death(Death(rank=rank, code=2, words=words)))
