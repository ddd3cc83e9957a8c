"""From pytest-benchmark's JSON to a report that can be read: ``python -m benchmarks.report benchmarks.json ...``.

``pytest benchmarks`` calls it by itself. It writes ``report.md`` and its pictures: where memory and time go, how both
grow, how far the ops are from what the machine can do, and accuracy beside memory as ``python -m
examples.stamps.peers`` has found it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.device_report import duration, marked
from fastav.cost import METHODS, OURS, Cost
from fastav.cost.report import TITLES, cost_table, draw_costs, notes, parts_table
from fastav.cost.tables import aligned
from fastav.cost.timing import Spread

#: Where accuracy and cost of every method lie that were measured with the demo's clips.
ACCURACY = Path(__file__).parent / "results" / "accuracy" / "accuracy.json"

#: What the table of methods means, said once.
_LEGEND = (
    "Event localisation's head for all, which reads K tokens of ours and one of the peers', and so has other sizes. "
    "*Blocks passed*: into the outputs of how many of the backbones' blocks a gradient comes. *Trainable* are the "
    "method's own parameters, *% of all* counts the head too. *Saved*: what autograd is given to keep for backward, "
    "every storage once, without parameters and inputs. *Peak*: of a training step's memory, over model, optimizer "
    "and inputs. *Of frozen*: the median over rounds of a step's time over the two "
    "frozen backbones' forward in the same round, *IQR* the distance between its quartiles. LAVISH runs the visual "
    "backbone for both modalities and no audio one."
)

_CHECKPOINTED = (
    "The peers' blocks keep what goes into them alone, and run again in backward; ours, which pass no blocks, are as "
    "above. Of DG-SCT the adapters run again and the blocks that are not paired; the paired ones wait for each other."
)


#: By what results are told apart.
_IDENTITY = ("kind", "method", "batch", "axis", "value", "case", "by", "direction")


def together(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several runs as one: all commits, the first and the last date; what the machine itself does as beside the ops.

    Raises:
        ValueError: runs of several machines, versions or pairs of backbones, or two that measured the same thing.
    """
    for name in ("device", "vector path", "threads", "torch", "fastav"):
        if len(told := sorted({run["environment"].get(name, "?") for run in runs})) > 1:
            raise ValueError(f"the runs are of {name} {' and '.join(told)}; a report is of one")
    infos = [one["extra_info"] for run in runs for one in run["benchmarks"]]
    if len(sizes := sorted({info["size"] for info in infos if "size" in info})) > 1:
        raise ValueError(f"the runs are of {' and '.join(sizes)}; a report is of one pair of backbones")
    known = Counter(tuple(info[name] for name in _IDENTITY if name in info) for info in infos)
    if twice := [what for what, count in known.items() if count > 1]:
        raise ValueError(
            f"several of the runs hold {', '.join(map(str, twice[0]))}; a report holds everything once, and "
            "python -m benchmarks.repeat compares two runs"
        )
    lists = {key: [one for run in runs for one in run.get(key, [])] for key in ("benchmarks", "absences")}
    dates, commits = (sorted({run["environment"].get(name, "unknown") for run in runs}) for name in ("date", "commit"))
    each = {"date": " to ".join(dict.fromkeys((dates[0], dates[-1]))), "commit": ", ".join(commits)}
    beside_ops = max(runs, key=lambda run: sum(one["extra_info"].get("kind") == "op" for one in run["benchmarks"]))
    return {**beside_ops, **lists, "environment": beside_ops["environment"] | each}


def write_report(values: Mapping[str, Any], folder: Path, accuracy: Path = ACCURACY) -> list[Path]:
    """Write ``report.md`` and its pictures.

    Args:
        values: what ``pytest benchmarks`` wrote as JSON, or several such :func:`together`.
        folder: where to.
        accuracy: the file that ``examples.stamps.peers`` writes; without it there is no such chapter.

    Returns:
        What was written, the report first.
    """
    found = [one["extra_info"] for one in values["benchmarks"]]
    methods = sorted(costs_of(values), key=lambda one: METHODS.index(one[1].method))
    scaling = [one for one in found if one.get("kind") == "scaling"]
    stored = [one for one in found if one.get("kind") == "store"]
    ops = [one for one in found if one.get("kind") == "op"]
    missing = [one for one in values["absences"] if "method" in one]
    where = values["environment"]
    place = f"{where['device']}, torch {where['torch']}, {where['date']}"
    parts = [f"# What training costs: {where['device']}, {where['date']}"]
    pictures: list[Path] = []
    for batch in dict.fromkeys(one["batch"] for one, _ in methods):
        some = [(one, cost) for one, cost in methods if one["batch"] == batch]
        costs = [cost for _, cost in some]
        name = f"costs-{batch.replace(',', '').replace(' ', '-')}.png"
        title = f"{some[0][0]['size']}, {costs[0].segments} segments a clip, {_batch(some[0][0])}"
        absent = {TITLES[one["method"]]: one["reason"] for one in missing if one["batch"] == batch}
        draw_costs(costs, folder / name, title, where=place, absent=absent)
        pictures.append(folder / name)
        parts.append(_methods(title, costs, name, _CHECKPOINTED if "checkpointed" in batch else _LEGEND))
        parts += [f"{TITLES[one['method']]} was not measured: {one['reason']}."
                  for one in missing if one["batch"] == batch]  # fmt: skip
    if scaling:
        figures.draw_scaling(scaling, folder / "scaling.png", f"{scaling[0]['size']}\n{place}")
        pictures.append(folder / "scaling.png")
        parts.append(f"## How a step grows\n\n![scaling](scaling.png)\n\n{_scaling(scaling)}")
    if stored:
        parts.append(_stored(stored))
    batches = {one["batch"] for one, _ in methods}
    parts += [f"{TITLES[one['method']]}, {one['batch']}, was not measured: {one['reason']}."
              for one in missing if one["batch"] not in batches]  # fmt: skip
    if any(one["operations"] for one in ops):
        figures.draw_roofline(ops, values["copy bandwidth"], values["matmul rate"], folder / "roofline.png", place)
        pictures.append(folder / "roofline.png")
    if ops:
        parts.append(_ops(ops, values["copy bandwidth"], values["matmul rate"]))
        untimed = [f"{one['case']} by {one['by']} was not timed: {one['reason']}."
                   for one in values["absences"] if "case" in one]  # fmt: skip
        parts += dict.fromkeys(untimed)  # both directions say the same
    if accuracy.is_file():
        told = json.loads(accuracy.read_text())
        figures.draw_accuracy(told["methods"], told["without cost"], folder / "accuracy.png", told["title"])
        pictures.append(folder / "accuracy.png")
        parts.append(f"## Accuracy beside memory\n\n![accuracy](accuracy.png)\n\n{told['notes']}")
    parts.append("## Where\n\n" + aligned(("", "what"), list(where.items()), markdown=True))
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n")
    return [report, *pictures]


def costs_of(values: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Cost]]:
    """Every method that was measured in a run: all that is said of it, and its cost.

    Raises:
        ValueError: another version of the benchmarks wrote it.
    """
    infos = [one["extra_info"] for one in values["benchmarks"] if one["extra_info"].get("kind") == "method"]
    for info in infos:
        if lacking := [name for name in Cost.__dataclass_fields__ if name not in info]:
            raise ValueError(
                f"what is said of {info['method']} lacks {', '.join(lacking)}: another version of pytest benchmarks "
                "wrote this JSON; measure anew, or report with the commit that its environment names"
            )
    return [(info, Cost.from_dict({name: info[name] for name in Cost.__dataclass_fields__})) for info in infos]


def _batch(one: Mapping[str, Any]) -> str:
    """In words."""
    size, _, rest = one["batch"].partition(", ")
    if size == "largest":
        size = "the largest batch that fits" + (f" into {one['memory'] >> 20} MiB" if one["memory"] else "")
    return f"{size}, {rest}" if rest else size


def _methods(title: str, costs: Sequence[Cost], picture: str, legend: str) -> str:
    lines = [f"## {title}", f"![where memory and time go]({picture})", cost_table(costs, markdown=True), legend]
    lines += [*notes(costs), "Where it goes:", parts_table(costs, markdown=True), _against_lavish(costs)]
    return "\n\n".join(line for line in lines if line)


def _against_lavish(costs: Sequence[Cost]) -> str:
    """Ours as a share of the peers', where they were measured with as many clips."""
    own = [cost for cost in costs if cost.method in OURS]
    peers = [cost for cost in costs if cost.method in ("lavish", "dg-sct")]
    rows = [
        (
            TITLES[a.method],
            TITLES[b.method],
            f"{a.saved_bytes / b.saved_bytes:.3f}",
            f"{a.peak.bytes / b.peak.bytes:.3f}",
            f"{a.step.median / b.step.median:.3f}",
            f"{a.over_frozen.median / b.over_frozen.median:.3f}",
        )
        for a in own
        for b in peers
        if a.clips == b.clips
    ]
    return (
        aligned(("", "over", "saved bytes", "peak memory", "step", "step over frozen"), rows, markdown=True)
        if rows
        else ""
    )


def _scaling(points: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            TITLES[one["method"]],
            one["axis"],
            one["value"],
            f"{one['saved'] / 1e6:.1f}",
            f"{one['peak'] / 1e6:.1f}",
            f"{one['step'] * 1e3:.0f}",
            f"{one['over frozen']:.2f}",
            "{:.2f} ... {:.2f}".format(*one["quartiles"]),
        )
        for one in points
    ]
    head = ("method", "grows", "to", "saved MB", "peak MB", "step ms", "of frozen", "quartiles")
    return aligned(head, rows, markdown=True)


def _stored(epochs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            TITLES[one["method"]],
            f"{one['bytes'] / 1e6:.1f}",
            one["dtype"],
            f"{one['through'] / one['clips'] * 1e3:.0f}",
            f"{one['stored'] / one['clips'] * 1e3:.0f}",
            f"{one['times as fast']:.1f}",
            "{:.1f} ... {:.1f}".format(*one["quartiles"]),
        )
        for one in epochs
    ]
    head = ("method", "MB a clip", "as", "step ms through", "step ms stored", "times as fast", "quartiles")
    said = (
        f"Taps written once, then a training step from them beside one through the backbones, in epochs of "
        f"{epochs[0]['clips']} clips by turns. The system holds what was just written in memory: from a disk that must "
        f"be read, its own time comes on top."
    )
    return f"## From stored taps\n\n{said}\n\n{aligned(head, rows, markdown=True)}"


def _ops(ops: Sequence[Mapping[str, Any]], copy: float, products: float) -> str:
    rows = [
        (
            one["case"],
            one["direction"],
            one["by"],
            marked(spread),
            duration(spread.iqr),
            f"{one['GB/s']:.1f}",
            f"{one['share of copy bandwidth']:.2f}",
        )
        for one, spread in ((one, Spread(**one["spread"])) for one in ops)
    ]
    head = ("call", "direction", "by", "median", "IQR", "GB/s", "of copy")
    said = (
        f"In this run a copy moves {copy / 1e9:.1f} GB/s, read and written, and PyTorch's fastest product does "
        f"{products / 1e9:.0f} GFLOP/s. Bytes are those that any contender must move. On a GPU times are the "
        "device's own, but for those marked (host): there it waited for the host."
    )
    picture = "![roofline](roofline.png)\n\n" if any(one["operations"] for one in ops) else ""
    return f"## The ops\n\n{picture}{said}\n\n{aligned(head, rows, markdown=True)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of some JSON, with all of it in one file if it goes elsewhere."""
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, nargs="+", help="what pytest benchmarks wrote, of one machine")
    parser.add_argument("--out", type=Path, help="the folder to write to; the first JSON's own if it is not given")
    parser.add_argument("--accuracy", type=Path, default=ACCURACY, help="what examples.stamps.peers wrote")
    options = parser.parse_args(arguments)
    folder = options.out or options.json[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        values = together([json.loads(path.read_text()) for path in options.json])
        if options.out:
            (folder / "benchmarks.json").write_text(json.dumps(values, indent=1) + "\n")
        written = write_report(values, folder, options.accuracy)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
