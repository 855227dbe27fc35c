"""What a recipe asks for to compute faster: wired as a GPU would have it, as far as a CPU can show."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from armarium.computing import Gradients, Losses, RecordedGradients, refuse_without_compiler
from armarium.distributed import ALONE
from armarium.errors import UserError
from armarium.network import make_deterministic
from test_training import conf_with, differing, finished, kill
from tiny import recipe, settings, squares, training_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, squares(root, 5), squares(root, 1, prefix="v")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A training without any of the options."""
    return finished(training_of(data, tmp_path_factory.mktemp("whole"), settings(conf_with(), epochs=2)))


def a_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 2, 3))


def gradients_of(kind, network: torch.nn.Module, **more):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return kind(network, lambda images, labels: ((network(images) - labels) ** 2).mean(), scaler, **more)


def recorder(network: torch.nn.Module, runs: list):
    """What a CUDA graph does, on a CPU: each further run writes into the tensors of the recorded one."""

    def record(compute):
        runs.append("recorded")
        for _ in range(3):
            compute()
        loss = compute()
        written = [p.grad for p in network.parameters()]

        def replay():
            runs.append("played")
            loss.copy_(compute())
            for tensor, parameter in zip(written, network.parameters(), strict=True):
                tensor.copy_(parameter.grad)

        return replay, loss

    return record


def test_a_step_that_is_recorded_gives_what_one_that_is_not_gives():
    plain, played, runs = a_network(), a_network(), []
    steps = [gradients_of(Gradients, plain), gradients_of(RecordedGradients, played, record=recorder(played, runs))]
    optimizers = [torch.optim.AdamW(n.parameters(), lr=0.1) for n in (plain, played)]
    losses = []
    for cases, weight in [(2, 1.0), (2, 1.0), (1, 0.5), (2, 1.0), (1, 0.5)]:
        images, labels = torch.rand(cases, 1, 8, 8), torch.rand(cases, 2, 4, 4)
        losses.append([step(images, labels, weight) for step in steps])
        for optimizer in optimizers:
            optimizer.step()
    assert runs.count("recorded") == 2 and runs.count("played") == 5, "a recording for each shape, every step played"
    assert all(torch.equal(a, b) for a, b in losses) and len({float(a) for a, _ in losses}) == 5
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), played.state_dict().values(), strict=True)
    )


def test_losses_that_are_fetched_once_an_epoch_are_the_same(data, tmp_path, whole):
    training = training_of(data, tmp_path, settings(conf_with(), epochs=2))
    training.losses.most = 1000
    assert differing(finished(training), whole) == []


def test_losses_of_a_gpu_are_fetched_together_and_in_order():
    losses = Losses(ALONE, CPU)
    losses.most = 2
    losses.add((1, 0), torch.tensor(1.5), 1.0)
    assert not losses.is_full
    losses.add((1, 1), torch.tensor(2.0), 0.5)
    assert losses.is_full and losses.fetched() == [[1, 0, 1.5], [1, 1, 1.0]] and losses.fetched() == []
    assert Losses(ALONE, torch.device("cuda")).most > 1


@pytest.mark.parametrize("at_once", [True, False])
def test_a_loss_that_is_no_number_stops_before_anything_is_saved(at_once, data, tmp_path):
    training = training_of(data, tmp_path, settings(epochs=1))
    training.losses.most = 1 if at_once else 1000
    with torch.no_grad():
        next(training.network.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="training loss became nan in epoch 1; lower learning_rate"):
        training.run()
    assert not training.workspace.state_file.exists()


def test_channels_last_is_how_network_and_images_lie_in_memory(data, tmp_path):
    whole = finished(training_of(data, tmp_path / "plain", settings(epochs=2)))  # dropout goes by the order in memory
    training = training_of(data, tmp_path, settings(epochs=2, channels_last=True))
    seen = []
    training.network.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    members = finished(training)
    kernels = [p for p in training.network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels and all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    assert all(i.is_contiguous(memory_format=torch.channels_last) for i in seen)
    assert json.loads(members["computational.json"])["channels_last"]
    assert not json.loads(whole["computational.json"])["channels_last"]
    assert json.loads(members["run.json"])["channels_last"] and "channels_last" not in json.loads(whole["run.json"])
    losses = [
        [float(line.split("\t")[2]) for line in m["logs/training_loss.tsv"].decode().splitlines()[1:]]
        for m in (members, whole)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    weights = (
        torch.load(training.workspace.kept / "2.pt", weights_only=True) if training.workspace.kept.exists() else {}
    )
    assert all(w.is_contiguous() for w in weights.values())


def test_what_only_a_gpu_has_changes_nothing_on_a_cpu(data, tmp_path, whole):
    training = training_of(data, tmp_path, settings(conf_with(), epochs=2, cuda_graphs=True))
    found = finished(training)
    assert type(training.gradients) is Gradients
    assert set(differing(found, whole)) == {"run.json", "summary.log"}, "which say what the recipe asks for"


def test_tf32_is_what_the_recipe_says_and_torchs_own_where_it_says_nothing():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for wanted in (True, False):
            make_deterministic(settings(tf32=wanted))
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is wanted
        make_deterministic(settings())
        assert torch.backends.cudnn.allow_tf32 is False, "as it was"
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_settings_have_only_what_is_set():
    def with_variables(**variables):
        return settings({**recipe(), **variables})

    assert not {"compile", "tf32", "channels_last", "cuda_graphs", "batched_augmentation"} & with_variables().keys()
    assert with_variables(compile=True)["compile"] and with_variables(tf32=False)["tf32"] is False
    with pytest.raises(UserError, match="cuda_graphs is true, and multi_gpu too"):
        with_variables(cuda_graphs=True, multi_gpu=True)


def test_without_a_compiler_nothing_is_prepared(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"compile is true, and there is no compiler \(looked for g\+\+, clang\+\+\)"):
        training_of(data, tmp_path, settings(compile=True))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UserError, match=r"Triton|looked for CC=no-such-compiler"):
        refuse_without_compiler({"compile": True}, torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="wants g++")
def test_a_compiled_training_goes_on_to_the_same_bytes(data, tmp_path, monkeypatch):
    given = settings(conf_with(), epochs=2, compile=True)
    undisturbed = training_of(data, tmp_path / "a", given)
    wanted = finished(undisturbed)
    assert undisturbed.forward is not undisturbed.network
    kill(training_of(data, tmp_path / "b", given), monkeypatch, 1)
    torch._dynamo.reset()
    assert differing(finished(training_of(data, tmp_path / "b", given)), wanted) == []
