"""Requests: prompts of several turns, each turn rendered after the turns before it are answered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specauf_cli.data.chat import SPELLS_CONTROL, Chat
from specauf_cli.types import Message, Prompt


@dataclass(frozen=True)
class Request:
    """One turn of one prompt: ``prompt`` is the rendered chat up to the answer."""

    id: str
    prompt_id: str
    turn: int
    prompt: tuple[int, ...]


class Turns:
    """Yields the requests of one turn after another; every request must be answered before the next turn is taken.

    A request of more than ``longest`` tokens (None: no limit), or with a control token written out in its text, is
    skipped and counted in ``skipped`` by reason, as are the turns after it. ``whose``: the model whose context it is.
    """

    def __init__(self, prompts: Sequence[Prompt], chat: Chat, longest: int | None, whose: str) -> None:
        self.prompts = {p.id: p for p in prompts}
        self.chat, self.longest, self.whose = chat, longest, whose
        self.talk: dict[str, list[Message]] = {p.id: [] for p in prompts}
        self.skipped: dict[str, int] = {}

    def __iter__(self) -> Iterator[list[Request]]:
        for turn in range(max((len(p.turns) for p in self.prompts.values()), default=0)):
            taking_part = [p for p in self.prompts.values() if len(p.turns) > turn]
            yield [r for p in taking_part if (r := self._request(p, turn)) is not None]

    def _request(self, prompt: Prompt, turn: int) -> Request | None:
        talk = self.talk[prompt.id]
        if len(talk) < 2 * turn:
            return self._skipped("an earlier turn was skipped")
        asked = [*talk, Message("user", prompt.turns[turn])]
        if self.chat.control_token(*(m.content for m in asked)) is not None:
            return self._skipped(SPELLS_CONTROL)
        tokens = self.chat.prompt(asked)
        if self.longest is not None and len(tokens) > self.longest:
            return self._skipped(f"prompt longer than the {self.whose}'s context")
        return Request(f"{prompt.id}#{turn}", prompt.id, turn, tokens)

    def _skipped(self, reason: str) -> Request | None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        return None

    def answer(self, request: Request, text: str) -> None:
        """Stores the answer to ``request``; the prompt's next turn follows it."""
        question = self.prompts[request.prompt_id].turns[request.turn]
        self.talk[request.prompt_id] += [Message("user", question), Message("assistant", text)]
