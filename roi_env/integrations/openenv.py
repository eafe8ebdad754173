"""OpenEnv: exams as a served environment, and their client. A session is an environment of its own; sessions run side by side.

:class:`Exam` at the client has the methods of :class:`roi_env.integrations.text_exam.TextExam`, so that what takes exams in this
process takes them over the wire too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field

from roi_env.integrations.text_exam import TextExam


class ExamAction(Action):
    """A decision about the task under way."""

    level: int = Field(ge=0, description="0: skip the task; k: think about it at level k, 1 is the cheapest")


class ExamObservation(Observation):
    """What is told after a decision. ``reward``: the weight of a right answer."""

    text: str = Field(default="", description="The outcome, and the next task")
    remaining: int = Field(default=0, description="Tokens left")
    budget: int = Field(default=0, description="Tokens for the whole exam")
    score: float = Field(default=0.0, description="Right answers so far, weighted")
    legal: list[bool] = Field(default_factory=list, description="By level from 0, whether it fits what is left")


class ExamState(State):
    """Where a session stands."""

    exam_id: int = 0
    replicate: int = 0
    score: float = 0.0
    spent: int = 0


class ExamEnvironment(Environment[ExamAction, ExamObservation, ExamState]):
    """One session's exams.

    :param settings: of :class:`roi_env.envs.single.ROIReasoningEnv`.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        self._exam = TextExam(0, **settings)
        self._state = ExamState()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        exam_id: int | None = None,
        replicate: int = 0,
        **_: Any,
    ) -> ExamObservation:
        """Begin the exam ``(seed, exam_id, replicate)``; without an ``exam_id`` the next one."""
        if seed is not None and seed != self._exam.seed:
            self._exam = TextExam(seed, **self._settings)
            self._state.exam_id = -1
        following = max(self._state.exam_id + bool(self._state.episode_id or seed is not None), 0)
        number = following if exam_id is None else exam_id
        text = self._exam.begin(number, replicate)
        name = episode_id or f"{self._exam.seed}-{number}-{replicate}"
        self._state = ExamState(episode_id=name, exam_id=number, replicate=replicate)
        return self._observe(text, None)

    def step(self, action: ExamAction, timeout_s: float | None = None, **_: Any) -> ExamObservation:
        """Decide the task under way.

        :raises ValueError: for a level that there is not, or an exam that is over.
        """
        before = self._exam.score
        text = self._exam.attempt(action.level) if action.level else self._exam.skip()
        self._state.step_count += 1
        self._state.score, self._state.spent = self._exam.score, self._exam.spent
        return self._observe(text, self._exam.score - before)

    @property
    def state(self) -> ExamState:
        """Where the session stands."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """Name and words."""
        about = "A batch of problems, one token budget: before each problem, skip it or choose how long to think."
        return EnvironmentMetadata(name="roi-exam", description=about, version="0.1.0")

    def _observe(self, text: str, reward: float | None) -> ExamObservation:
        exam = self._exam
        return ExamObservation(
            text=text, remaining=exam.remaining, budget=exam.budget, score=exam.score, legal=exam.legal, done=exam.done,
            reward=reward,
        )  # fmt: skip


class ExamEnv(EnvClient[ExamAction, ExamObservation, ExamState]):
    """The client: ``with ExamEnv(base_url=...).sync() as env: env.reset(seed=0, exam_id=7)``."""

    def _step_payload(self, action: ExamAction) -> dict[str, Any]:
        return {"level": action.level}

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[ExamObservation]:
        done, reward = bool(payload.get("done", False)), payload.get("reward")
        observation = ExamObservation(**{**payload.get("observation", {}), "done": done, "reward": reward})
        return StepResult(observation=observation, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> ExamState:
        return ExamState(**payload)


class Exam:
    """Exams at a server, with the methods and values of :class:`roi_env.integrations.text_exam.TextExam`.

    :param url: of the server.
    """

    def __init__(self, url: str, seed: int = 0) -> None:
        self.client = ExamEnv(base_url=url).sync()
        self.client.connect()
        self.seed, self.done, self.score, self.remaining, self.budget = seed, True, 0.0, 0, 0

    def begin(self, exam_id: int, replicate: int = 0) -> str:
        """Start an exam and tell it."""
        return self._take(self.client.reset(seed=self.seed, exam_id=exam_id, replicate=replicate))

    def attempt(self, level: int) -> str:
        """Think about the task under way at a level."""
        return self._take(self.client.step(ExamAction(level=level)))

    def skip(self) -> str:
        """Leave it out."""
        return self._take(self.client.step(ExamAction(level=0)))

    def close(self) -> None:
        """End the session."""
        self.client.close()

    def _take(self, result: StepResult[ExamObservation]) -> str:
        seen = result.observation
        self.done, self.score, self.remaining, self.budget = result.done, seen.score, seen.remaining, seen.budget
        return seen.text


def application(sessions: int = 8, **settings: Any) -> Any:
    """The server as an ASGI application.

    :param sessions: most at a time.
    :param settings: of :class:`roi_env.envs.single.ROIReasoningEnv`.
    :raises ValueError: for settings out of range.
    """
    TextExam(0, **settings)
    return create_app(
        partial(ExamEnvironment, **settings), ExamAction, ExamObservation, env_name="roi-exam", state_cls=ExamState,
        max_concurrent_envs=sessions,
    )  # fmt: skip
