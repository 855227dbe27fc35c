"""What Triton is told of a network is what the network does."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from armarium.errors import UserError
from armarium.triton import Served, configuration, model_repository
from monai.networks.nets import Regressor, UNet


def served(network: torch.nn.Module, shape: list[int], traced: bool = False, labels=()) -> Served:
    network, saved = network.eval(), io.BytesIO()
    script = torch.jit.trace(network, torch.rand(shape)) if traced else torch.jit.script(network)
    torch.jit.save(script, saved)
    return Served("net", saved.getvalue(), shape, not traced, list(labels))


def unet() -> torch.nn.Module:
    return UNet(spatial_dims=2, in_channels=2, out_channels=3, channels=[4, 8], strides=[2], num_res_units=0)


def lines(text: str, word: str) -> list[str]:
    return [line.strip().partition(": ")[2] for line in text.splitlines() if line.strip().startswith(f"{word}:")]


def test_a_network_of_any_grid_says_so_and_a_traced_one_states_its_own():
    assert lines(configuration(served(unet(), [1, 2, 8, 12]), [2, 2]), "dims") == ["[ 2, -1, -1 ]", "[ 3, -1, -1 ]"]
    traced = configuration(served(unet(), [1, 2, 8, 12], traced=True), [2, 2])
    assert lines(traced, "dims") == ["[ 2, 8, 12 ]", "[ 3, 8, 12 ]"] and lines(traced, "max_batch_size") == ["8"]


def test_a_network_that_is_made_for_one_grid_states_it():
    network = Regressor(in_shape=(1, 8, 8), out_shape=(1,), channels=(2, 2), strides=(2, 2))
    text = configuration(served(network, [1, 1, 8, 8]), [1, 1])
    assert lines(text, "dims") == ["[ 1, 8, 8 ]", "[ 1 ]"]


class Whitened(torch.nn.Module):
    """Of an image by the batch it comes in; two outputs."""

    def forward(self, image):
        return image - image.mean(), image.double().sum((2, 3))


def test_without_batches_sizes_have_the_first_dimension_and_each_output_its_type():
    text = configuration(served(Whitened(), [1, 1, 4, 4]), [1, 1])
    assert lines(text, "max_batch_size") == ["0"]
    assert lines(text, "dims") == ["[ 1, 1, -1, -1 ]", "[ 1, 1, -1, -1 ]", "[ 1, 1 ]"]
    assert lines(text, "data_type") == ["TYPE_FP32", "TYPE_FP32", "TYPE_FP64"]
    assert [name for name in lines(text, "name") if "OUTPUT" in name] == ['"OUTPUT__0"', '"OUTPUT__1"']


def test_labels_are_named_where_there_are_some():
    with_labels = model_repository(served(unet(), [1, 2, 8, 8], labels=["a", "b", "c"]), [2, 2])
    assert (
        with_labels["net/labels.txt"] == "a\nb\nc\n"
        and 'label_filename: "labels.txt"' in with_labels["net/config.pbtxt"]
    )
    assert "net/labels.txt" not in model_repository(served(unet(), [1, 2, 8, 8]), [2, 2])


def test_a_model_that_does_not_take_its_own_input_is_refused():
    with pytest.raises(UserError, match="does not take an input"):
        configuration(replace(served(unet(), [1, 2, 8, 12]), input_shape=[1, 5, 8, 8]), [2, 2])
