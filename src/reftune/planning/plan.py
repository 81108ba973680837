"""Plan a run: what each stage needs, whether it fits, what to change if not, and how long it takes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig

from reftune.config import Config
from reftune.data.problems import load_splits
from reftune.planning.fitting import with_choices
from reftune.planning.machine import Machine, named_machine, this_machine
from reftune.planning.memory import Items, memory, total
from reftune.planning.pace import Pace, assumed
from reftune.planning.probe import probe
from reftune.planning.shapes import Shape, shape_of
from reftune.planning.sharing import exchange_seconds, share_of, with_sharding
from reftune.planning.workload import Lengths, StageWork, counts_of, measure, works
from reftune.runs.setup import make_accelerator
from reftune.stages.run import Run

# What to try where a run does not fit, the harmless first; each on top of those before.
CURES: tuple[tuple[str, Any], ...] = (
    ("compute.tokens_per_microbatch", 1024),
    ("compute.sampler_rows", 64),
    ("compute.vllm_gpu_memory", 0.2),
    ("compute.offload_reference", True),
    ("compute.gradient_checkpointing", True),
    ("compute.sharding", "fsdp2"),
    ("model.dtype", "bfloat16"),
    ("model.optimizer", "adamw_8bit"),
    ("lora.rank", 16),
)
WORTH = 0.98  # of the memory that is left by a change worth naming


@dataclass(frozen=True)
class PlannedStage:
    """What one stage of a run needs; seconds are None where nobody knows the pace."""

    work: StageWork
    moments: Mapping[str, Items]  # "update" and "sampling" -> what it is for -> bytes
    step_seconds: float | None
    seconds: float | None

    @property
    def fullest(self) -> str:
        """Return the moment at which most memory is needed."""
        return max(self.moments, key=lambda moment: total(self.moments[moment]))

    @property
    def items(self) -> Items:
        """Return where the memory goes at the fullest moment."""
        return self.moments[self.fullest]


@dataclass(frozen=True)
class Plan:
    """What a run needs on a machine; `cures` are settings under which one that does not fit would."""

    machine: Machine
    stages: list[PlannedStage]
    cures: list[str]
    sharding: str = "none"

    @property
    def peak(self) -> float:
        """Return the bytes of a process at the fullest moment of the run, with the program itself."""
        return self.machine.program + max(total(stage.items) for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Tell whether that is there."""
        return self.peak <= self.machine.share

    @property
    def seconds(self) -> float | None:
        """Return how long the run takes."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None


def plan_run(
    config: Config, gpu: str | None = None, processes: int = 1, sharding: str | None = None
) -> Plan:
    """Plan a run for this machine, or for a GPU that is not at hand.

    Args:
        config: of the run.
        gpu: the name of a card or its memory, such as "24GB".
        processes: how many share the work, each on a GPU of its own, or all on this machine's CPU.
        sharding: `compute.sharding`; default: that of the settings, or what is needed.

    Raises UserError for a GPU that is not known, and whatever a run would raise at its start.
    """
    config, run, calculation = calculate(config, gpu, processes, sharding)
    machine = calculation.machine
    fits = calculation.peak(config) <= machine.share
    pace = None
    if machine.card is not None:
        pace = assumed(machine.card, calculation.shape(config), config)
    elif fits:
        pace = _pace_here(run, calculation.lengths)
    stages = [
        planned(work, moments, pace, calculation, config) for work, moments in calculation.needs(config)
    ]
    cures = [] if fits else find_cures(config, calculation.peak, machine)
    return Plan(machine, stages, cures, config.compute.sharding)


def calculate(
    config: Config, gpu: str | None = None, processes: int = 1, sharding: str | None = None
) -> tuple[Config, Run, "Calculation"]:
    """Return settings that leave nothing open, their run, and what follows from its model and texts.

    For the arguments see `plan_run`; nothing is tried.
    """
    untracked = _with(config, "compute.trackers", [])
    accelerator = make_accelerator(untracked)
    card = named_machine(gpu) if gpu else None  # before anything is read
    run = Run(untracked, accelerator)
    run.splits = load_splits(config.data, config.seed, check_answers=config.reward.grades_answers)
    architecture, prompter = run.base_architecture()
    machine = card or this_machine(accelerator.device)  # all is imported and read by now
    machine = replace(machine, processes=processes)
    lengths = measure(prompter, run.splits.train, config)
    calculation = Calculation(architecture, lengths, counts_of(run), machine)
    config = with_sharding(config, sharding, calculation.shape(config), machine)
    config = with_choices(config, config.lineup.stages, calculation.shape(config), machine)
    return config, run, calculation


@dataclass
class Calculation:
    """What settings make of a run whose model and texts are known."""

    architecture: PreTrainedConfig
    lengths: Lengths
    counts: Mapping[str, int]
    machine: Machine
    shapes: dict[str, Shape] = field(default_factory=dict)

    def shape(self, config: Config) -> Shape:
        """Return the sizes of the model as it would be trained."""
        key = f"{config.model.dtype} {config.lora}"
        if key not in self.shapes:
            self.shapes[key] = shape_of(self.architecture, config)
        return self.shapes[key]

    def needs(self, config: Config) -> list[tuple[StageWork, dict[str, Items]]]:
        """Return what each stage does, and what it holds at its moments."""
        shape, machine = self.shape(config), self.machine
        processes = machine.processes
        found = [share_of(one, processes) for one in works(config, self.lengths, self.counts)]
        return [(work, memory(work, shape, config, machine)) for work in found]

    def peak(self, config: Config) -> float:
        """Return the bytes at the fullest moment of all stages, with the program itself."""
        moments = [items for _, stage in self.needs(config) for items in stage.values()]
        return self.machine.program + max(map(total, moments))


def planned(
    work: StageWork,
    moments: Mapping[str, Items],
    pace: Pace | None,
    calculation: Calculation,
    config: Config,
) -> PlannedStage:
    """Return a stage with what it holds and how long it takes; without a pace nobody knows that."""
    rows, machine = config.compute.rows, calculation.machine
    if pace is None:
        return PlannedStage(work, moments, None, None)
    told = exchange_seconds(work, calculation.shape(config), config, machine)
    # The processes of a CPU share its cores, whose pace it is.
    others = 1 if machine.gpu else machine.processes
    seconds = (others * pace.step(work, rows) + told, others * pace.stage(work, rows))
    return PlannedStage(work, moments, seconds[0], seconds[1] + work.steps * told)


def find_cures(config: Config, peak: Callable[[Config], float], machine: Machine) -> list[str]:
    """Return settings under which a run fits, as TOML; none where all of them are not enough."""
    chosen: list[str] = []
    least = peak(config)
    for key, value in CURES:
        if key == "model.optimizer" and (not machine.gpu or config.compute.sharding != "none"):
            continue
        changed = _with(config, key, value)
        if (needed := peak(changed)) > WORTH * least:
            continue
        config, least = changed, needed
        chosen.append(f"{key} = {json.dumps(value)}")
        if least <= machine.share:
            return chosen
    return []


def _with(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.partition(".")
    inner = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: inner})


def _pace_here(run: Run, lengths: Lengths) -> Pace:
    policy, prompter = run.base_policy()
    problems = run.annotated or run.splits.train
    return probe(run.stage("sft", prompter, problems), policy, problems, round(lengths.response))
