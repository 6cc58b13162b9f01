"""What a head's package needs at the endpoint: cold start, memory and CPU of a request, with one frozen network and with several.

python benchmarks/packages.py [--starts 3] [--requests 40]

Eight classes, crops of 160 px, the image of the benchmark serve. The weights of the networks are the real ones, those of the head random.
The programs are started in turn; medians of the starts are shown. The limits are those of a serverless endpoint of 1,024 MB.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from pathlib import Path

import numpy as np
from measure import conclude, show
from serve import BOX, CLASSES, Run, generated_image, measure_run, medians

SIZE = 160
MAX_MB, MAX_COLD_S = 1024, 60
LITE0, LITE2, DETECTOR = "efficientnet-lite0-imagenet", "efficientnet-lite2-imagenet", "megadetector-lite"
PACKAGES = {"Lite0": (LITE0,), "Lite0 + Lite2 (the default)": (LITE0, LITE2), "Lite0 + Lite2 + detector": (LITE0, LITE2, DETECTOR)}


def make_package(folder: Path, names: tuple[str, ...]) -> float:
    """Write a package with a head on these networks; returns the size of model.onnx in MB."""
    import torch

    from animl_pipeline.config.settings import load_settings
    from animl_pipeline.config.training import FrozenNetworkConfig
    from animl_pipeline.core.model_card import Agreement, ClassInfo, ModelCard, ModelInput
    from animl_pipeline.integrations.frozen_networks import load_frozen_network
    from animl_pipeline.steps.training.head_network import HeadNetwork
    from animl_pipeline.steps.training.linear_head import LinearHead
    from animl_pipeline.steps.training.onnx_export import export_onnx

    networks = [load_frozen_network(FrozenNetworkConfig(network=name), SIZE, load_settings()) for name in names]
    with torch.inference_mode():
        width = sum(network(torch.zeros(1, 3, SIZE, SIZE)).shape[1] for network in networks)
    head = LinearHead(np.random.default_rng(0).normal(0, 0.01, (len(CLASSES), width)), np.zeros(len(CLASSES)))
    model_input = ModelInput(size=SIZE)
    sha256 = export_onnx(HeadNetwork(networks, head, model_input), SIZE, folder / "model.onnx")
    card = ModelCard(
        model="heads", version="1", architecture="linear head", classes=tuple(ClassInfo(id=c, name=c) for c in CLASSES), model_input=model_input,
        onnx_sha256=sha256, agreement=Agreement(max_abs=0, crops=1), data_digest="0" * 64, weights="none", plan={},
    )  # fmt: skip
    (folder / "card.json").write_text(card.model_dump_json(), encoding="utf-8")
    return (folder / "model.onnx").stat().st_size / 1e6


def main() -> None:
    """Measure all packages and compare them with the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3, help="how often to start each program (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=40, help="requests per start (default: %(default)s)")
    options = parser.parse_args()
    body = json.dumps({"image": base64.b64encode(generated_image()).decode(), "bbox": BOX}).encode()
    with tempfile.TemporaryDirectory() as scratch:
        sizes, commands = {}, {}
        for number, (name, networks) in enumerate(PACKAGES.items()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            sizes[name] = make_package(folder, networks)
            commands[name] = ["-m", "animl_pipeline.serve", "--model", str(folder), "--host", "127.0.0.1", "--port", "0"]
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(options.starts):
            for name, command in commands.items():
                runs[name].append(measure_run(command, body, options.requests))
    found = {name: medians(of_one) for name, of_one in runs.items()}
    columns = ("head on", "model.onnx, MB", "cold start, CPU s", "memory then, MB", "a request, CPU ms", "largest memory, MB")
    rows = [[name, sizes[name], r.cold_cpu_s, r.cold_mb, r.request_cpu_ms, r.after_mb] for name, r in found.items()]
    show("packages of heads at the endpoint program", columns, rows)
    default, one = found["Lite0 + Lite2 (the default)"], found["Lite0"]
    figure = (
        f"the default head: {default.after_mb:.0f} MB, {default.cold_cpu_s:.1f} CPU s of a cold start, {default.request_cpu_ms:.0f} CPU ms "
        f"of a request ({default.request_cpu_ms / one.request_cpu_ms:.2f} of Lite0's)"
    )
    met = all(r.after_mb <= MAX_MB and r.cold_cpu_s <= MAX_COLD_S for r in found.values())
    conclude("packages", figure=figure, aim=f"all within {MAX_MB:,} MB and {MAX_COLD_S} s", met=met)


if __name__ == "__main__":
    main()
