"""`secateur export`: what is written, that it was looked at in its runtime, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest
import small
import torch

import secateur
from secateur.commands import cli
from secateur.runtimes import RUNTIMES, Eager


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("small"), "channels")


@pytest.fixture(scope="module")
def applied(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("applied") / "small"
    return secateur.apply(small.plan_of(session), session, finetune=0, out=folder)


@pytest.fixture
def runtime(monkeypatch):
    """Put a runtime of format `odd` in."""

    def put(made):
        made.format = "odd"
        monkeypatch.setitem(RUNTIMES._known, "odd", made)

    return put


def images():
    return torch.cat([x for x, _ in small.batches(3, 3)]), torch.cat([y for _, y in small.batches(3, 3)])


def code_of(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def test_eight_bits_in_onnx_runtime_are_counted_there(session, applied, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    done = secateur.export(applied.folder, session, format="onnx", int8=True, out=tmp_path / "out")
    assert {path.name for path in done.folder.iterdir()} == {
        "model.onnx",
        "model-int8.onnx",
        "export.json",
        "README.md",
    }
    report = json.loads((done.folder / "export.json").read_text())
    assert report == done.report
    x, labels = images()
    with torch.no_grad():
        wanted = applied.model(x)
    for precision, name in (("float32", "model.onnx"), ("int8", "model-int8.onnx")):
        row, path = report["files"][precision], done.folder / name
        file = onnxruntime.InferenceSession(str(path))
        (logits,) = file.run(["output"], {"input": x.numpy()})
        assert row["measure_in_runtime"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels.numpy()))
        assert row["measure_in_torch"] == pytest.approx(100 * float((wanted.argmax(1) == labels).float().mean()))
        assert row["parity"]["changed"] == int((logits.argmax(1) != wanted.argmax(1).numpy()).sum())
        assert row["parity"]["answers"] == len(x)
        assert row["bytes"] == path.stat().st_size
        told = RUNTIMES["onnxruntime"].about(path)
        assert told["precision"] == precision
        assert json.loads(told["plan"]) == report["plan"] == json.loads((applied.folder / "plan.json").read_text())
        assert told["fingerprint"] == report["fingerprint"] == report["plan"]["fingerprint"]
    assert report["files"]["float32"]["parity"]["largest"] < 1e-5
    assert 1e-5 < report["files"]["int8"]["parity"]["mean"] < 0.25
    assert {"onnx", "onnxruntime", "torch", "secateur"} <= report["versions"].keys()

    monkeypatch.chdir(done.folder)
    names = {}
    exec(code_of(done.folder), names)
    assert names["outputs"][0].shape == (1, 3)


@pytest.fixture(scope="module")
def digits(run, tmp_path_factory):
    return secateur.apply(run.folder, finetune=0, out=tmp_path_factory.mktemp("digits") / "small")


def test_pixels_go_in_where_the_file_normalises(digits, tmp_path, monkeypatch, capsys):
    arguments = ["export", str(digits.folder), "--format", "pt2", "--normalise", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    assert "model.pt2" in shown.out
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["checked_on"] == "100 test images"
    assert report["classes"] == [str(digit) for digit in range(10)]
    assert report["inputs"] == [{"name": "pixels", "shape": [1, 8, 8], "dtype": "float32"}]
    session = secateur.Session(digits.folder / "config.yaml")
    mean, std = session.config.data.mean[0], session.config.data.std[0]
    x = torch.cat([batch for batch, _ in session.test])
    labels = torch.cat([labels for _, labels in session.test])
    pixels = x * std + mean
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1 + 1e-6
    with torch.no_grad():
        found = torch.export.load(tmp_path / "out" / "model.pt2").module()(pixels)
        torch.testing.assert_close(found, secateur.load(digits.folder)((pixels - mean) / std), rtol=1e-4, atol=1e-4)
    row = report["files"]["float32"]
    assert row["measure_in_runtime"] == pytest.approx(100 * float((found.argmax(1) == labels).float().mean()))

    card = (tmp_path / "out" / "README.md").read_text()
    for layer in report["plan"]["layers"]:
        assert f"| `{layer['name']}` | {layer['kept']} | {layer['units']} |" in card
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(code_of(tmp_path / "out"), names)
    assert names["outputs"].shape == (1, 10)


def test_weights_as_they_are_saved(digits, tmp_path, monkeypatch):
    done = secateur.export(digits.folder, format="safetensors", out=tmp_path / "out")
    row = done.report["files"]["float32"]
    assert row["parity"]["largest"] == 0.0
    assert row["measure_in_runtime"] == row["measure_in_torch"]
    monkeypatch.chdir(done.folder)
    names = {}
    exec(code_of(done.folder), names)
    for name, tensor in digits.model.state_dict().items():
        assert torch.equal(names["network"].state_dict()[name], tensor)


def test_images_from_a_folder_have_no_labels(digits, tmp_path):
    from PIL import Image

    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        (tmp_path / "seen" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "seen" / "deep" / f"{number}.png")
    done = secateur.export(digits.folder, format="pt2", images=tmp_path / "seen", out=tmp_path / "out")
    assert done.report["checked_on"] == "3 images of seen"
    row = done.report["files"]["float32"]
    assert (row["measure_in_torch"], row["parity"]["answers"], row["parity"]["images"]) == (None, 3, 3)
    assert "top-1" not in (done.folder / "README.md").read_text()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        secateur.export(digits.folder, format="pt2", images=tmp_path / "none", out=tmp_path / "again")


class Wrong(Eager):
    """Adds a little to the first class."""

    def __init__(self, amount):
        self.amount = amount

    def open(self, path, threads=None):
        run = super().open(path, threads)

        def wrong(tensors):
            (logits,) = run(tensors)
            logits = logits.clone()
            logits[:, 0] += self.amount
            return [logits]

        return wrong


def test_a_runtime_that_answers_wrongly_is_refused_and_nothing_is_left(session, applied, tmp_path, runtime):
    runtime(Wrong(1e-2))
    with pytest.raises(RuntimeError, match=r"does not compute what the network computes.*largest may be 0\.0001"):
        secateur.export(applied.folder, session, format="odd", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    done = secateur.export(applied.folder, session, format="odd", tolerance=0.5, out=tmp_path / "out")
    with torch.no_grad():
        spread = applied.model(images()[0]).std(correction=0)
    assert done.report["files"]["float32"]["parity"]["largest"] == pytest.approx(float(1e-2 / spread), rel=0.05)


def test_eight_bits_that_answer_wrongly_are_refused(session, applied, tmp_path, runtime):
    class Broken(Eager):
        int8 = True

        def quantise(self, path, to, images, about):
            assert sum(len(x) for (x,) in images) == 36  # the calibration images
            other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).eval()
            from secateur.runtimes import Program

            self.export(Program.of(other, torch.ones(2, 1, 6, 6)), to, about)

    runtime(Broken())
    with pytest.raises(RuntimeError, match=r"model-int8\.pt2 does not compute.*mean may be 0\.25"):
        secateur.export(applied.folder, session, format="odd", int8=True, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(session, applied, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        secateur.export(applied.folder, session, format="pt2", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"format": "onx"},
            r"no format 'onx', only compile, onnx, openvino, packed, pt2, safetensors – did you mean onnx\?",
        ),
        ({"format": "eager"}, "no format 'eager'"),
        ({"format": "pt2", "int8": True}, "pt2 files are not quantised here: export onnx or openvino"),
        ({"format": "safetensors", "int8": True}, "safetensors files are not quantised here"),
        ({"format": "safetensors", "normalise": True}, "safetensors files hold no operations"),
        ({"format": "pt2", "normalise": True}, "normalise: the config has no data section"),
        ({"format": "pt2", "images": "."}, "images: the config has no data section"),
        ({"format": "os:getcwd"}, "names code to import and run"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(session, applied, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        secateur.export(applied.folder, session, out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_and_other_folders_are_refused(session, applied, run, tmp_path):
    with pytest.raises(FileNotFoundError, match="give a folder that `secateur apply` wrote"):
        secateur.export(run.folder, format="pt2", out=tmp_path / "out")
    shutil.copytree(applied.folder, tmp_path / "copy")
    file = tmp_path / "copy" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        secateur.export(tmp_path / "copy", session, format="pt2", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_package_its_extra_is_named_before_the_network_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime is not installed: pip install 'secateur\[onnx\]'"):
        secateur.export(tmp_path / "nowhere", "digits", format="onnx")


@pytest.mark.parametrize("method", ["channels", "weights"])
def test_a_packed_network_is_one_small_file_and_loses_no_bit(method, session, applied, tmp_path):
    if method != "channels":
        session = small.make(tmp_path, method)
        applied = secateur.apply(small.plan_of(session), session, finetune=0, out=tmp_path / "small")
    done = secateur.export(applied.folder, session, format="packed", out=tmp_path / "out")
    assert {path.name for path in done.folder.iterdir()} == {"network.packed", "export.json", "README.md"}
    before, after = applied.model.state_dict(), secateur.load(done.folder, session.model).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    told = done.report["packing"]
    assert told["bytes"] == done.report["files"]["float32"]["bytes"] == (done.folder / "network.packed").stat().st_size
    codings = {part["name"]: part["coding"] for part in told["tensors"]}
    sparse = {name for name, t in before.items() if t.numel() > 400 and float((t == 0).float().mean()) > 0.3}
    assert {name for name, coding in codings.items() if coding.startswith("sparse")} >= sparse
    assert (method == "weights") == bool(sparse)
    assert sum(part["bits"] for part in told["tensors"]) / 8 < told["bytes"] < told["float32_bytes"] + 4000
    assert "bits a number" in (done.folder / "README.md").read_text()


def test_a_packed_file_without_running_statistics_is_smaller_and_computes_the_same(session, applied, tmp_path):
    plain, folded = (
        secateur.export(applied.folder, session, format="packed", fold_norms=fold, out=tmp_path / f"{fold}")
        for fold in (False, True)
    )
    channels = sum(m.num_features for m in applied.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    saved = [done.report["packing"]["bytes"] for done in (plain, folded)]
    assert saved[0] - saved[1] > 0.8 * 2 * 4 * channels  # two floats a channel, deflated
    again = secateur.load(folded.folder, session.model)
    images = session.calibration[0][0]
    with torch.no_grad():
        torch.testing.assert_close(again(images), applied.model(images), rtol=1e-4, atol=1e-4)
    assert 0 < folded.report["files"]["float32"]["parity"]["largest"] < 1e-4
    assert plain.report["files"]["float32"]["parity"]["largest"] == 0
    assert not any(torch.equal(a, b) for a, b in zip(_norm_weights(again), _norm_weights(applied.model), strict=True))


def _norm_weights(model):
    return [m.weight for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_norms_are_folded_into_packed_files_alone(session, applied, tmp_path):
    with pytest.raises(
        ValueError, match=r"^fold_norms: only packed files are written so, not safetensors: leave it out$"
    ):
        secateur.export(applied.folder, session, format="safetensors", fold_norms=True, out=tmp_path / "out")


def test_a_packed_file_of_another_network_or_a_damaged_one_is_refused(session, applied, tmp_path):
    done = secateur.export(applied.folder, session, format="packed", out=tmp_path / "out")
    packed = done.folder / "network.packed"
    with pytest.raises(ValueError, match="was made from another architecture"):
        secateur.load(done.folder, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()))
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"is damaged \(.*network\.packed"):
        secateur.load(done.folder, session.model)


@pytest.mark.parametrize("format", ["onnx", "packed", "safetensors"])
def test_a_folder_without_a_network_is_named(format, session, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"no network.json in {folder}: give a folder that"):
            secateur.export(folder, session, format=format, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
