"""Makes a synthetic log: maps first, then scene after scene, over several processes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from perception import atomic_file
from perception.errors import InputError
from perception.synthetic.clutter import build_clutter
from perception.synthetic.ground import Ground
from perception.synthetic.ground_painter import basemap_png, drivable_png, paint_ground
from perception.synthetic.ground_view import GroundView, build_ground_view
from perception.synthetic.job_pool import JobPool, Tick
from perception.synthetic.log_plan import LogConfig, ScenePlan, plan_scenes, plan_splits
from perception.synthetic.log_tables import MAP_FILES, Record, Tables, common_tables, token
from perception.synthetic.map_expansion import expansion_tables
from perception.synthetic.primitives import Primitives
from perception.synthetic.scene_builder import build_scene
from perception.synthetic.scene_writer import SceneWriter, StageTimes
from perception.synthetic.street_builder import build_street_map
from perception.synthetic.street_map import StreetMap

VERSION = "v1.0-mini"
"""Folder of the tables: evaluation of the official mini splits asks for this ending."""
MARKER_FILE = "SYNTHETIC.json"
FORMAT = 1
"""Raised when the same configuration gives other bytes."""
GROUND_FOLDER = ".ground"
"""Rasters that all processes share while the log is made."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A log that was made."""

    root: Path
    num_keyframes: int
    stage_seconds: dict[str, float]
    """CPU time per stage, over all processes [s]."""


def generate_log(
    out: Path,
    config: LogConfig,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Generated:
    """Make a log that the nuScenes devkit reads. It appears under its name when it is whole.

    Args:
        out: Folder to make.
        config: What fixes the bytes; the number of workers does not.
        workers: Processes; with more than one the caller's script needs the usual
            `if __name__ == "__main__"`.
        overwrite: Replace a synthetic log of the same name.
        on_progress: Called as the work proceeds.

    Raises:
        InputError: `out` holds something that is no synthetic log, or cannot be written.
    """
    if workers < 1:
        raise InputError(f"The number of workers is {workers}, expected 1 or more.")
    refuse_foreign_folder(out, overwrite)
    scenes = plan_scenes(config.num_scenes)
    locations = list(dict.fromkeys(scene.location for scene in scenes))
    num_keyframes = config.num_scenes * config.num_keyframes
    with atomic_file.new_folder(out, overwrite=out.exists()) as root, JobPool(workers) as pool:
        (root / VERSION).mkdir()
        for folder in ("maps/basemap", "maps/expansion", GROUND_FOLDER):
            (root / folder).mkdir(parents=True)
        made = pool.run(
            [partial(_write_map, root, location, config.seed) for location in locations],
            _counter(on_progress, "maps", len(locations)),
        )
        made += pool.run(
            [partial(_write_scene, root, config, plan) for plan in scenes],
            _counter(on_progress, "keyframes", num_keyframes),
        )
        _location.cache_clear()
        shutil.rmtree(root / GROUND_FOLDER)
        _write_tables(root, config, scenes, [tables for tables, _ in made])
    times = [seconds for _, seconds in made]
    stages = dict.fromkeys(stage for seconds in times for stage in seconds)
    return Generated(
        root=out,
        num_keyframes=num_keyframes,
        stage_seconds={name: sum(s.get(name, 0.0) for s in times) for name in stages},
    )


def refuse_foreign_folder(out: Path, overwrite: bool) -> None:
    """Make sure that a log may be written to `out`.

    Raises:
        InputError: It holds a synthetic log and may not be replaced, or holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARKER_FILE).is_file():
        what = "a nuScenes log" if any(out.glob("v1.0-*")) else "something"
        raise InputError(
            f"{out} holds {what} that was not made here, expected a new or empty folder: choose "
            "another one, so that real and synthetic data never mix."
        )
    if not overwrite:
        raise InputError(
            f"{out} holds a synthetic log already: choose another folder or pass --overwrite."
        )


@dataclass(frozen=True, kw_only=True)
class _Location:
    street_map: StreetMap
    clutter: Primitives
    ground: Ground
    ground_view: GroundView


@lru_cache(maxsize=1)
def _location(root: Path, name: str, seed: int) -> _Location:
    """A place as the scenes need it; its rasters are memory that all processes share."""
    street_map = build_street_map(name, seed)
    rasters = {
        part: np.load(root / GROUND_FOLDER / f"{name}-{part}.npy", mmap_mode="r")
        for part in ("surface", "texture_rgb", "layers")
    }
    cell = street_map.size / rasters["surface"].shape[0]
    ground = Ground(cell=cell, **rasters)
    return _Location(
        street_map=street_map,
        clutter=build_clutter(street_map, seed),
        ground=ground,
        ground_view=build_ground_view(ground),
    )


def _write_map(root: Path, location: str, seed: int, tick: Tick) -> tuple[Tables, dict[str, float]]:
    times = StageTimes()
    with times.stage("maps"):
        street_map = build_street_map(location, seed)
        ground = paint_ground(street_map, seed)
        expansion = json.dumps(expansion_tables(street_map), separators=(",", ":"))
        (root / "maps" / "expansion" / f"{location}.json").write_text(expansion)
        (root / _map_file(location)).write_bytes(drivable_png(ground))
        (root / "maps" / "basemap" / f"{location}.png").write_bytes(basemap_png(ground))
        for part in ("surface", "texture_rgb", "layers"):
            np.save(root / GROUND_FOLDER / f"{location}-{part}.npy", getattr(ground, part))
    tick()
    return {}, times.seconds


def _write_scene(
    root: Path, config: LogConfig, plan: ScenePlan, tick: Tick
) -> tuple[Tables, dict[str, float]]:
    times = StageTimes()
    with times.stage("scene set-up"):
        place = _location(root, plan.location, config.seed)
        script = build_scene(
            place.street_map, place.clutter, plan.name, config.seed, config.duration
        )
    writer = SceneWriter(
        root=root,
        config=config,
        plan=plan,
        script=script,
        ground=place.ground,
        ground_view=place.ground_view,
        times=times,
    )
    return writer.write(tick), times.seconds


def _write_tables(
    root: Path, config: LogConfig, scenes: tuple[ScenePlan, ...], parts: list[Tables]
) -> None:
    tables = common_tables()
    for part in parts:
        for name, records in part.items():
            tables[name] += records
    tables["map"] = [_map_record(config.seed, location, tables) for location in MAP_FILES]
    tables["map"] = [record for record in tables["map"] if record["log_tokens"]]
    for name, records in tables.items():
        text = json.dumps(records, indent=0, separators=(",", ":"))
        (root / VERSION / f"{name}.json").write_text(text)
    splits = json.dumps(plan_splits(scenes), indent=1)
    (root / VERSION / "splits.json").write_text(splits)
    marker = {
        "what": "Synthetic driving log, made by perception.synthetic: no real data.",
        "format": FORMAT,
        "config": asdict(config),
    }
    (root / MARKER_FILE).write_text(json.dumps(marker, indent=1) + "\n")


def _map_record(seed: int, location: str, tables: Tables) -> Record:
    return {
        "token": token(seed, "map", location),
        "category": "semantic_prior",
        "filename": _map_file(location),
        "log_tokens": [log["token"] for log in tables["log"] if log["location"] == location],
    }


def _map_file(location: str) -> str:
    return f"maps/{MAP_FILES[location]}.png"


def _counter(on_progress: Progress, stage: str, total: int) -> Tick:
    done = 0
    on_progress(stage, done, total)

    def tick() -> None:
        nonlocal done
        done += 1
        on_progress(stage, done, total)

    return tick
