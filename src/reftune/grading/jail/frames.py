"""What a program's process tells the worker: one small frame, or nothing that counts.

    nonce (16 bytes) | kind (1 byte) | length of the payload (2 bytes, big endian) | payload

The program can write to the same pipe, so a frame says only what a program may say of itself: an
answer as the head of a JSON text (`A`), or one of FAULTS with a message (`F`). The nonce, which the
worker draws anew for each program, keeps what another program may have left there from counting.
"""

NONCE_BYTES = 16
ANSWER, FAULT = b"A", b"F"
MAX_PAYLOAD_BYTES = 4000
MAX_FRAME_BYTES = NONCE_BYTES + 3 + MAX_PAYLOAD_BYTES
# Never our own fault, `sandbox_error`: that would keep a program from being charged.
FAULTS = (
    "syntax_error", "no_solution", "exception", "memory", "blocked", "exited", "unsupported", "timeout",
)  # fmt: skip


def pack(nonce: bytes, kind: bytes, text: str) -> bytes:
    """Return a frame; of a long text the head."""
    payload = text.encode("ascii", "backslashreplace")[:MAX_PAYLOAD_BYTES]
    return nonce + kind + len(payload).to_bytes(2, "big") + payload


def parse(data: bytes, nonce: bytes) -> tuple[bytes, str] | None:
    """Return kind and text of the one frame that the data are, None where they are anything else."""
    head = NONCE_BYTES + 3
    kind, length = (
        data[NONCE_BYTES : NONCE_BYTES + 1],
        int.from_bytes(data[NONCE_BYTES + 1 : head], "big"),
    )
    whole = len(data) == head + length and length <= MAX_PAYLOAD_BYTES
    if not whole or data[:NONCE_BYTES] != nonce or kind not in (ANSWER, FAULT):
        return None
    payload = data[head:]
    return (kind, payload.decode("ascii")) if payload.isascii() else None


def fault(text: str) -> tuple[str, str] | None:
    """Return status and message of a fault's text, None where it is none that a program may have."""
    status, separator, message = text.partition("\n")
    return (status, message) if separator and status in FAULTS else None
