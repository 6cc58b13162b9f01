"""Published camera-trap weights as tensors: read them out of a pickled file in a process of its own, and give them timm's names.

Some weights are torch files that hold a whole pickled module or checkpoint. Loading such a file runs code that is in it. So it is never loaded
for a training: a person asks for the conversion by name (`animl-pipeline weights convert`), after comparing the sha256, and it runs once in
another process without the environment's credentials. The result is a .safetensors file, which cannot hold code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from animl_pipeline.core.errors import TrainingError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMEOUT_S = 1800
COUNTER = "num_batches_tracked"
"""Batch normalisation's counter, which no answer depends on; converted networks lack it."""
_READ = """
import sys, torch
from safetensors.torch import save_file
found = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
if hasattr(found, "state_dict"):
    found = found.state_dict()
for key in ("state_dict", "model"):
    found = found.get(key, found)
    found = found.state_dict() if hasattr(found, "state_dict") else found
tensors = [(n, t.detach().float().contiguous().clone()) for n, t in found.items() if torch.is_tensor(t)]
save_file({f"{i:06d} {n}": t for i, (n, t) in enumerate(tensors)}, sys.argv[2])
"""
_NUMBER = re.compile(r"\d{6} ")
"""A converted file's names begin with a number, because the format does not keep the order of tensors."""


def convert_weights(source: Path, target: Path) -> None:
    """Write the tensors of a pickled module or checkpoint into a .safetensors file. The code in ``source`` is run, in a process of its own.

    ``source``: a torch file; compare its sha256 first.

    Raises:
        WeightsError: ``not_converted``: the file is no such torch file, or needs a package that is not installed.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as folder:
        new = Path(folder) / "weights.safetensors"
        line = [sys.executable, "-c", _READ, str(source.resolve()), str(new.resolve())]
        try:
            done = subprocess.run(line, capture_output=True, text=True, env={"PATH": os.defpath}, cwd=folder, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as e:
            raise WeightsError(f"{source.name} was not read within {TIMEOUT_S} s; it is not such weights", code="not_converted") from e
        if done.returncode or not new.exists():
            last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1][:200]
            hint = "; install that package in this environment for the conversion" if "No module named" in last else ""
            message = f"expected a torch file with a module or its tensors at {source}, found another ({last}){hint}"
            raise WeightsError(message, code="not_converted")
        new.replace(target)


def name_tensors(given: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a published network under timm's names, for a timm network without its classifier layer.

    They are timm's own with a prefix ("model."), those of an OpenCLIP image encoder ("visual."), or have other names but the order and shapes of
    timm's (as converted networks do). Those of a classifier layer, and of a text encoder, are left out.

    Raises:
        TrainingError: ``weights_do_not_fit``.
    """
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    tensors = {_NUMBER.sub("", name, count=1) if _NUMBER.match(name) else name: t for name, t in sorted(given.items())}
    if isinstance(network, VisionTransformer) and any(name.startswith("visual.") for name in tensors):
        tensors = checkpoint_filter_fn(tensors, network)
    wanted = network.state_dict()
    needed = {name: t for name, t in wanted.items() if not name.endswith(COUNTER)}
    for prefix in ("", "model.", "module.", "model.model."):
        if all(prefix + name in tensors for name in needed):
            found = {name: tensors[prefix + name] for name in needed}
            break
    else:
        in_order = [t for name, t in tensors.items() if not name.endswith(COUNTER)][: len(needed)]
        found = dict(zip(needed, in_order, strict=False))
    different = [name for name, t in needed.items() if name not in found or found[name].shape != t.shape]
    if different:
        message = f"expected the tensors of {type(network).__name__}, found others: {len(different)} differ, such as {different[0]}"
        raise TrainingError(f"train.networks: {message}", code="weights_do_not_fit")
    return wanted | found
