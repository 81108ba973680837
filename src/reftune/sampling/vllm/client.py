"""An engine behind an address, as a sampler sees it."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from reftune.problem import UserError
from reftune.sampling.vllm import PORT
from reftune.sampling.vllm.sampler import SETTING, Draw, Drawn, EngineSettings
from reftune.sampling.vllm.wire import OTHER_WEIGHTS, authorization, parts

CONNECT_SECONDS = 10.0  # for what the server answers at once
DRAW_SECONDS = 60.0  # without a line, not even a blank one
LOAD_SECONDS = 600.0
OPEN_SECONDS = 1800.0  # an engine may compile for minutes
WAIT_SECONDS, RETRY_SECONDS = 600.0, 0.2  # for weights that another process is sending


class RemoteEngine:
    """The engine of a `reftune serve`.

    Args:
        address: host and port.
        settings: what the engine must be built for.
        sends: whether this process sends the weights: one of those that work together.

    Raises UserError where no server answers, or its engine was built for another model.
    """

    def __init__(self, address: str, settings: EngineSettings, *, sends: bool) -> None:
        self.server = _Server(*parsed(address))
        self.settings, self.sends = settings, sends
        self.server.answer("GET", "/health", b"", CONNECT_SECONDS)
        self._post("/open", asdict(settings), OPEN_SECONDS)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Send weights (see `Engine.load`); where another process does, only go over them."""
        if not self.sends:  # gathering them may need all processes
            for _ in weights:
                pass
            return
        for number, part in enumerate(parts(weights, self.settings.dtype)):
            self.server.answer("PUT", f"/weights/{version}/{number}", part, LOAD_SECONDS)
        self._post("/load", {"version": version}, LOAD_SECONDS)

    def draw(self, draw: Draw, version: str) -> Iterator[Drawn]:
        """Draw responses (see `Engine.draw`); wait where their weights are still on their way."""
        asked = json.dumps(asdict(draw) | {"version": version}).encode()
        deadline = time.monotonic() + (0.0 if self.sends else WAIT_SECONDS)
        left = len(draw.prompts)
        with self.server.asking("POST", "/draw", asked, DRAW_SECONDS, deadline) as answer:
            for line in answer:
                for index, tokens, logprobs in json.loads(line) if line.strip() else ():
                    left -= 1
                    yield Drawn(index, tokens, logprobs)
        if left:
            raise self.server.failure("has stopped while it sampled")

    def _post(self, path: str, value: Any, seconds: float) -> None:
        self.server.answer("POST", path, json.dumps(value).encode(), seconds)


@dataclass(frozen=True)
class _Server:
    """Requests to an address; what goes wrong becomes a UserError that names it."""

    host: str
    port: int

    def answer(self, method: str, path: str, body: bytes, seconds: float) -> bytes:
        """Return the whole answer to a request, for which no part may take longer than so long."""
        with self.asking(method, path, body, seconds) as answer:
            return answer.read()

    @contextmanager
    def asking(
        self, method: str, path: str, body: bytes, seconds: float, deadline: float = 0.0
    ) -> Iterator[HTTPResponse]:
        """Yield the answer to a request; ask again until the deadline while weights are missing."""
        while True:
            connection = HTTPConnection(self.host, self.port, timeout=seconds)
            try:
                connection.request(method, path, body, {"Authorization": authorization()})
                answer = connection.getresponse()
                if answer.status == OTHER_WEIGHTS and time.monotonic() < deadline:
                    time.sleep(RETRY_SECONDS)
                    continue
                if answer.status != 200:
                    raise UserError(f"{self._who} says: {_told(answer.read())}")
                yield answer
                return
            except (OSError, HTTPException) as error:
                raise self.failure(f"does not answer ({error or type(error).__name__})") from error
            finally:
                connection.close()

    @property
    def _who(self) -> str:
        return f"{SETTING}: the server at {self.host}:{self.port}"

    def failure(self, what: str) -> UserError:
        """Return the error that says what the server does wrong."""
        return UserError(f"{self._who} {what}; start `reftune serve` there, then this command again")


def ask_server(address: str) -> None:
    """Raise UserError unless a server answers at an address."""
    _Server(*parsed(address)).answer("GET", "/health", b"", CONNECT_SECONDS)


def parsed(address: str) -> tuple[str, int]:
    """Return host and port of an address; raise UserError where it has none."""
    try:
        found = urlsplit(address if "//" in address else f"//{address}")
        host, port = found.hostname, found.port
    except ValueError:
        host, port = None, None
    if not host or found.scheme not in ("", "http"):
        raise UserError(f'compute.vllm_server: "{address}" is no address; write host:port')
    return host, port or PORT


def _told(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
