"""A model card: what an exported network is, where it comes from, how good it is and how it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def card(report: Report, loading: str) -> str:
    """Markdown, to lie beside the files.

    Args:
        report: what `export.json` holds.
        loading: lines of Python that run a file; `{file}`, `{inputs}` and `{arrays}` are filled in.
    """
    parts = [
        _what(report),
        _files(report),
        _packing(report),
        _inputs(report),
        _code(report, loading),
        _plan(report),
        _made_with(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(report: Report) -> str:
    plan = report["plan"]
    title = f"# {_plain(report['network'])}, pruned, as {report['format']}"
    if plan is None:
        return f"{title}\n\nCompressed with secateur; the folder that it was exported from holds no plan."
    kept = ", ".join(f"{100 * part:.1f} % of the {kind}" for kind, part in plan["cost"].items())
    kept = kept.replace("flops", "FLOPs").replace("params", "parameters")
    classes = f" It tells {len(report['classes'])} classes apart." if report["classes"] else ""
    allocator, method = plan["provenance"]["allocator"], plan["method"]
    return (
        f"{title}\n\n`{_plain(plan['architecture'])}`, compressed with secateur: {kept} are kept. Method "
        f"`{_plain(method)}`; what every layer keeps was chosen by `{_plain(allocator)}`.{classes}"
    )


def _files(report: Report) -> str:
    measure = report["measure"]
    head = ["file", "numbers", "bytes", "largest difference", "mean difference", "other answers"]
    rows = []
    for precision, row in report["files"].items():
        parity = row["parity"]
        changed = "–" if parity["changed"] is None else f"{parity['changed']:,} of {parity['answers']:,}"
        cells = [f"`{row['file']}`", precision, f"{row['bytes']:,}"]
        cells += [f"{parity['largest']:.1e}", f"{parity['mean']:.1e}", changed]
        if measure:
            cells += [f"{row['measure_in_torch']:.2f}", f"{row['measure_in_runtime']:.2f}"]
        rows.append(cells)
    if measure:
        head += [f"{measure}, in torch", f"{measure}, this file"]
    note = (
        f"Every file was run in its runtime on {report['checked_on']} and compared with the network in PyTorch; "
        "differences of outputs are given over their standard deviation."
    )
    return f"## What it computes\n\n{_table(head, rows)}\n\n{note}"


def _packing(report: Report) -> str:
    if "packing" not in report:
        return ""
    told = report["packing"]
    ways = {
        "as floats of 4 bytes": told["float32_bytes"],
        "compressed by LZMA": told["lzma_bytes"],
        "**this file**": told["bytes"],
        "entropy of its symbols, without codes": told["entropy_bytes"],
    }
    rows = [[name, f"{size:,.0f}", f"{told['float32_bytes'] / size:.1f}"] for name, size in ways.items()]
    parts = [
        [f"`{_plain(part['name'])}`", part["coding"], f"{part['numbers']:,}", f"{part['bits'] / part['numbers']:.2f}"]
        for part in told["tensors"]
        if part["bits"]
    ]
    return (
        f"## How small it is\n\n{_table(['', 'bytes', 'times smaller'], rows)}\n\n"
        f"{_table(['tensor', 'coding', 'numbers', 'bits a number'], parts)}"
    )


def _inputs(report: Report) -> str:
    if "inputs" not in report:
        return ""
    lines = []
    for given in report["inputs"]:
        sizes = ", ".join(map(str, ("N", *given["shape"])))
        lines.append(f"* input `{given['name']}`: ({sizes}) {given['dtype']}, any number N of images")
    lines += [f"* output `{name}`" for name in report["outputs"]]
    if report["normalises"]:
        lines.append("* the input holds pixels in [0, 1]; the file normalises them itself")
    elif report["mean"] is not None:
        lines.append(
            f"* pixels in [0, 1] are to be normalised first, channel by channel: less {report['mean']}, divided by "
            f"{report['std']}"
        )
    if report["classes"]:
        shown = ", ".join(_plain(name) for name in report["classes"][:100])
        more = f" and {len(report['classes']) - 100} more (`export.json`)" if len(report["classes"]) > 100 else ""
        lines.append(f"* classes, in the order of the outputs: {shown}{more}")
    return "## Inputs and outputs\n\n" + "\n".join(lines)


def _code(report: Report, loading: str) -> str:
    shapes = [((1, *given["shape"]), given["name"], given["dtype"]) for given in report.get("inputs", ())]
    inputs = ", ".join(f'"{name}": np.zeros({shape}, np.{_numpy(dtype)})' for shape, name, dtype in shapes)
    arrays = ", ".join(f"torch.zeros({shape}, dtype=torch.{dtype})" for shape, _, dtype in shapes)
    file = list(report["files"].values())[-1]["file"]
    code = loading.format(file=file, inputs=inputs, arrays=arrays)
    return f"## How to run it\n\n```python\n{code}\n```"


def _plan(report: Report) -> str:
    if report["plan"] is None:
        return ""
    layers = report["plan"]["layers"]
    rows = [[f"`{_plain(row['name'])}`", str(row["kept"]), str(row["units"])] for row in layers]
    fingerprint = report["plan"]["fingerprint"]
    return (
        f"## Plan\n\n{_table(['layer', 'units kept', 'of'], rows)}\n\nFingerprint of the dense network: `{fingerprint}`"
    )


def _made_with(report: Report) -> str:
    return "## Made with\n\n" + ", ".join(f"{name} {version}" for name, version in report["versions"].items())


def _numpy(dtype: str) -> str:
    return "bool_" if dtype == "bool" else dtype


def _plain(text: str) -> str:
    """A name from anybody's files, on one line and without what Markdown or a terminal would take for its own."""
    shown = "".join(part if part.isprintable() else "?" for part in text)
    return shown.translate({ord(mark): f"\\{mark}" for mark in "`|<>[]"})


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
