"""A server of samples: one engine, whose weights and work come over HTTP (see `wire`)."""

import hmac
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from reftune.problem import UserError
from reftune.sampling.vllm.engine import VllmEngine
from reftune.sampling.vllm.sampler import SETTING, Draw, EngineSettings
from reftune.sampling.vllm.wire import BEAT_SECONDS, OTHER_WEIGHTS, as_rows, authorization

STALE = 600.0  # seconds without another part: whoever sent these weights has died
MakeEngine = Callable[[EngineSettings], VllmEngine]


class SampleServer(ThreadingHTTPServer):
    """Answers trainers, each request in a thread; all draw from one engine.

    Args:
        address: host and port to listen at; port 0: any that is free.
        make_engine: builds the engine when the first trainer says what for.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], make_engine: MakeEngine) -> None:
        super().__init__(address, _Handler)
        self.make_engine, self.opening = make_engine, threading.Lock()
        self.engine: VllmEngine | None = None
        self.files = Path(tempfile.mkdtemp(prefix="reftune-weights-"))

    def open(self, settings: EngineSettings) -> None:
        """Build the engine; raise UserError where there is one for something else."""
        with self.opening:
            if self.engine is None:
                self.engine = self.make_engine(settings)
            elif self.engine.settings != settings:
                raise UserError("its engine was built for another model or other lengths; start it anew")

    def opened(self) -> VllmEngine:
        """Return the engine; raise UserError where there is none yet."""
        if self.engine is None:
            raise UserError("it has no engine yet, for it was started anew; start the run again, too")
        return self.engine

    def place(self, version: str) -> Path:
        """Return where files of these weights lie, whatever the version is called."""
        return self.files / version.encode().hex()

    def begin(self, version: str) -> Path:
        """Make room for weights that come, also by leaving out what has stopped coming."""
        with self.opening:
            for place in self.files.iterdir():
                if time.time() - place.stat().st_mtime > STALE:
                    shutil.rmtree(place, ignore_errors=True)
        place = self.place(version)
        place.mkdir(exist_ok=True)
        return place

    def load(self, version: str) -> None:
        """Let the engine take over the files that have come."""
        try:
            self.opened().load_files(self.place(version), version)
        finally:
            shutil.rmtree(self.place(version), ignore_errors=True)

    def server_close(self) -> None:
        """Close the port, and leave no file behind."""
        super().server_close()
        shutil.rmtree(self.files, ignore_errors=True)


class _Handler(BaseHTTPRequestHandler):
    server: SampleServer

    def do_GET(self) -> None:
        self._answer(lambda: {"reftune": "server of samples", "open": self.server.engine is not None})

    def do_PUT(self) -> None:
        self._answer(self._keep_part)

    def do_POST(self) -> None:
        if self.path == "/draw":
            self._draw()
        else:
            self._answer(self._act)

    def _act(self) -> dict[str, Any]:
        given = self._body()
        if self.path == "/open":
            self.server.open(EngineSettings(**given))
        elif self.path == "/load":
            self.server.load(given["version"])
        else:
            raise UserError(f"there is no {self.path}")
        return {}

    def _keep_part(self) -> dict[str, Any]:
        _, _, version, number = self.path.split("/")
        place = self.server.begin(version)
        left = int(self.headers["Content-Length"])
        with (place / f"{int(number):05d}.safetensors").open("wb") as file:
            while left and (read := self.rfile.read(min(left, 2**20))):
                left -= file.write(read)
        if left:
            raise UserError("the weights have not come whole")
        return {}

    def _draw(self) -> None:
        if not self._allowed():
            return
        given = self._body()
        version, engine = given.pop("version"), self.server.engine
        if engine is None or engine.version != version:
            told = "its weights are not this run's: it was started anew, or another run uses it"
            self._say(OTHER_WEIGHTS, {"error": told})
            return
        self.send_response(200)
        self.end_headers()
        said = time.monotonic()
        with closing(engine.steps(Draw(**given), version)) as steps:
            for found in steps:
                now = time.monotonic()
                if found or now - said > BEAT_SECONDS:  # a trainer that has left is noticed, too
                    self.wfile.write(json.dumps(as_rows(found)).encode() + b"\n" if found else b"\n")
                    said = now

    def _answer(self, act: Callable[[], dict[str, Any]]) -> None:
        if not self._allowed():
            return
        try:
            self._say(200, act())
        except UserError as error:
            self._say(400, {"error": str(error).removeprefix(f"{SETTING}: ")})
        except Exception as error:
            self._say(500, {"error": f"{type(error).__name__}: {error}"})
            raise

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        if hmac.compare_digest(given.encode(), authorization().encode()):
            return True
        self._say(403, {"error": "REFTUNE_VLLM_TOKEN is not the same on both sides"})
        return False

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _say(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of single requests."""
