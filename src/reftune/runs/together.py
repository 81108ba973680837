"""How the processes of a run end together: where one fails or dies, no other waits for it for long.

Each gives signs of life in the launcher's key-value store, and the last one says why it ends. The others
look there: in a thread, as long as all goes well, and when a collective operation tells that somebody
is gone. So of a failure there is one sentence, of the process that failed, and of a death one, too.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from signal import SIGINT, SIGTERM
from typing import NamedTuple, NoReturn

from accelerate import Accelerator
from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from reftune import interrupts
from reftune.problem import ToldElsewhere, UserError, shortened

BEAT = 2.0  # seconds between two signs of life
MISSED = 18  # of another process's signs, and it is taken for dead; looks are counted, not time: all of
# a machine may have slept
GRACE, SAVING = 15.0, 45.0  # seconds to end by itself: where another is gone, where all can still save
INTERRUPTED = 128  # and the number of the signal: an exit code
MEETING = timedelta(seconds=30)  # to reach the launcher, which is there before its processes
ANSWER = timedelta(minutes=5)  # of its store later on, torch's default
SLOWEST = timedelta(hours=2)  # that one process may keep the others waiting in a collective operation


class Ending(NamedTuple):
    """Why a process ends: its exit code, what is to be told, and the seconds that it gets for it."""

    code: int
    sentence: str
    seconds: float


class Sign(NamedTuple):
    """What another process has said last: where it is, how often it has said so, and why it ends."""

    host: str
    beat: int
    end: Ending | None


@contextmanager
def ending_together(accelerator: Accelerator, again: Callable[[], str]) -> Iterator[None]:
    """Let this process end if another one does so before its time; all must enter the block.

    Args:
        again: says what starting the same command once more will do.

    Raises UserError where another process has died, and `ToldElsewhere` where one has failed, or has
    said the very same of all.
    """
    if accelerator.num_processes == 1:
        yield
        return
    others = Others(_store(), accelerator.process_index, accelerator.num_processes, again)
    accelerator.wait_for_everyone()  # until each has given a sign
    others.watch()
    try:
        yield
        others.leave(Ending(0, "", 0))
    except BaseException as error:
        others.end(error)
        raise
    finally:
        others.left.set()
        others.wait_where_needed()


class Others:
    """What is known of the other processes of a run.

    Args:
        store: that all processes reach.
        rank: number of this process.
        count: of all processes.
        again: as for `ending_together`.
    """

    def __init__(self, store: Store, rank: int, count: int, again: Callable[[], str]) -> None:
        self.store, self.rank, self.count, self.again = store, rank, count, again
        self.left = threading.Event()
        self.beat = 0
        self.seen: dict[int, Sign] = {}  # the others' signs at the last look
        self.leave(None)
        self._give_sign()

    def watch(self) -> None:
        """Begin to give signs of life, and to look for the others'."""
        threading.Thread(target=self._watch, name="signs of life", daemon=True).start()

    def leave(self, end: Ending | None) -> None:
        """Say that this process ends, and why; None: that it does not."""
        with suppress(DistError):
            self.store.set(f"end/{self.rank}", json.dumps(end))

    def end(self, error: BaseException) -> None:
        """Say that this process ends by an error; raise what tells it better, or what another one told.

        Raises as `ending_together` does.
        """
        if _means_loss(error):
            self._end_as_another(error)
        if isinstance(error, KeyboardInterrupt):
            self.leave(Ending(INTERRUPTED + (interrupts.received() or SIGINT), "", 0))
        elif isinstance(error, UserError):
            self.leave(Ending(2, str(error), GRACE))
            if not self._is_first(str(error)):
                raise ToldElsewhere(str(error)) from error
        else:
            reason = shortened(f"{type(error).__name__}: {error}")
            told = f"process {self.rank} of {self.count} has failed ({reason})"
            self.leave(Ending(1, told, GRACE))

    def wait_where_needed(self) -> None:
        """Stay for a moment, if the store lives in this process, until all others have looked there."""
        hosted_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        until = time.monotonic() + (0 if hosted_by_launcher or self.rank else 3 * BEAT)
        while any(sign.end is None for sign in self._signs().values()) and time.monotonic() < until:
            time.sleep(0.05)

    def _end_as_another(self, error: BaseException) -> NoReturn:
        ends = _failures(self.seen) or _failures(self._signs())
        if not ends:
            sentence = (
                f"one of the {self.count} processes is gone without a word, killed perhaps for want of"
                f" memory; {self.again()}"
            )
            self.leave(Ending(2, sentence, GRACE))
            raise (UserError if self._is_first(sentence) else ToldElsewhere)(sentence) from error
        if ends[0].code > INTERRUPTED:
            interrupts.stop(ends[0].code - INTERRUPTED)
        raise ToldElsewhere(ends[0].sentence) from error

    def _give_sign(self) -> None:
        with suppress(DistError):
            self.store.set(f"sign/{self.rank}", json.dumps([socket.gethostname(), self.beat]))

    def _signs(self) -> dict[int, Sign]:
        """Return the last sign of every other process, none where the store is gone."""
        others = [rank for rank in range(self.count) if rank != self.rank]
        keys = [f"{key}/{rank}" for key in ("sign", "end") for rank in others]
        with suppress(DistError):
            found = [json.loads(value) for value in self.store.multi_get(keys)]
            pairs = zip(found[: len(others)], found[len(others) :], strict=True)
            signs = [Sign(host, beat, end and Ending(*end)) for (host, beat), end in pairs]
            return dict(zip(others, signs, strict=True))
        return {}

    def _is_first(self, sentence: str) -> bool:
        """Tell whether no other process has told this sentence."""
        with suppress(DistError):
            told: int = self.store.add(f"told/{sha256(sentence.encode()).hexdigest()}", 1)
            return told == 1
        return True

    def _watch(self) -> None:
        missed: Counter[int] = Counter()
        while not self.left.wait(BEAT):
            self.beat += 1
            stuck = threading.Timer(BEAT * MISSED, self._end_if_stuck, [self.beat])
            stuck.daemon = True
            stuck.start()
            self._give_sign()
            signs = self._signs()
            stuck.cancel()
            for rank, sign in signs.items():
                missed[rank] = missed[rank] + 1 if sign == self.seen.get(rank) else 0
            self.seen = signs or self.seen
            if (ending := self._bad_news(signs, missed)) and not self.left.wait(ending.seconds):
                self._end_here(ending)
                return

    def _bad_news(self, signs: dict[int, Sign], missed: Counter[int]) -> Ending | None:
        """Return what ends this process, if there is something."""
        if not signs and all(sign.end is None for sign in self.seen.values()):
            interrupts.end_soon(SIGTERM)  # where all are still at work, they can save
            return self._launcher_is_gone()
        for rank, (host, _, end) in signs.items():
            if end is not None and 0 < end.code < INTERRUPTED:
                return end
            if end is None and missed[rank] >= MISSED:
                told = f"process {rank} of {self.count}, on {host}, gives no sign of life"
                return Ending(2, f"{told}; {self.again()}", GRACE)
        return None

    def _launcher_is_gone(self) -> Ending:
        told = f"the launcher of the {self.count} processes is gone, or its machine"
        return Ending(2, f"{told}; {self.again()}", SAVING)

    def _end_if_stuck(self, beat: int) -> None:
        """End this process where its last look at the store has not come back."""
        if not self.left.wait(BEAT) and self.beat == beat:  # the machine has not just slept
            _tell_and_exit(self._launcher_is_gone())

    def _end_here(self, ending: Ending) -> None:
        """End this process, wherever it waits."""
        self.leave(ending)
        if not self._is_first(ending.sentence):
            ending = ending._replace(sentence="")
        _tell_and_exit(ending)


def _failures(signs: Mapping[int, Sign]) -> list[Ending]:
    return [sign.end for sign in signs.values() if sign.end is not None and sign.end.code]


def _tell_and_exit(ending: Ending) -> NoReturn:
    if ending.sentence:
        print(f"reftune: error: {ending.sentence}", file=sys.stderr, flush=True)
    os._exit(ending.code)


def _store() -> Store:
    """Connect to the store by which the processes have found each other."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=MEETING)
    except DistError:
        raise UserError(f"the launcher does not answer at {host}:{port}; start again") from None
    store.set_timeout(ANSWER)
    return PrefixStore(f"reftune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _means_loss(error: BaseException) -> bool:
    """Tell whether a collective operation has failed because another process is gone."""
    is_gloos = isinstance(error, RuntimeError) and "gloo" in str(error)
    return is_gloos or isinstance(error, DistError)
