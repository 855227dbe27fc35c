"""Train one split, resuming exactly where a killed run stopped.

An epoch is a pure function of weights, optimizer state, epoch number and seed: every random source is
seeded from (seed, split, epoch) when the epoch starts, every case's augmentation from its number too.
So a resumed run gives the bytes of an undisturbed one, with or without loader workers.

Several processes may train together (:mod:`armarium.distributed`): each goes through the same epochs with its part of
every step's cases, the first one writes.
"""

from __future__ import annotations

import logging
import math
import time

import numpy
import torch
from ignite.engine import Events
from monai.data import set_track_meta
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

from .batched import DeviceBatches
from .cache import PreparedCases
from .clinicadl_weights import to_clinicadl
from .components import build, build_lr_scheduler, build_optimizer, substitute_runtime
from .computing import Losses, compiled, gradients, laid_out, memory_format, refuse_without_compiler
from .dataset import REGRESSION
from .distributed import ALONE, Batches, Team
from .epochs import EpochOrder, TrainingCases, seed_from
from .errors import UserError
from .evaluation import CaseScorer, Evaluation
from .history import CollectedWarnings, Progress, better, peak_memory_mib
from .multi_label import is_multi_label
from .network import a_channel_for_each_class, build_network, one_number_a_case
from .progress import EpochProgress, NoProgress
from .run import SAVED, TRAINED, Workspace
from .starting import begin
from .transforms import as_batch, build_transforms, components_at_work, split_at_first_random

LONG_RECORDS = ("losses", "rates")
"""Records with a row for every step, saved as tensors: lists of that length are slow to save."""


class SplitTraining:
    """The training of one split.

    Parameters
    ----------
    settings:
        The effective training configuration.
    split:
        Its number.
    train, validation:
        Cases as :class:`~armarium.cache.PreparedCases` takes them.
    class_names:
        Names by class number.
    data_root, cache_dir:
        Where files are and where prepared cases go.
    device:
        What to train on.
    workspace:
        Holds the resume state.
    team:
        The processes that train together.
    """

    def __init__(
        self,
        settings: dict,
        split: str,
        train: list[dict],
        validation: list[dict],
        class_names: dict[int, str],
        data_root: str,
        cache_dir: str,
        device: torch.device,
        workspace: Workspace,
        team: Team = ALONE,
    ):
        self.settings, self.split, self.validation, self.device, self.workspace = (
            settings,
            split,
            validation,
            device,
            workspace,
        )
        self.team = team
        self.seed = (settings["seed"], split)
        self.amp = settings["amp"] and device.type == "cuda"
        refuse_without_compiler(settings, device)
        self.progress, self.losses = Progress(), Losses(team, device)
        self._prepare_data(train, data_root, cache_dir)
        self.scorer = CaseScorer(settings, data_root, cache_dir, device, class_names, team)
        self.scorer.prepare(validation, settings["threads"])
        self._build_network_and_optimizer()

    def _prepare_data(self, train: list[dict], data_root: str, cache_dir: str) -> None:
        components, allow = self.settings["pre_transforms"], self.settings["allow"]
        fixed, random = split_at_first_random(build_transforms(components, allow))
        prepared = PreparedCases(components[: len(fixed)], data_root, cache_dir, allow)
        prepared.prepare_all(self.team.share(train), workers=self.settings["threads"])
        self.cases = TrainingCases(train, prepared, random, self.seed)
        self.batches = Batches(
            EpochOrder(self.cases), self.settings["batch_size"], self.settings["drop_last"], self.team
        )
        self.loader = self._loader()
        if not len(self.loader):
            raise UserError(
                f"split {self.split}: {len(train)} training cases make no batch of {self.batches.whole}; "
                "lower batch_size, or set drop_last to false"
            )

    def _loader(self) -> DataLoader | DeviceBatches:
        if self.settings.get("batched_augmentation"):
            return DeviceBatches(self.cases, self.batches, self.device)
        return DataLoader(
            self.cases,
            batch_sampler=self.batches,
            num_workers=self.settings["num_workers"],
            generator=torch.Generator(),  # else making an iterator would draw from the global stream
            pin_memory=self.device.type == "cuda",
            collate_fn=as_batch,
        )

    def _build_network_and_optimizer(self) -> None:
        settings, allow = self.settings, self.settings["allow"]
        torch.manual_seed(seed_from(*self.seed, "weights"))
        self.network = laid_out(self.team.synchronised(build_network(settings).to(self.device)), settings)
        self.forward = compiled(self.network, settings)
        self.loss = build("loss", settings["loss"], allow).to(self.device)
        known = {"iterations": len(self.loader) * settings["epochs"], "steps_per_epoch": len(self.loader)}
        optimizer = substitute_runtime(settings["optimizer"], known)
        self.optimizer = build_optimizer(optimizer, self.network.parameters(), allow)
        schedule = substitute_runtime(settings["lr_scheduler"], known)
        self.schedule = build_lr_scheduler(schedule, self.optimizer, allow) if schedule else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)
        self.inferer = build("inferer", settings["inferer"], allow)
        self.gradients = gradients(settings, self.device, self.network, self._loss_of_batch, self.scaler)

    # ---- resume

    def _stateful(self) -> dict:
        parts = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts | ({"schedule": self.schedule} if self.schedule else {})

    def resume(self) -> int:
        """Take up the saved state or, if there is none, what training starts from; the epochs already trained."""
        state = self.workspace.load_state()
        if state is None:
            self.workspace.start_afresh()
            return begin(self)
        try:
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
            long = {k: [[int(r[0]), int(r[1]), *r[2:]] for r in state["progress"][k].tolist()] for k in LONG_RECORDS}
            self.progress = Progress.of({**state["progress"], **long})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self.workspace.state_file}: not the state of this training ({type(error).__name__}: {error}); "
                f"delete {self.workspace.folder} to train this split from its first epoch"
            ) from None
        return self.progress.epoch

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        long = {k: torch.tensor(getattr(self.progress, k), dtype=torch.float64) for k in LONG_RECORDS}
        self.workspace.save_state({**state, "progress": {**vars(self.progress), **long}})
        self.workspace.note_epoch(self.progress.epoch, SAVED)

    # ---- one step, one epoch

    def _step(self, engine, batch) -> dict:
        images, labels = (t.to(self.device, non_blocking=True) for t in batch)
        step = self._batch_of(engine)
        weight = self.batches.weight(step)
        with components_at_work(f"split {self.split}: network or loss on images {list(images.shape)}"):
            loss = self.gradients(images, labels, weight)
        self.team.add_gradients(self.network.parameters())
        self._clip_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.add((engine.state.epoch, step), loss, weight)
        if self.losses.is_full:
            self._note_losses()
        self._log_rate(engine)
        if not self.settings["lr_epoch_level"]:
            self._step_schedule()
        return {"loss": loss}

    def _note_losses(self, *_) -> None:
        for epoch, step, value in self.losses.fetched():
            if not math.isfinite(value) and not self.amp:
                raise UserError(
                    f"split {self.split}: the training loss became {value} in epoch {epoch}; lower learning_rate, or set clip_grad_norm; "
                    "the last saved epoch is kept"
                )
            self.progress.losses.append([epoch, step, value])

    def _step_schedule(self) -> None:
        if self.schedule:
            with components_at_work(f"split {self.split}: lr_scheduler {type(self.schedule).__name__}"):
                self.schedule.step()

    def _loss_of_batch(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = images.float()
        if self.settings.get("channels_last"):
            images = images.contiguous(memory_format=memory_format(images.ndim))
        with torch.autocast(self.device.type, enabled=self.amp):
            return self._loss_of(self.inferer(images, self.forward), labels)

    def _loss_of(self, output, labels: torch.Tensor) -> torch.Tensor:
        """The loss; of several outputs (deep supervision) the mean."""
        if isinstance(output, (list, tuple)):
            return sum(self._loss_of(o, labels) for o in output) / len(output)
        if self.settings["task"] == REGRESSION:
            one_number_a_case(output.shape, len(labels))
        if is_multi_label(self.settings):
            a_channel_for_each_class(output.shape, labels.shape)
            labels = labels.float()
        return self.loss(output, labels)

    def _clip_gradients(self) -> None:
        norm, value = self.settings["clip_grad_norm"], self.settings["clip_grad_value"]
        if norm is None and value is None:
            return
        self.scaler.unscale_(self.optimizer)
        if value is not None:
            torch.nn.utils.clip_grad_value_(self.network.parameters(), value)
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), norm)

    def _batch_of(self, engine) -> int:
        return (engine.state.iteration - 1) % len(self.loader)

    def _log_rate(self, engine) -> None:
        self.progress.rates.append(
            [engine.state.epoch, self._batch_of(engine), *(g["lr"] for g in self.optimizer.param_groups)]
        )

    def _start_epoch(self, engine) -> None:
        epoch = self.cases.epoch = engine.state.epoch
        seed = seed_from(*self.seed, epoch, *self.team.seed)
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        set_track_meta(False)
        self.network.train()
        self.epoch_started = time.perf_counter()

    def _end_epoch(self, engine) -> None:
        epoch = self.progress.epoch = engine.state.epoch
        trained = time.perf_counter() - self.epoch_started
        self.workspace.note_epoch(epoch, TRAINED)
        if self.settings["lr_epoch_level"]:
            self._step_schedule()
        validated = self._validated(epoch)
        self.team.even_out(self.network.buffers())  # what batch normalisation counted
        if validated:
            self._validate(epoch)
        self._log_time(epoch, trained)
        if epoch in self.settings["keep_epochs"]:
            self._keep_weights()
        self.display.epoch(self.progress, validated)
        if self._last(epoch):
            engine.terminate()
            self._keep_weights()
        if epoch % self.settings["save_interval"] == 0 or self._last(epoch):
            self._take_in_warnings()
            self._save()
            self.workspace.drop_checkpoints_but(self.progress.epochs_to_keep(self.settings["keep_epochs"]))

    def _take_in_warnings(self) -> None:
        """Note what only other processes were warned of."""
        for warned in self.team.gather(self.progress.warnings)[1:]:
            self.progress.warnings.extend(w for w in warned if w not in self.progress.warnings)

    def _validated(self, epoch: int) -> bool:
        return epoch % self.settings["validation_interval"] == 0 or epoch == self.settings["epochs"]

    def _last(self, epoch: int) -> bool:
        return epoch >= self.settings["epochs"] or self.progress.stopped_early

    def _keep_weights(self) -> None:
        weights = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        self.workspace.keep_checkpoint(self.progress.epoch, to_clinicadl(self.settings["model"], weights))

    def _log_time(self, epoch: int, trained: float) -> None:
        total = time.perf_counter() - self.epoch_started
        memory = torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else 0.0
        self.progress.timing.append(
            [epoch, time.time(), trained, total - trained, len(self.cases) / trained, peak_memory_mib(), memory]
        )

    # ---- validation and what follows from it

    def _validate(self, epoch: int) -> None:
        evaluation = self.scorer(self.network, self.validation)
        aggregated = evaluation.aggregated()
        self._record(epoch, evaluation, aggregated)
        if self._update_best(epoch, aggregated):
            self._keep_weights()
        self._decide_early_stop(aggregated)

    def _record(self, epoch: int, evaluation: Evaluation, aggregated: dict[str, float]) -> None:
        history, lead = self.progress.history, {"epoch": epoch}
        history["aggregated"].append(lead | aggregated)
        for table in ("details", "class_details"):
            history[table].extend(lead | row for row in getattr(evaluation, table))
        history["classes"].extend(lead | row for row in evaluation.classes())

    def _modes(self) -> dict[str, str]:
        return {"loss": "min", **{m["label"]: m["mode"] for m in self.settings["validate"]["metrics"]}}

    def _update_best(self, epoch: int, aggregated: dict[str, float]) -> bool:
        """Note every metric that is better than ever before (the first of equals stays best)."""
        improved = False
        for name, mode in self._modes().items():
            value = aggregated[name]
            if name not in self.progress.best or better(value, self.progress.best[name]["value"], mode):
                self.progress.best[name] = {"value": value, "epoch": epoch}
                improved = True
        return improved

    def _decide_early_stop(self, aggregated: dict[str, float]) -> None:
        """Stop after ``patience`` validations without a gain of ``min_delta`` in the key metric."""
        stop = self.settings["early_stopping"]
        if not stop:
            return
        name = stop.get("metric") or self.settings["validate"]["metrics"][0]["label"]
        if name not in aggregated:
            raise UserError(f"EarlyStopHandler: metric is {name!r}; the recipe has {list(aggregated)}")
        margin = float(stop.get("min_delta", 0.0))
        if better(aggregated[name], self.progress.stop_at, self._modes()[name], margin):
            self.progress.stop_at, self.progress.without_gain = aggregated[name], 0
        else:
            self.progress.without_gain += 1
        self.progress.stopped_early = self.progress.without_gain >= int(stop.get("patience", 10))

    # ---- the whole

    def run(self) -> Progress:
        """Train to the end.

        Returns
        -------
        Progress
            Everything measured; the selectable weights lie in the workspace.
        """
        done = self.resume()
        progress = EpochProgress if self.team.is_first else NoProgress
        with (
            progress(self.split, self.settings["epochs"], self.workspace.events, done) as self.display,
            CollectedWarnings(self.progress.warnings),
        ):
            if not self._last(done):
                try:
                    self._engine(done).run()
                except UserError as error:  # out of a loader's worker it comes with the worker's traceback as text
                    raise UserError(str(error).rpartition("armarium.errors.UserError: ")[2].strip()) from error
        return self.progress

    def _handlers(self) -> list:
        """The recipe's own handlers, but for those of another process's ``rank``."""
        rank = self.team.rank
        mine = [h for h in self.settings["handlers"] if h.get("rank", rank) == rank]
        return [build("handler", h, self.settings["allow"]) for h in mine]

    def _engine(self, done: int) -> SupervisedTrainer:
        engine = SupervisedTrainer(
            device=self.device,
            max_epochs=self.settings["epochs"],
            train_data_loader=self.loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            inferer=self.inferer,
            iteration_update=self._step,
            decollate=False,
            train_handlers=self._handlers() or None,
        )
        engine.logger.setLevel(logging.CRITICAL)  # errors are told once, by the command line
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._note_losses)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.state.epoch, engine.state.iteration = done, done * len(self.loader)
        self.cases.epoch = done + 1
        return engine


class RepeatedTraining(SplitTraining):
    """The first epochs of a finished training once more, for weights that its run does not hold.

    Without validation, which decides no weights.

    Parameters
    ----------
    losses:
        The rows of the run's training_loss.tsv: the same losses show that it is the same training.
    """

    def __init__(self, *args, losses: list[dict[str, str]], **kwargs):
        super().__init__(*args, **kwargs)
        self.expected: dict[int, list[float]] = {}
        for row in losses:
            self.expected.setdefault(int(row["epoch"]), []).append(float(row["loss"]))

    def _validated(self, epoch: int) -> bool:
        return False

    def _last(self, epoch: int) -> bool:
        return epoch >= max(self.settings["keep_epochs"])

    def _end_epoch(self, engine) -> None:
        epoch = engine.state.epoch
        if [loss for of, _, loss in self.progress.losses if of == epoch] != self.expected.get(epoch):
            raise UserError(
                f"split {self.split}: epoch {epoch}, trained once more for a checkpoint that {self.workspace.run_zip} does not hold, "
                "comes out otherwise than then: another machine, torch or device, or one that is not deterministic; take the "
                "epoch out of select.epochs, or delete that file to have the split trained anew"
            )
        super()._end_epoch(engine)
