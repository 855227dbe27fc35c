"""Published weights: those of the run under the network's own names, written without torch."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import torch
from armarium.clinicadl_weights import to_clinicadl
from armarium.errors import UserError
from armarium.plain_weights import plain_weights
from armarium.run import INFO, member_of_checkpoint, saved
from armarium.weights import weights_in
from armarium.zips import ALIGNMENT, write_zip
from monai.networks.nets import AutoEncoder, ResNet, UNet

UNET = {"name": "UNet", "args": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}}  # fmt: skip
RESNET = {
    "name": "ResNet",
    "args": {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 4, 8], "spatial_dims": 2, "num_classes": 2},
}  # fmt: skip
CHAIN = {
    "name": "AutoEncoder",
    "args": {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [1, 1]},
}


def run_of(path, weights: dict | bytes, network: dict | None = None) -> str:
    info = {"epochs": 1, "best": {}, **({"network": network} if network else {})}
    data = weights if isinstance(weights, bytes) else saved(weights)
    write_zip(path, {INFO: json.dumps(info), member_of_checkpoint(1): data})
    return str(path)


@pytest.mark.parametrize(
    ("component", "made"), [(UNET, UNet), (RESNET, ResNet), (CHAIN, AutoEncoder)], ids=lambda v: getattr(v, "__name__", "")
)  # fmt: skip
def test_published_weights_are_the_runs_under_the_networks_own_names(component, made, tmp_path):
    network = made(**component["args"])
    kept = to_clinicadl(component, {f"network.{k}": v for k, v in network.state_dict().items()})
    data = plain_weights(run_of(tmp_path / "run.zip", kept, component), 1)
    found = weights_in(data, "published")
    assert list(found) == list(network.state_dict()), "the bundle's loader skips other names without a word"
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in network.state_dict().items())
    assert plain_weights(run_of(tmp_path / "again.zip", kept, component), 1) == data


def test_tensors_that_share_memory_do_so_still_and_can_be_mapped(tmp_path):
    whole = torch.arange(10, dtype=torch.bfloat16)
    kept = {"network.network.a": whole[2:].view(2, 4), "network.b": whole, "network.c": torch.tensor(3)}
    target = tmp_path / "model.pt"
    target.write_bytes(plain_weights(run_of(tmp_path / "run.zip", kept), 1))
    found = torch.load(target, weights_only=True, mmap=True)
    assert list(found) == ["network.a", "b", "c"]
    assert torch.equal(found["network.a"], kept["network.network.a"]) and torch.equal(found["b"], whole)
    assert found["b"].untyped_storage().data_ptr() == found["network.a"].untyped_storage().data_ptr()
    with zipfile.ZipFile(target) as members, open(target, "rb") as file:
        for member in members.infolist():
            file.seek(member.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            assert (member.header_offset + 30 + name + extra) % ALIGNMENT == 0


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def test_what_is_more_than_tensors_is_refused(tmp_path, capsys):
    buffer = io.BytesIO()
    torch.save({"network.a": torch.zeros(1), "network.b": Harm()}, buffer)
    for number, data in enumerate(
        (buffer.getvalue(), buffer.getvalue()[:300], b"", saved([1]).replace(b"data.pkl", b"gone.pkl"))
    ):
        with pytest.raises(UserError, match="no file of weights as torch saves it"):
            plain_weights(run_of(tmp_path / f"{number}.zip", data), 1)
    assert "harm" not in capsys.readouterr().out
