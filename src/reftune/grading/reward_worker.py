"""The process in which a user's reward runs: samples in, outcomes out, a JSON object a line.

What the function prints goes to standard error: standard output carries outcomes alone.
"""

import json
import os
import sys
from typing import Any

from reftune.grading.reward_calls import RewardCall, load_function
from reftune.problem import UserError


def main(spec: str) -> None:
    """Load the function, say so, and answer requests until there are no more.

    The first line out says what the function asks for, or `{"refusal": ...}`. A request has samples and
    a time limit; each sample gets a line with its `Outcome`.
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    try:
        call = RewardCall(load_function(spec))
    except UserError as error:
        send({"refusal": str(error)})
        return
    send({"wants_truncated": call.wants_truncated, "batched": call.batched})
    for line in sys.stdin:
        request = json.loads(line)
        for outcome in call.outcomes(request["samples"], request["seconds"]):
            send(outcome)


if __name__ == "__main__":
    main(sys.argv[1])
