"""How fast a machine works through a stage: measured by a short probe, or assumed from its rates.

An optimizer step costs what its tokens cost and a constant for the update itself. Drawing a token for
each of some rows costs a constant, the reading of the weights, and something for each row.
"""

from dataclasses import dataclass

from reftune.config import Config
from reftune.planning.shapes import Shape
from reftune.planning.workload import Draw, StageWork

TRAINING_SHARE = 0.4  # of a card's matrix rate, that an update reaches
DECODING_SHARE = 0.4  # of its memory's rate, that a decoding step reaches
LAUNCH_SECONDS = 5e-6  # of one kernel; a layer has about KERNELS of them
KERNELS = 12


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a machine."""

    learn_token: float  # forward and backward
    optimizer_step: float
    read_token: float  # forward
    draw_step: float  # of one more token for all rows, whatever their number
    draw_token: float  # and for each of them

    def drawing(self, draw: Draw, rows_at_once: int) -> float:
        """Return the seconds that samples take: rows leave when they end, and waiting ones enter."""
        tokens = draw.rows * draw.response
        steps = max(draw.longest, tokens / rows_at_once)
        prompts = draw.questions * draw.prompt * self.read_token
        return prompts + steps * self.draw_step + tokens * self.draw_token

    def step(self, work: StageWork, rows_at_once: int) -> float:
        """Return the seconds of one step of a stage, validations aside."""
        learning = work.learns * self.learn_token + work.updates * self.optimizer_step
        drawing = self.drawing(work.draws, rows_at_once) if work.draws else 0.0
        return learning + work.reads * self.read_token + drawing

    def stage(self, work: StageWork, rows_at_once: int) -> float:
        """Return the seconds of a whole stage."""
        validations = 0.0
        if work.validates:
            validations = work.validations * self.drawing(work.validates, rows_at_once)
        return work.steps * self.step(work, rows_at_once) + validations


@dataclass(frozen=True, slots=True)
class Card:
    """A machine by its rates: memory in GB, TFLOP/s in a run's precision, memory bandwidth in GB/s."""

    memory: float
    tflops: float  # by data sheets, of dense bfloat16
    bandwidth: float
    float32: float = 1 / 8  # of these TFLOP/s, that float32 reaches; 1 where float32 was measured


# Data sheets of NVIDIA; without a name the assumption is a card that many have with so much memory.
CARDS = {
    "t4": Card(16, 65, 320), "l4": Card(24, 121, 300), "rtx3090": Card(24, 71, 936),
    "rtx4090": Card(24, 165, 1008), "a10": Card(24, 125, 600), "l40s": Card(48, 362, 864),
    "a100-40gb": Card(40, 312, 1555), "a100-80gb": Card(80, 312, 2039), "h100": Card(80, 989, 3350),
    "h200": Card(141, 989, 4800),
}  # fmt: skip


def assumed(card: Card, shape: Shape, config: Config) -> Pace:
    """Return the pace of a card that is not at hand, from its data sheet and the shares above.

    An update takes 6 FLOPs per weight and token, 4 where the weights themselves are frozen, and 2 more
    where layers are computed twice; a forward pass 2.
    """
    rate = card.tflops * 1e12 * TRAINING_SHARE * (card.float32 if config.model.dtype == "float32" else 1)
    weights = shape.weights
    flops = (4 if shape.adapted else 6) + 2 * config.compute.gradient_checkpointing
    moved = shape.trained * 28 / (card.bandwidth * 1e9)  # weights, masters, moments, read and written
    reading = weights * shape.bytes_each / (card.bandwidth * 1e9 * DECODING_SHARE)
    launches = shape.layers * KERNELS * LAUNCH_SECONDS
    return Pace(
        learn_token=flops * weights / rate,
        optimizer_step=moved,
        read_token=2 * weights / rate,
        draw_step=max(reading, launches),
        draw_token=2 * weights / rate,
    )
