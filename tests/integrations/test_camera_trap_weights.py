"""Published camera-trap weights: read out of pickled files in a process of its own, and given timm's names. The weights here are random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from animl_pipeline.cli.weights import convert
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.errors import TrainingError, WeightsError
from animl_pipeline.integrations.convert_weights import convert_weights, name_tensors
from animl_pipeline.integrations.frozen_networks import load_frozen_network
from animl_pipeline.integrations.weights import list_known_weights
from animl_pipeline.storage.store import sha256_of

SMALL = "tf_efficientnetv2_b0"
VIT: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}


def small_network(**options: Any) -> nn.Module:
    network: nn.Module = timm.create_model(SMALL, **options).eval()
    return network


def as_openclip(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a timm vision transformer with the names and shapes of an OpenCLIP image encoder, and one of a text encoder."""
    names = [("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."), ("norm1", "ln_1"), ("norm2", "ln_2")]
    names += [("qkv.", "in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]
    found = {"token_embedding.weight": torch.zeros(3, 2), "visual.proj": torch.zeros(64, 32)}
    for name, tensor in network.state_dict().items():
        for own, other in names:
            name = name.replace(own, other)  # noqa: PLW2901 - several replacements, one after the other
        if name == "cls_token":
            name, tensor = "class_embedding", tensor[0, 0]  # noqa: PLW2901
        elif name == "pos_embed":
            name, tensor = "positional_embedding", tensor[0]  # noqa: PLW2901
        elif name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")  # noqa: PLW2901
        found[f"visual.{name}"] = tensor
    return found


@pytest.mark.parametrize("write", [pytest.param("module", marks=pytest.mark.slow), "checkpoint"])
def test_the_tensors_of_a_pickled_file_are_read_elsewhere_and_give_the_same_embeddings(tmp_path: Path, write: str) -> None:
    torch.manual_seed(0)
    published = small_network(num_classes=7)
    saved: object = published if write == "module" else {"state_dict": {f"model.{n}": t for n, t in published.state_dict().items()}, "epoch": 3}
    torch.save(saved, tmp_path / "published.pt")
    convert_weights(tmp_path / "published.pt", tmp_path / "w.safetensors")
    network = small_network(num_classes=0)
    network.load_state_dict(name_tensors(load_file(tmp_path / "w.safetensors"), network))
    published.reset_classifier(0)  # type: ignore[operator]  # every timm model has it
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network(pixels), published(pixels))


def test_a_converted_network_with_other_names_is_mapped_by_the_order_of_its_tensors() -> None:
    torch.manual_seed(1)
    published, network = small_network(num_classes=7), small_network(num_classes=0)
    tensors = [t for n, t in published.state_dict().items() if not n.endswith("num_batches_tracked")]
    found = name_tensors({f"{i:06d} Conv_{i}.initializer": t for i, t in enumerate(tensors)}, network)
    assert all(torch.equal(found[n], t) for n, t in published.state_dict().items() if n in found and not n.endswith("num_batches_tracked"))
    with pytest.raises(TrainingError) as caught:
        name_tensors({f"{i:06d} Conv_{i}": t for i, t in enumerate(reversed(tensors))}, network)
    assert caught.value.code == "weights_do_not_fit"


def test_an_openclip_image_encoder_is_mapped_and_its_text_encoder_left_out() -> None:
    torch.manual_seed(2)
    published, network = (timm.create_model("vit_base_patch32_clip_224", **VIT).eval() for _ in range(2))
    network.load_state_dict(name_tensors(as_openclip(published), network))
    pixels = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(network(pixels), published(pixels))


def test_a_file_that_is_no_such_file_or_needs_a_package_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(WeightsError) as caught:
        convert_weights(tmp_path / "text.pt", tmp_path / "w.safetensors")
    assert caught.value.code == "not_converted"
    assert [f.name for f in tmp_path.iterdir()] == ["text.pt"]


def test_the_command_runs_no_code_of_a_file_with_another_sha256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "tensors.pt", tmp_path / "w.safetensors"
    torch.save({"state_dict": {"model.a": torch.ones(2)}}, file)
    with pytest.raises(WeightsError) as caught:
        convert(file, "0" * 64, out)
    assert (caught.value.code, out.exists()) == ("wrong_sha256", False)
    convert(file, sha256_of(file), out)
    assert sha256_of(out) in capsys.readouterr().out
    assert list(load_file(out)) == ["000000 model.a"]


def test_known_networks_need_a_file_and_have_a_licence(settings: Settings) -> None:
    known = [w for w in list_known_weights() if w.file_of_user]
    assert {w.name for w in known} >= {"speciesnet-efficientnetv2-m", "zamba-lila-science", "zamba-speciesnet", "bioclip-2"}
    assert all(w.licence and timm.is_model(w.backbone) and w.mean and w.std for w in known)
    with pytest.raises(WeightsError) as caught:
        load_frozen_network(FrozenNetworkConfig(network="bioclip-2", weights="absent.safetensors"), 64, settings)
    assert caught.value.code == "no_such_file"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rename"), [("speciesnet-efficientnetv2-m", None), ("zamba-lila-science", None), ("bioclip-2", as_openclip)])
def test_a_known_network_of_full_size_gives_the_published_embeddings(
    tmp_path: Path, settings: Settings, name: str, rename: Callable[[nn.Module], dict[str, Tensor]] | None
) -> None:
    known = next(w for w in list_known_weights() if w.name == name)
    options: dict[str, Any] = {"img_size": 224} if rename else {}
    published: nn.Module = timm.create_model(known.backbone, num_classes=0, **options).eval()
    save_file({n: t.contiguous() for n, t in (rename(published) if rename else published.state_dict()).items()}, tmp_path / "w.safetensors")
    network = load_frozen_network(FrozenNetworkConfig(network=name, weights=str(tmp_path / "w.safetensors")), 224, settings)
    pixels = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (known.mean, known.std))
    with torch.inference_mode():
        assert torch.allclose(network(pixels), published((pixels - mean) / std), atol=1e-5)
