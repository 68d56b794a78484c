"""The configurations that a search tries, and configurations as plain values without names of the recurrence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recur.codegen.setting import USUAL, Setting
from recur.codegen.triton_printer.config import Launch, StageConfig, default_config, extent_size
from recur.ir.plan import Plan
from recur.ir.tile import Kernel, next_power_of_two

Configs = tuple[StageConfig, ...]


@dataclass(frozen=True)
class Effort:
    """How much is tried: chunk lengths, warps, pipeline stages, widths of tiles, and rounds over all kernels."""

    chunks: tuple[int, ...]
    warps: tuple[int, ...]
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: int


EFFORTS = {
    "quick": Effort((32, 64), (4, 8), (2, 3), (32, 64, 128), 1),
    "full": Effort((16, 32, 64, 128), (2, 4, 8), (1, 2, 3, 4), (16, 32, 64, 128), 2),
}


@dataclass(frozen=True)
class Change:
    """One step of the search: the configurations with one stage's chunk or one kernel's launch changed."""

    what: str
    stage: int
    kernels: tuple[str, ...]
    configs: Configs


def default_configs(plans: Sequence[Plan], sizes: Mapping[str, int], setting: Setting = USUAL) -> Configs:
    return tuple(default_config(plan, sizes, setting=setting) for plan in plans)


def chunk_changes(plans: Sequence[Plan], configs: Configs, effort: Effort) -> Iterator[list[Change]]:
    """For each stage that runs in chunks, its other chunk lengths, with the launches that the rules of thumb give."""
    for stage, plan in enumerate(plans):
        if plan.chunk is None:
            continue
        names = tuple(k.name for k in plan.forward + plan.backward)
        config = configs[stage]
        found = [default_config(plan, dict(config.sizes), c) for c in effort.chunks if c != config.chunk]
        yield [
            Change(f"{plan.stage}: chunks of {config.chunk}", stage, names, with_stage(configs, stage, config))
            for config in found
        ]


def launch_changes(plans: Sequence[Plan], stage: int, kernel: str, configs: Configs, effort: Effort) -> list[Change]:
    """The other launches of one kernel."""
    plan, config = plans[stage], configs[stage]
    known = next(k for k in plan.forward + plan.backward if k.name == kernel)

    def change(launch: Launch) -> Change:
        changed = with_stage(configs, stage, with_launch(config, kernel, launch))
        return Change(f"{kernel}: {show(launch)}", stage, (kernel,), changed)

    return [change(launch) for launch in launches(known, config, effort) if launch != config.launch(kernel)]


def launches(kernel: Kernel, config: StageConfig, effort: Effort) -> Iterator[Launch]:
    """Every width of the tiled axes with every number of warps and stages."""
    current, sizes = config.launch(kernel.name), dict(config.sizes)
    extents = {axis.name: axis.extent for axis in kernel.axes}
    choices = []
    for name, width in current.blocks:
        extent = extents.get(name)
        is_size = extent is not None and (extent.isdigit() or extent in sizes)
        most = next_power_of_two(extent_size(extent, sizes)) if is_size and extent is not None else width
        choices.append([(name, w) for w in effort.widths if w <= most] or [(name, width)])
    for blocks in itertools.product(*choices):
        for warps, stages in itertools.product(effort.warps, effort.stages):
            yield replace(current, blocks=blocks, num_warps=warps, num_stages=stages)


def show(launch: Launch) -> str:
    widths = "".join(f"{name} in {width}, " for name, width in launch.blocks)
    return f"{widths}{launch.num_warps} warps, {launch.num_stages} stages"


def with_stage(configs: Configs, stage: int, config: StageConfig) -> Configs:
    return (*configs[:stage], config, *configs[stage + 1 :])


def with_launch(config: StageConfig, kernel: str, launch: Launch) -> StageConfig:
    return replace(config, launches=tuple((k, launch if k == kernel else old) for k, old in config.launches))


# --- as plain values -------------------------------------------------------------------------------------------------


def to_plain(configs: Configs) -> list[dict[str, Any]]:
    """For JSON: kernels and axes by their position, so that a renamed recurrence has the same values."""
    return [
        {
            "chunk": config.chunk,
            "launches": [
                {"widths": [w for _, w in launch.blocks], "warps": launch.num_warps, "stages": launch.num_stages}
                for _, launch in config.launches
            ],
        }
        for config in configs
    ]


def from_plain(values: Sequence[Mapping[str, Any]], plans: Sequence[Plan], sizes: Mapping[str, int]) -> Configs:
    """The configurations that the values stand for. Raises ValueError where they do not fit the plans."""
    return tuple(_stage(value, plan, sizes) for value, plan in zip(values, plans, strict=True))


def _stage(value: Mapping[str, Any], plan: Plan, sizes: Mapping[str, int]) -> StageConfig:
    config = default_config(plan, sizes, int(value["chunk"]))
    found = []
    for (name, launch), plain in zip(config.launches, value["launches"], strict=True):
        blocks = zip((axis for axis, _ in launch.blocks), map(int, plain["widths"]), strict=True)
        warps, stages = int(plain["warps"]), int(plain["stages"])
        found.append((name, replace(launch, blocks=tuple(blocks), num_warps=warps, num_stages=stages)))
    return replace(config, launches=tuple(found))
